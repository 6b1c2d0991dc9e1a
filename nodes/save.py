"""The node that saves a merged LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.report.records import Note
from . import host
from .loras.names import name_of_merge, path_to_save
from .merge_files import check_listed, save, save_cover, why_numbered
from .payload import notes_of, ranks_in_words, shown
from .sockets import LORA_STACK, MERGED, MergedLora, advanced
from .validation import checked
from .workflow import inputs_of, text_at, upstream

LOW_RANK = "low rank"
FULL_DIFFERENCE = "full difference (.diff)"
_UNLISTED = (
    "this folder is not one of ComfyUI's folders of LoRAs, so LoRA loaders do not list the file; "
    "add it to them, or move the file"
)


class SaveMergedLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISSave",
            display_name="Save merged LoRA (IterIS)",
            category="loaders/IterIS",
            description="Saves a merged LoRA, text encoders and diffusion model, as a .safetensors "
            "file that ComfyUI and other programs for this model load.",
            inputs=[
                MERGED.Input("merged", tooltip="The merged LoRA of Merge LoRAs."),
                io.String.Input(
                    "file_name",
                    default="",
                    tooltip="Name of the file, as LoRA lists will show it. Empty: the LoRAs' "
                    "names, such as sks_robot+zwx_owl. It is saved in the folder output/loras, "
                    "which is in every LoRA list. A name such as styles/ink makes a folder there.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: replace a file of the same name. Off: add a number to the name.",
                ),
                *advanced(
                    io.Combo.Input(
                        "large_layers",
                        options=[LOW_RANK, FULL_DIFFERENCE],
                        default=LOW_RANK,
                        optional=True,
                        tooltip="How to save layers whose rank is so high that two factors take "
                        "more room than the weight itself. This happens after merging LoKr, OFT, "
                        "DoRA or full differences. The full difference is smaller. Some "
                        "programs other than ComfyUI do not read it.",
                    ),
                ),
                io.Image.Input(
                    "cover",
                    optional=True,
                    tooltip="A picture of what the LoRA draws, such as one of Compare. It is "
                    "stored next to the file, as name.preview.png, for programs that show LoRAs by "
                    "pictures.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="Where the file is."),
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
        """Refuse a name that no file can get; see `check_name`."""
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
        name = file_name.strip() or name_of_merge(lora.use.name for lora in merged.loras)
        wanted = path_to_save(host.output_folder(), name)
        is_whole = large_layers == FULL_DIFFERENCE
        path, read = save(merged, wanted, whole=is_whole, overwrite=overwrite)
        facts = about(path, merged, read)
        notes = [*why_numbered(wanted, path), *([] if facts["listed_as"] else [_UNLISTED])]
        if cover is not None:
            notes += save_cover(path, cover, overwrite=overwrite)
        listed = facts["listed_as"]
        payload = {
            "of": merged.of,
            "files": [facts],
            "notes": notes_of(Note("host", note) for note in notes),
        }
        return io.NodeOutput(
            str(path),
            [(listed, 1.0, 1.0)] if listed else [],
            ui=shown(payload, str(path), read, in_words(facts), *notes),
        )


def about(path: Path, merged: MergedLora, read: str) -> dict[str, Any]:
    """Return what the page shows of a saved file.

    Args:
        read: What reading it back found.
    """
    from ..iteris_core.diffusion.recipe import triggers_of
    from ..iteris_core.files.headers import lora_header

    ranks = [delta.rank for delta in merged.adapter.deltas.values()]
    return {
        "path": str(path),
        "name": path.name,
        "listed_as": host.lora_name_of(path),
        "mb": path.stat().st_size / 1e6,
        "ranks": [min(ranks, default=0), max(ranks, default=0)],
        "words": triggers_of(merged.loras),
        "hash": lora_header(path).digest,
        "read_back": read,
    }


def check_names(prompt: Mapping[str, Any], merge: str) -> None:
    """Refuse a merge whose file could not be saved, before its work. It is not enough that the
    saving node refuses the name: the host would leave out that node, and merge all the same.

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
    if name is None or not name.strip():  # it is not known yet
        return
    wanted = path_to_save(host.output_folder(), name)
    if inputs.get("overwrite") is True:
        check_listed(wanted)


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the size, the rank and the trigger words of a saved file as a line."""
    words = ", ".join(facts["words"]) or "none"
    return f"{facts['mb']:.1f} MB, {ranks_in_words(*facts['ranks'])}, trigger words: {words}"
