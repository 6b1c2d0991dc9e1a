"""The node that saves a merged LoRA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..iteris_core import IterisError
from . import host
from .inputs import checked
from .loras.names import path_to_save
from .pictures import jpeg_uri, png_of
from .sockets import LORA_STACK, MERGED, MergedLora, advanced
from .workflow import inputs_of

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
                    "styles/ink makes a folder there.",
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
                    display_name="path", tooltip="Of a pair, the file for the high noise model."
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
        """Refuse a bad name before the merge; a name that comes from another node is None here."""
        if file_name is None:
            return True
        try:
            path_to_save(host.output_folder(), file_name)
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
        from ..iteris_core.files.trigger_words import CARD
        from ..iteris_core.files.writing import check_free

        parts = merged.by_file
        whole = path_to_save(host.output_folder(), file_name)
        thumbnail = "" if cover is None else jpeg_uri(cover[0])
        differences = large_layers == FULL_DIFFERENCE
        before = None if overwrite else saved_before(whole, parts, thumbnail, whole=differences)
        wanted = before or paths_for(whole, list(parts), overwrite=overwrite)
        if overwrite:
            for path in wanted:
                check_free(path, overwrite=True)
        paths = []
        shown = []
        told = []
        for path, part in zip(wanted, parts.values(), strict=True):
            saved, found = path, _ALREADY
            if before is None:
                saved, found = save(part, path, thumbnail, overwrite=overwrite, whole=differences)
            name = host.lora_name_of(saved)
            facts = cls.about(saved, name, part)
            shown += [str(saved), found, in_words(facts)]
            beside = {}
            if cover is not None:
                beside[".preview.png"] = png_of(cover[0])
            if card := card_of(saved, part, facts["words"]):
                beside[CARD] = card
            may_replace = overwrite and saved == path
            for ending, content in beside.items():
                shown.append(save_beside(saved, ending, content, overwrite=may_replace))
            if name is None:
                shown.append(_UNLISTED)
            paths.append((saved, name))
            told.append(facts)
        path, name = paths[0]
        stack = [(name, 1.0, 1.0)] if name else []
        return io.NodeOutput(str(path), stack, ui={"text": shown, "iteris_saved": told})

    @classmethod
    def about(cls, path: Path, name: str | None, merged: MergedLora) -> dict[str, Any]:
        """Return what the page shows of a saved file on the node that the merged LoRA came from.

        Args:
            name: The file's name in ComfyUI's list of LoRAs; None: it is not in there.
        """
        from ..iteris_core.diffusion.recipe import triggers_of
        from ..iteris_core.files.trigger_words import lora_header

        ranks = [delta.rank for delta in merged.adapter.deltas.values()]
        source = inputs_of(cls.hidden.prompt or {}, cls.hidden.unique_id).get("merged")
        return {
            "merge": source[0] if isinstance(source, list) else None,
            "name": path.name,
            "listed_as": name,
            "mb": path.stat().st_size / 1e6,
            "ranks": [min(ranks, default=0), max(ranks, default=0)],
            "words": triggers_of(merged.loras),
            "hash": lora_header(path).digest,
        }


def check_names(prompt: Mapping[str, Any], merge: str) -> None:
    """Refuse a merge whose file could not be saved: the host refuses the node that saves it, and
    would merge all the same. A name that comes from another node is not known yet.

    Args:
        prompt: See `workflow.texts_upstream`.

    Raises:
        IterisError: A name that `path_to_save` refuses.
    """
    for node in prompt.values():
        inputs = node.get("inputs", {})
        name = inputs.get("file_name")
        merged = inputs.get("merged")
        is_ours = isinstance(merged, list) and str(merged[0]) == str(merge)
        if node.get("class_type") == "IterISSave" and is_ours and isinstance(name, str):
            path_to_save(host.output_folder(), name)


def paths_for(wanted: Path, ends: Sequence[str], *, overwrite: bool) -> list[Path]:
    """Return the paths of a merge's files, each with an end of its own to the name. Those of a pair
    get one number where one of their names is taken, so that they are found by each other's name.
    """
    from ..iteris_core.files.writing import free_names

    if overwrite or len(ends) == 1:
        return [wanted.with_name(f"{wanted.stem}{end}{wanted.suffix}") for end in ends]
    return free_names(wanted, ends, first=1)


def save(
    merged: MergedLora, wanted: Path, thumbnail: str, *, overwrite: bool, whole: bool
) -> tuple[Path, str]:
    """Save a merged LoRA, and return its path and what reading it back found.

    Args:
        wanted: Its path; another one where it is taken and may not be replaced.
        thumbnail: A picture for the file, as a data URI; empty: none.
        whole: Whether large layers are saved as full differences.

    Raises:
        IterisError: It cannot be written, or is not read back as it was merged.
    """
    from ..iteris_core.files import kohya
    from ..iteris_core.files.writing import check_free, under_free_name, write_tensors

    found = ""

    def write(path: Path, may_replace: bool) -> None:
        check_free(path, overwrite=may_replace)
        metadata = metadata_for(path, merged, thumbnail)
        tensors, content = kohya.file_of(merged.adapter, merged.keys, metadata, whole=whole)

        def check(draft: Path) -> None:
            nonlocal found
            found = read_back(draft, merged, path.name)

        write_tensors(tensors, path, content, overwrite=may_replace, check=check)

    return under_free_name(wanted, write, overwrite=overwrite), found


def metadata_for(path: Path, merged: MergedLora, thumbnail: str) -> dict[str, str] | None:
    """Return the metadata of a merge's file; None where the user wants none."""
    from ..iteris_core.diffusion.recipe import metadata_of_merge

    if not host.saves_metadata():
        return None
    return metadata_of_merge(path.stem, merged.loras, merged.recipe, thumbnail)


