"""The node that saves a merged LoRA."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..iteris_core import IterisError
from . import host
from .expert_files import LOW_INPUT
from .loras.names import path_to_save
from .pictures import jpeg_uri, png_of
from .sockets import ENDS_OF_PAIR, LORA_STACK, MERGED, MergedLora, advanced
from .validation import checked
from .workflow import inputs_of, text_at, upstream

LOW_RANK = "low rank"
FULL_DIFFERENCE = "full difference (.diff)"
_LARGEST_DIFFERENCE = (
    0.01  # relative to the module; rounding a full difference to bfloat16 makes 0.004
)
_UNLISTED = (
    "this folder is not one of ComfyUI's folders of LoRAs, so LoRA loaders do not list the file; "
    "add it to them, or move the file"
)
_ALREADY = "already saved: this file has the same content, so no copy was written"
_TRIES = 100  # at names that others take at the same time
_SMALLEST_WEIGHT = 1e-5  # root mean square; below it, float16 itself is no more precise


class SaveMergedLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISSave",
            display_name="Save merged LoRA (IterIS)",
            category="loaders/IterIS",
            description="Saves a merged LoRA, text encoders and diffusion model, as a .safetensors "
            "file that ComfyUI and other programs for this model load. For a pair of models, two "
            "files are saved: name_high_noise and name_low_noise.",
            inputs=[
                MERGED.Input("merged", tooltip="The merged LoRA of Merge LoRAs."),
                io.String.Input(
                    "file_name",
                    default="iteris_merged",
                    tooltip="Name of the file, as LoRA lists will show it. It is saved in the "
                    "folder output/loras, which is in every LoRA list. A name such as "
                    "styles/ink makes a folder there, and %date:yyyy-MM-dd% becomes the date.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: replace a file of the same name. Off: add a number to the name, "
                    "unless that file is this merge already.",
                ),
                io.Combo.Input(
                    "large_layers",
                    options=[LOW_RANK, FULL_DIFFERENCE],
                    default=LOW_RANK,
                    optional=True,
                    tooltip="How to save layers whose rank is so high that two factors take more "
                    "room than the weight itself. This happens after merging LoKr, OFT, "
                    "DoRA or full differences. The full difference is smaller. Some "
                    "programs other than ComfyUI do not read it.",
                    **advanced(),
                ),
                io.Image.Input(
                    "cover",
                    optional=True,
                    tooltip="A picture of what the LoRA draws, such as one of Compare. It is "
                    "stored in the file and next to it, as name.preview.png, for programs that "
                    "show LoRAs by pictures.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="path", tooltip="Where the file is; of a pair, the high noise one."
                ),
                LORA_STACK.Output(
                    display_name="LORA_STACK",
                    tooltip="The saved LoRA, for nodes that take a LoRA stack.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file_name: str | None = None) -> bool | str:
        """Refuse a name that no file can get; see `check_names`."""
        try:
            check_name(host.prompt_sent(), cls.hidden.unique_id)
        except IterisError as error:
            return str(error)
        return True

    @classmethod
    @checked
    def execute(
        cls,
        merged: MergedLora,
        file_name: str,
        overwrite: bool,
        large_layers: str = LOW_RANK,
        cover: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        parts = merged.by_file
        wanted = path_to_save(host.output_folder(), file_name)
        how = How("" if cover is None else jpeg_uri(cover[0]), large_layers == FULL_DIFFERENCE)
        before = None if overwrite else saved_before(wanted, parts, how)
        found = before or save(parts, wanted, how, overwrite=overwrite)
        shown: list[str] = []
        told: list[dict[str, Any]] = []
        why = why_numbered(wanted, found, list(parts))
        for (path, read), part in zip(found.items(), parts.values(), strict=True):
            facts = cls.about(path, part)
            beside = beside_it(path, part, facts["words"], cover)
            shown += [str(path), read, in_words(facts), *(why if not told else [])]
            shown += [save_beside(path, *each, overwrite=overwrite) for each in beside.items()]
            shown += [] if facts["listed_as"] else [_UNLISTED]
            told.append(facts)
        name = told[0]["listed_as"]
        stack = [(name, 1.0, 1.0)] if name else []
        path = next(iter(found))
        return io.NodeOutput(str(path), stack, ui={"text": shown, "iteris_saved": told})

    @classmethod
    def about(cls, path: Path, merged: MergedLora) -> dict[str, Any]:
        """Return what the page shows of a saved file on the node that the merged LoRA came from."""
        from ..iteris_core.diffusion.recipe import triggers_of
        from ..iteris_core.files.headers import lora_header

        ranks = [delta.rank for delta in merged.adapter.deltas.values()]
        source = inputs_of(cls.hidden.prompt or {}, cls.hidden.unique_id).get("merged")
        return {
            "merge": source[0] if isinstance(source, list) else None,
            "name": path.name,
            "listed_as": host.lora_name_of(path),
            "mb": path.stat().st_size / 1e6,
            "ranks": [min(ranks, default=0), max(ranks, default=0)],
            "words": triggers_of(merged.loras),
            "hash": lora_header(path).digest,
        }


def check_names(prompt: Mapping[str, Any], merge: str) -> None:
    """Refuse a merge whose file could not be saved, before its work. That the node that saves it
    refuses its name is not enough: the host would leave out that node, and merge all the same.

    Args:
        prompt: See `workflow.upstream`.

    Raises:
        IterisError: See `check_name`.
    """
    for node, given in prompt.items():
        is_save = given.get("class_type") == "IterISSave"
        if is_save and str(merge) in upstream(prompt, node, ("merged",)):
            try:
                check_name(prompt, node)
            except IterisError as error:
                raise IterisError(f"Save merged LoRA: {error}") from error


def check_name(prompt: Mapping[str, Any], save: str) -> None:
    """Refuse the name that a node saves under, as far as it is known before a run.

    Raises:
        IterisError: See `path_to_save` and `check_listed`.
    """
    inputs = inputs_of(prompt, save)
    name = text_at(prompt, inputs.get("file_name"))
    if name is None:
        return
    wanted = path_to_save(host.output_folder(), name)
    if inputs.get("overwrite") is True:
        before = upstream(prompt, save, ("merged",))
        is_pair = any(LOW_INPUT in inputs_of(prompt, node) for node in before)
        check_listed(wanted, ENDS_OF_PAIR if is_pair else ("",))


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


def save(
    parts: Mapping[str, MergedLora], wanted: Path, how: How, *, overwrite: bool
) -> dict[Path, str]:
    """Save a merge's files, all of them or none, and return their paths and what reading each back
    found. They get one number where one of their names is taken and may not be replaced, so that
    those of a pair are found by each other's name.

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


