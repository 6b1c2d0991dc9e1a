"""The LoRAs of a merge, gathered from its sockets and read at their strengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ...iteris_core import Adapter, AdapterError
from ...iteris_core.adapters import sha256_of_tensors
from ...iteris_core.diffusion.loaded_loras import LoadedLora, load_each_once
from ...iteris_core.diffusion.lora_use import LoraUse
from ...iteris_core.files.tensors import read_tensors, sha256
from ...iteris_core.report.records import Note
from .. import host
from ..sockets import ChosenLora, Loose, MergedLora


def identified(chosen: Iterable[ChosenLora]) -> tuple[list[LoraUse], Loose]:
    """Return the uses of LoRAs with the SHA-256 of their files or tensors, and the weights of those
    that are in no file.
    """
    uses = []
    loose: dict[str, Mapping[str, Tensor]] = {}
    for lora in chosen:
        host.heed_cancel()  # a large file takes seconds
        if lora.tensors is None:
            uses.append(replace(lora.use, sha256=sha256(host.lora_path(str(lora.use.file)))))
        else:
            uses.append(replace(lora.use, sha256=sha256_of_tensors(lora.tensors)))
            loose[uses[-1].sha256] = lora.tensors
    return uses, loose


def load(
    base: host.ComfyModel, uses: Iterable[LoraUse], loose: Loose
) -> tuple[list[LoadedLora], list[Note]]:
    """Return the LoRAs read for a model, each once, and notes about duplicates and about what is
    left out of them.

    Args:
        uses: The LoRAs, identified.
        loose: Weights of those that are in no file.

    Raises:
        AdapterError: A file is missing or cannot be read, it does not fit the model, or ComfyUI's
            own loader reads it in another way.
    """
    loras, notes = load_each_once(uses, lambda use: _proved(base, use, loose))
    for lora in loras:
        notes += _left_out(lora)
    return loras, notes


def _left_out(lora: LoadedLora) -> list[Note]:
    """Return a note about the text encoders that a LoRA changes and that are never merged."""
    keys = lora.adapter.left_out
    if not keys:
        return []
    text = (
        f"{lora.use.name}: {len(keys)} of its keys, such as {keys[0]}, change a T5, a language "
        "model or another text encoder that is never merged. They are left out: the merged LoRA is "
        "without them"
    )
    return [Note("left_out", text)]


def read_again(base: host.ComfyModel, merged: MergedLora) -> list[Adapter]:
    """Return the LoRAs of a merge as they were merged, each at its strengths.

    Raises:
        AdapterError: A file is missing, cannot be read, or is another one than was merged.
    """
    adapters = []
    for use in (lora.use for lora in merged.loras):
        host.heed_cancel()
        if use.sha256 not in merged.loose and sha256(host.lora_path(str(use.file))) != use.sha256:
            raise AdapterError(
                f"{use.file} is another file than the one that was merged, whose SHA-256 began "
                f"{use.sha256[:10]}. Put that file back, or merge again"
            )
        adapters.append(base.adapter(use, *_content(use, merged.loose)))
    return adapters


def _proved(base: host.ComfyModel, use: LoraUse, loose: Loose) -> Adapter:
    """Return a LoRA that is read as ComfyUI's own loader reads it."""
    host.heed_cancel()
    tensors, metadata = _content(use, loose)
    adapter = base.adapter(use, tensors, metadata)
    if not use.is_idle:
        base.prove_reading(use, adapter, tensors)
    return adapter


def _content(use: LoraUse, loose: Loose) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    if use.sha256 in loose:
        return loose[use.sha256], {}
    return read_tensors(host.lora_path(str(use.file)))