def saved_before(
    wanted: Path, parts: Mapping[str, MergedLora], thumbnail: str, *, whole: bool
) -> list[Path] | None:
    """Return the files of a merge that is saved already, under the name that is wanted or with a
    number; None: it is not.

    Args:
        wanted: The path without end and number.
        parts: End of a name -> what its file holds.
    """
    from ..iteris_core.files.writing import numbered

    for paths in numbered(wanted, list(parts)):
        if not all(map(os.path.lexists, paths)):
            return None
        files = zip(paths, parts.values(), strict=True)
        if all(is_saved(path, part, thumbnail, whole=whole) for path, part in files):
            return paths
    return None


def is_saved(path: Path, merged: MergedLora, thumbnail: str, *, whole: bool) -> bool:
    """Whether a file is, byte by byte, what `save` would write under its name."""
    from ..iteris_core.errors import AdapterError
    from ..iteris_core.files import kohya
    from ..iteris_core.files.tensors import read_header
    from ..iteris_core.files.writing import blocks_of

    metadata = metadata_for(path, merged, thumbnail)
    try:
        if not (metadata or {}).items() <= read_header(path)[1].items():  # most end here
            return False
        content = memoryview(path.read_bytes())
    except (AdapterError, OSError):
        return False
    tensors, strings = kohya.file_of(merged.adapter, merged.keys, metadata, whole=whole)
    header, data = blocks_of(tensors, strings)
    return content[: len(header)] == header and content[len(header) :] == data


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the size, the rank and the trigger words of a saved file as a line."""
    least, most = facts["ranks"]
    rank = f"rank {least}" if least == most else f"rank {least} to {most}"
    words = ", ".join(facts["words"]) or "none"
    return f"{facts['mb']:.1f} MB, {rank}, trigger words: {words}"


def card_of(path: Path, merged: MergedLora, words: Sequence[str]) -> bytes:
    """Return what LoRA Manager keeps next to a LoRA's file, as JSON; empty where it keeps nothing
    next to the LoRAs of the merge, so that nobody would read it, or where the user wants no
    metadata.
    """
    from ..iteris_core.files.metadata import gallery_card
    from ..iteris_core.files.trigger_words import base_beside

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
