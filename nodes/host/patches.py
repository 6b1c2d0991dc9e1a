"""Adapters as patches on a MODEL or a CLIP."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
from torch import Tensor

from ...iteris_core import Adapter, AdapterError, IterisError
from ...iteris_core.errors import FAILURES
from ...iteris_core.files.adapter_kinds import PEFT_DORA, kind_of
from ...iteris_core.files.groups import grouped
from ..keys import HostKeys, HostWeight


def add_adapter(patcher: Any, adapter: Adapter, keys: set[str]) -> None:
    """Patch a MODEL or a CLIP. The keys are one file's, and mark its patches as one LoRA.

    Without anything to patch it stays the same for the host, which need not load it again.
    """
    patches = {
        f"{path}.weight": comfy.weight_adapter.LoRAAdapter(
            keys, (delta.up, delta.down, float(delta.rank), None, None, None)
        )
        for path, delta in adapter.deltas.items()
    }
    patches |= {parameter: ("diff", (vector,)) for parameter, vector in adapter.vectors.items()}
    missing = set(patches) - set(patcher.add_patches(patches, 1.0)) if patches else set()
    if missing:
        raise IterisError(
            f"ComfyUI did not accept patches for {len(missing)} weights, such as {min(missing)!r}"
        )


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA's tensors in the names that the host converts them to."""
    found: dict[str, Tensor] = comfy.lora_convert.convert_lora(dict(tensors))
    return found


def patches_of_file(
    name: str, tensors: Mapping[str, Tensor], keys: HostKeys, misread: Container[str]
) -> dict[Any, Any]:
    """Return a LoRA's tensors as the host's own loader reads them: weight, or (weight, part of it[,
    function]) -> patch.

    Its changes of biases and norms, which rows do not wear, are left out.

    Args:
        name: The LoRA's.
        tensors: The file's whole content; see `converted`.
        keys: Keys of the model.
        misread: Modules to leave out; see `misread_by_host`.

    Raises:
        AdapterError: The host's loader fails on them; quotes its error.
    """
    try:
        loaded = comfy.lora.load_lora(dict(tensors), keys.table, log_missing=False)
    except FAILURES as error:
        raise AdapterError(
            f"{name}: ComfyUI's own LoRA loader fails on this file with {type(error).__name__}: "
            f"{error}. A module probably has keys of two kinds, or half of a pair; download the "
            "file again, or use another LoRA"
        ) from error
    return {
        entry: patch
        for entry, patch in loaded.items()
        if HostWeight.of(entry).weight not in keys.vector_sizes
        and HostWeight.of(entry).module not in misread
    }


def misread_by_host(tensors: Mapping[str, Tensor], keys: HostKeys) -> set[str]:
    """Return the modules of a file that the host's loader is known to read wrongly: PEFT's DoRAs,
    the names of whose magnitudes it does not know.
    """
    groups, _ = grouped(tensors, keys.table.__contains__)
    return {
        HostWeight.of(keys.table[base]).module
        for base, group in groups.items()
        if kind_of(group.tensors) is PEFT_DORA
    }


def patches_of(model: Any, clip: Any) -> dict[str, list[Any]]:
    """Return the patches that MODEL and CLIP carry: weight -> patches in the order of their
    application.
    """
    return {
        weight: list(on_weight)
        for part in (model, clip.patcher)
        for weight, on_weight in part.patches.items()
    }


def added_patches(before: Any, after: Any) -> Iterator[tuple[str, int]]:
    """Yield the weights that have more patches on one MODEL or CLIP than on another, and how many
    there were before.
    """
    for weight, patches in after.patches.items():
        start = len(before.patches.get(weight, ()))
        if len(patches) > start:
            yield weight, start
