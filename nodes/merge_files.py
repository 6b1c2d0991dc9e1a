"""A merged LoRA written into a file: under a free name, read back, and with a cover next to it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import torch

from ..iteris_core import IterisError
from . import host
from .pictures import png_of
from .sockets import MergedLora

# relative to the module; rounding a full difference to bfloat16 makes 0.004
_LARGEST_DIFFERENCE = 0.01
_SMALLEST_WEIGHT = 1e-5  # root mean square; below it, float16 itself is no more precise


def check_listed(wanted: Path) -> None:
    """Refuse to save a file under a name that ComfyUI has for another one, which it would load.

    Raises:
        NameTakenError: The name is that of a file in another of the loras folders.
    """
    from ..iteris_core.errors import NameTakenError

    if (other := host.namesake(wanted)) is not None:
        raise NameTakenError(
            f"{host.lora_name_of(wanted)} is already the name of {other} in LoRA lists, and "
            "overwrite replaces only what is in output/loras. Choose another name, or switch "
            "overwrite off, which adds a number"
        )


def save(merged: MergedLora, wanted: Path, *, whole: bool, overwrite: bool) -> tuple[Path, str]:
    """Save a merge, and return its path and what reading it back found. A name that is taken gets a
    number unless it may be overwritten.

    Args:
        whole: Whether large layers are saved as full differences.

    Raises:
        IterisError: It cannot be written, or is not read back as it was merged; see also
            `check_listed`.
    """
    if overwrite:
        check_listed(wanted)
        return wanted, written(wanted, merged, whole=whole, overwrite=True)
    path = _free_path(wanted)
    return path, written(path, merged, whole=whole, overwrite=False)


def _free_path(wanted: Path) -> Path:
    """Return the path that is wanted, with a number where its name is another file's."""
    path = wanted
    for number in itertools.count(2):
        if not os.path.lexists(path) and host.namesake(path) is None:
            break
        path = wanted.with_stem(f"{wanted.stem}_{number:02}")
    return path


def written(path: Path, merged: MergedLora, *, whole: bool, overwrite: bool) -> str:
    """Write a merge's file, and read it back before it gets its name; see `save`."""
    from ..iteris_core.diffusion.recipe import metadata_of_merge
    from ..iteris_core.files import kohya
    from ..iteris_core.files.writing import blocks_of, whole_file

    metadata = None  # where the user wants none
    if host.saves_metadata():
        metadata = metadata_of_merge(path.stem, merged.loras, merged.recipe)
    content = kohya.file_of(merged.adapter, merged.keys, metadata, whole=whole)
    with whole_file(path, overwrite=overwrite) as file:
        file.writelines(blocks_of(*content))
        file.flush()
        return read_back(Path(file.name), merged, path.name)


def why_numbered(wanted: Path, found: Path) -> list[str]:
    """Return why a file has a number, and how to get none; nothing if it has none."""
    if wanted == found:
        return []
    if host.namesake(wanted) is not None:
        return [f"{wanted.name} is another LoRA: choose another name for one without a number"]
    return [f"{wanted.name} exists: switch overwrite on to replace it"]


def save_cover(path: Path, cover: torch.Tensor, *, overwrite: bool) -> list[str]:
    """Save a picture next to a LoRA's file, where programs look for it, and return a line about it.
    The LoRA itself is saved, so that a failure here is not an error.
    """
    from ..iteris_core.errors import SaveError
    from ..iteris_core.files.writing import whole_file

    beside = path.with_name(f"{path.stem}.preview.png")
    try:
        with whole_file(beside, overwrite=overwrite) as file:
            file.write(png_of(cover[0]))
    except SaveError as error:
        return [f"no {beside.name}: {error}"]
    return [f"beside it: {beside.name}"]


def read_back(path: Path, merged: MergedLora, name: str) -> str:
    """Load a saved file as the stock LoraLoader does, and compare each module with the merged
    adapter.

    Raises:
        IterisError: A module is missing, or differs by more than rounding.
    """
    added = host.stock_loader(path, merged.keys)
    deltas = merged.adapter.deltas
    differences = {}
    for module, delta in deltas.items():
        found = added(f"{module}.weight", merged.keys.weight_shape(module))
        dense = delta.to(dtype=torch.float32).dense()
        differences[f"{module}.weight"] = _difference(found, dense)
    for parameter, vector in merged.adapter.vectors.items():
        differences[parameter] = _difference(added(parameter, vector.shape), vector.float())
    lost = [parameter for parameter, d in differences.items() if not d <= _LARGEST_DIFFERENCE]
    if lost:
        raise IterisError(
            f"{name}: read back through ComfyUI's LoRA loader, {len(lost)} of {len(differences)} "
            f"weights are missing or differ, such as {lost[0]!r}. The file was not kept; report "
            "this with ComfyUI's version"
        )
    vectors = f", {len(merged.adapter.vectors)} biases and norms" if merged.adapter.vectors else ""
    largest = max(differences.values(), default=0.0)
    modules = f"{len(deltas)} of {len(deltas)} modules"
    return f"read back: {modules}{vectors}, largest difference {largest:.2g}"


def _difference(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    """Return how far a change is off, relative to its size; 1 if it is missing."""
    if found is None:
        return 1.0
    expected = expected.cpu()
    scale = max(expected.norm().item(), _SMALLEST_WEIGHT * expected.numel() ** 0.5)
    difference: float = (found.reshape(expected.shape) - expected).norm().item() / scale
    return difference