def saved_before(wanted: Path, parts: Mapping[str, MergedLora], how: How) -> dict[Path, str] | None:
    """Return the files of a merge that is saved already, under the name that is wanted or with a
    number; None: it is not. See `save`.
    """
    from ..iteris_core.files.writing import numbered

    for paths in numbered(wanted, list(parts)):
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
    """Whether a file is, byte by byte, what `save` would write under its name."""
    from ..iteris_core.errors import AdapterError
    from ..iteris_core.files.tensors import read_header
    from ..iteris_core.files.writing import blocks_of

    metadata = metadata_for(path, merged, how.thumbnail)
    try:
        if not (metadata or {}).items() <= read_header(path)[1].items():  # most end here
            return False
        content = memoryview(path.read_bytes())
    except (AdapterError, OSError):
        return False
    header, data = blocks_of(*content_of(path, merged, how))
    return content[: len(header)] == header and content[len(header) :] == data


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the size, the rank and the trigger words of a saved file as a line."""
    least, most = facts["ranks"]
    rank = f"rank {least}" if least == most else f"rank {least} to {most}"
    words = ", ".join(facts["words"]) or "none"
    return f"{facts['mb']:.1f} MB, {rank}, trigger words: {words}"


def beside_it(
    path: Path, merged: MergedLora, words: Sequence[str], cover: torch.Tensor | None
) -> dict[str, bytes]:
    """Return what is saved next to a LoRA's file: ending of the name -> content."""
    from ..iteris_core.files.beside import CARD

    card = card_of(path, merged, words)
    preview = {} if cover is None else {".preview.png": png_of(cover[0])}
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
    return json.dumps(card, indent=2, ensure_ascii=False).encode()


def save_beside(path: Path, ending: str, content: bytes, *, overwrite: bool) -> str:
    """Save a file next to a LoRA's, where programs look for it, and return a line about it. The
    LoRA is saved already, so what keeps the file from being saved is not an error.

    Args:
        ending: Ending of the name of the other file, which is the LoRA's otherwise.
    """
    from ..iteris_core.errors import NameTakenError, SaveError
    from ..iteris_core.files.writing import whole_file

    beside = path.with_name(f"{path.stem}{ending}")
    try:
        with whole_file(beside, overwrite=overwrite) as file:
            file.write(content)
    except NameTakenError:
        if beside.is_file() and beside.read_bytes() == content:
            return f"beside it: {beside.name}"
        return f"{beside.name} existed already and was kept; remove it, or switch overwrite on"
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
