"""The LoRAs of a merge, gathered from its sockets and read at their strengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ...iteris_core import Adapter, ConfigError
from ...iteris_core.diffusion.calibration import Calibration
from ...iteris_core.diffusion.lora_use import LoadedLora, LoraUse, load_each_once
from ...iteris_core.files.layout import sha256_of_tensors
from ...iteris_core.files.tensors import read_tensors, sha256
from ...iteris_core.report.records import Note
from .. import host
from ..sockets import ChosenLora, Scenes


def scenes_of(chosen: Iterable[ChosenLora]) -> Scenes | None:
    """Return the settings of the scenes in which the LoRAs meet.

    Raises:
        ConfigError: They come from several 'Scene prompts' nodes with different settings.
    """
    scenes = list(dict.fromkeys(lora.scenes for lora in chosen if lora.scenes is not None))
    if len(scenes) > 1:
        raise ConfigError(
            f"the LoRAs come from {len(scenes)} 'Scene prompts' nodes with different settings; put "
            "one of them behind all LoRAs"
        )
    return scenes[0] if scenes else None


def load(
    base: host.ComfyModel, chosen: Iterable[ChosenLora]
) -> tuple[list[LoadedLora], list[Note]]:
    """Return the LoRAs read for a model, each once, and notes about duplicates and about what is
    left out of their prompts.

    Raises:
        AdapterError: A file is missing or cannot be read, or it does not fit the model.
    """
    tensors_of: dict[str, Mapping[str, Tensor]] = {}
    uses = []
    for lora in chosen:
        use = identified(lora)
        uses.append(use)
        if lora.tensors is not None:
            tensors_of[use.sha256] = lora.tensors

    def read(use: LoraUse) -> Adapter:
        host.heed_cancel()
        if use.sha256 in tensors_of:
            return base.adapter(use, tensors_of[use.sha256], {})
        return base.adapter(use, *read_tensors(host.lora_path(str(use.file))))

    loras, notes = load_each_once(uses, read)
    for lora in loras:
        texts = (*lora.use.prompts, lora.use.trigger)
        notes += _unread(base, f"{lora.use.name}: left out of its prompts", texts)
    return loras, notes


def unread_in(base: host.ComfyModel, calibration: Calibration) -> list[Note]:
    """Return notes about learned tokens that the host does not have, in the prompts of a
    calibration.
    """
    return [
        *_unread(base, "left out of the negative prompt", [calibration.negative_prompt]),
        *_unread(base, "left out of the base model's prompts", calibration.preserve_captions),
    ]


def _unread(base: host.ComfyModel, what: str, texts: Iterable[str]) -> list[Note]:
    """Return a note about the learned tokens in texts that the host does not have, if there are
    any.
    """
    found = [
        name for text in texts if "embedding:" in text for name in base.unknown_embeddings(text)
    ]
    names = ", ".join(f"embedding:{name}" for name in dict.fromkeys(found))
    text = (
        f"{what}: {names}; there is no such file in ComfyUI's embeddings folder, or it is for "
        "another text encoder"
    )
    return [Note("prompts", text)] if found else []


def identified(lora: ChosenLora) -> LoraUse:
    """Return the use of a LoRA with the SHA-256 of its file or of its tensors."""
    host.heed_cancel()  # a large file takes seconds
    if lora.tensors is not None:
        return replace(lora.use, sha256=sha256_of_tensors(lora.tensors))
    return replace(lora.use, sha256=sha256(host.lora_path(str(lora.use.file))))
