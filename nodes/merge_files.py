"""A merged LoRA written into files: under free names, read back, and with what is next to them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from ..iteris_core import IterisError
from . import host
from .pictures import png_of
from .sockets import MergedLora

# relative to the module; rounding a full difference to bfloat16 makes 0.004
_LARGEST_DIFFERENCE = 0.01
_ALREADY = "already saved, so no copy was written"
_TRIES = 100  # at names that others take at the same time
_SMALLEST_WEIGHT = 1e-5  # root mean square; below it, float16 itself is no more precise


def check_listed(wanted: Path, ends: Sequence[str]) -> None:
    """Refuse to save files under names that ComfyUI has for other files, which it would load.

    Args:
        wanted, ends: See `free_names`.

    Raises:
        NameTakenError: A name is that of a file in another of the loras folders.
    """
    from ..iteris_core.errors import NameTakenError
    from ..iteris_core.files.writing import numbered

    for path in next(numbered(wanted, ends)):
        if (other := host.namesake(path)) is not None:
            raise NameTakenError(
                f"{host.lora_name_of(path)} is already the name of {other} in LoRA lists, and "
                "overwrite replaces only what is in output/loras. Choose another name, or switch "
                "overwrite off, which adds a number"
            )


@dataclass(frozen=True)
class How:
    """How a merge is written.

    Args:
        thumbnail: A picture for each file, as a data URI; empty: none.
        whole: Whether large layers are saved as full differences.
    """

    thumbnail: str
    whole: bool


@dataclass(frozen=True)
class SaveRequest:
    """Which node saves a merge, and what its inputs say."""

    node_id: str
    file_name: str
    overwrite: bool
    whole: bool


@dataclass(frozen=True)
class Uncovered:
    """A merge's files that wait for their cover.

    Args:
        found: See `save`.
        why: See `why_numbered`.
    """

    found: Mapping[Path, str]
    why: Sequence[str]


# also of a run that was stopped, since ComfyUI gives the next run the same merge
_UNCOVERED: WeakKeyDictionary[MergedLora, dict[SaveRequest, Uncovered]] = WeakKeyDictionary()


def save_uncovered(merged: MergedLora, request: SaveRequest, wanted: Path) -> list[Path]:
    """Save a merge whose cover is yet to be made, unless it is saved already, and return its files;
    see `save`.
    """
    parts, how = merged.by_file, How("", request.whole)
    if waiting := uncovered(merged, request):
        return list(waiting.found)
    if before := saved_before(wanted, parts, how, overwrite=request.overwrite):
        return list(before)
    found = save(parts, wanted, how, overwrite=request.overwrite)
    why = why_numbered(wanted, found, list(parts))
    _UNCOVERED.setdefault(merged, {})[request] = Uncovered(found, why)
    return list(found)


def uncovered(merged: MergedLora, request: SaveRequest) -> Uncovered | None:
    """Return the files that wait for their cover; None: there are none, or they have changed."""
    waiting = _UNCOVERED.get(merged, {}).get(request)
    how = How("", request.whole)
    files = zip(waiting.found if waiting else (), merged.by_file.values(), strict=False)
    return waiting if all(is_saved(path, part, how) for path, part in files) else None


def covered(merged: MergedLora, request: SaveRequest) -> None:
    """Forget that files wait for their cover."""
    _UNCOVERED.get(merged, {}).pop(request, None)


def save(
    parts: Mapping[str, MergedLora], wanted: Path, how: How, *, overwrite: bool
) -> dict[Path, str]:
    """Save a merge's files, all of them or none, and return path -> what reading it back found. If
    one name is taken and may not be replaced, all get the same number, so that the files of a pair
    are found by each other's name.

    Args:
        parts: End of a name -> what its file holds.
        wanted: The path without end and number.

    Raises:
        IterisError: They cannot be written, or one is not read back as it was merged; see also
            `check_listed`.
    """
    from ..iteris_core.errors import NameTakenError
    from ..iteris_core.files.writing import free_names, numbered

    def is_taken(path: Path) -> bool:
        return os.path.lexists(path) or host.namesake(path) is not None

    ends = list(parts)
    if overwrite:
        check_listed(wanted, ends)
        return written(next(numbered(wanted, ends)), parts, how, overwrite=True)
    for _ in range(_TRIES):  # what took hours is not lost because another program was quicker
        paths = free_names(wanted, ends, 1, is_taken)
        with contextlib.suppress(NameTakenError):
            return written(paths, parts, how, overwrite=False)
    raise NameTakenError(f"{wanted} and {_TRIES} names after it were taken; choose another name")


def written(
    paths: Sequence[Path], parts: Mapping[str, MergedLora], how: How, *, overwrite: bool
) -> dict[Path, str]:
    """Write a merge's files and read each back before any gets its name; see `save`."""
    from ..iteris_core.files.writing import blocks_of, whole_files

    found = {}
    with whole_files(paths, overwrite=overwrite) as files:
        for path, part, file in zip(paths, parts.values(), files, strict=True):
            file.writelines(blocks_of(*content_of(path, part, how)))
            file.flush()
            found[path] = read_back(Path(file.name), part, path.name)
    return found


def content_of(
    path: Path, merged: MergedLora, how: How
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a merge's file."""
    from ..iteris_core.files import kohya

    metadata = metadata_for(path, merged, how.thumbnail)
    return kohya.file_of(merged.adapter, merged.keys, metadata, whole=how.whole)


def metadata_for(path: Path, merged: MergedLora, thumbnail: str) -> dict[str, str] | None:
    """Return the metadata of a merge's file; None where the user wants none."""
    from ..iteris_core.diffusion.recipe import metadata_of_merge

    if not host.saves_metadata():
        return None
    return metadata_of_merge(path.stem, merged.loras, merged.recipe, thumbnail)


def saved_before(
    wanted: Path, parts: Mapping[str, MergedLora], how: How, *, overwrite: bool = False
) -> dict[Path, str] | None:
    """Return the files of a merge that is saved already, under the name that is wanted or, if that
    may not be overwritten, with a number; None: it is not. See `save`.
    """
    from ..iteris_core.files.writing import numbered

    for paths in itertools.islice(numbered(wanted, list(parts)), 1 if overwrite else None):
        if any(map(host.namesake, paths)):
            continue
        if not all(map(os.path.lexists, paths)):
            return None
        files = zip(paths, parts.values(), strict=True)
        if all(is_saved(path, part, how) for path, part in files):
            return dict.fromkeys(paths, _ALREADY)
    return None


def why_numbered(wanted: Path, found: Container[Path], ends: Sequence[str]) -> list[str]:
    """Return a line about why files have a number, and how to get none; no line: they have none.

    Args:
        wanted, ends: See `free_names`.
        found: The files.
    """
    from ..iteris_core.files.writing import numbered

    first = next(numbered(wanted, ends))
    if first[0] in found:
        return []
    for path in first:
        if host.namesake(path) is not None:
            return [f"{path.name} is another LoRA: choose another name for one without a number"]
    return [f"{first[0].name} exists: switch overwrite on to replace it"]


def is_saved(path: Path, merged: MergedLora, how: How) -> bool:
    """Whether a file is, byte by byte, what `save` would write under its name, except for its
    cover: nobody wants a second copy of a merge for another picture of it.
    """
    from ..iteris_core.errors import AdapterError
    from ..iteris_core.files.tensors import read_header
    from ..iteris_core.files.writing import blocks_of

    try:
        found = read_header(path)[1]
        how = replace(how, thumbnail=found.get("modelspec.thumbnail", ""))
        metadata = metadata_for(path, merged, how.thumbnail) or {}
        if not metadata.items() <= found.items():  # most end here
            return False
        content = memoryview(path.read_bytes())
    except (AdapterError, OSError):
        return False
    header, data = blocks_of(*content_of(path, merged, how))
    return content[: len(header)] == header and content[len(header) :] == data


def beside_it(
    path: Path, merged: MergedLora, words: Sequence[str], cover: torch.Tensor | None
) -> dict[str, bytes]:
    """Return what is saved next to a LoRA's file: ending of the name -> content."""
    from ..iteris_core.files.beside import CARD, as_cover

    card = card_of(path, merged, words)
    mark = as_cover if host.saves_metadata() else bytes
    preview = {} if cover is None else {".preview.png": mark(png_of(cover[0]))}
    return preview | ({CARD: card} if card else {})


def card_of(path: Path, merged: MergedLora, words: Sequence[str]) -> bytes:
    """Return what LoRA Manager keeps next to a LoRA's file, as JSON; empty where it keeps nothing
    next to the LoRAs of the merge, so that nobody would read it, or where the user wants no
    metadata.
    """
    from ..iteris_core.files.beside import base_beside
    from ..iteris_core.files.metadata import gallery_card

    names = [lora.use.file for lora in merged.loras if lora.use.file is not None]
    found = [base_beside(place) for place in map(host.find_lora, names) if place is not None]
    bases = [base for base in found if base is not None]
    if not bases or not host.saves_metadata():
        return b""
    card = gallery_card(path, bases, words, f"Merged by IterIS from {', '.join(names)}")
    # tags of strangers may hold half a character
    return json.dumps(card, indent=2, ensure_ascii=False).encode("utf-8", "replace")


def save_beside(path: Path, ending: str, content: bytes, *, overwrite: bool) -> str:
    """Save a file next to a LoRA's, where programs look for it, and return a line about it; empty:
    it is there already. An earlier cover of ours is replaced, and what others have put there only
    with `overwrite`. The LoRA itself is saved, so that a failure here is not an error.

    Args:
        ending: Ending of the name of the other file, which is the LoRA's otherwise.
    """
    from ..iteris_core.errors import NameTakenError, SaveError
    from ..iteris_core.files.beside import as_cover, is_cover
    from ..iteris_core.files.writing import whole_file

    beside = path.with_name(f"{path.stem}{ending}")
    try:
        before = beside.read_bytes() if beside.is_file() and not overwrite else b""
        if content in (before, as_cover(before)):  # the latter of older versions
            return ""
        with whole_file(beside, overwrite=overwrite or is_cover(beside)) as file:
            file.write(content)
    except NameTakenError:
        return f"{beside.name} was there and was kept; remove it, or switch overwrite on"
    except SaveError as error:
        return f"no {beside.name}: {error}"
    return f"beside it: {beside.name}"


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
