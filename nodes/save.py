"""The node that saves a merged LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..iteris_core import IterisError
from . import host
from .compare_rows import words_for
from .expert_files import LOW_INPUT
from .loras.names import path_to_save
from .merge_files import (
    How,
    SaveRequest,
    beside_it,
    check_listed,
    covered,
    save,
    save_beside,
    save_uncovered,
    saved_before,
    uncovered,
    why_numbered,
    written,
)
from .pictures import jpeg_uri
from .sockets import ENDS_OF_PAIR, LORA_STACK, MERGED, MergedLora, advanced
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
                    lazy=host.keeps_results(),
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
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Save the file before its cover is made, which may take long, fail or be stopped."""
        if inputs.get("cover", ()) is not None:  # it is there, or none is linked
            return []
        cls.save_first(**inputs)
        return ["cover"]

    @classmethod
    @checked
    def save_first(
        cls, merged: MergedLora, file_name: str, overwrite: bool, large_layers: str = LOW_RANK
    ) -> None:
        request = cls.request(file_name, overwrite, large_layers)
        paths = save_uncovered(merged, request, path_to_save(host.output_folder(), file_name))
        files = zip(paths, merged.by_file.values(), strict=True)
        host.tell_saved(cls.hidden.unique_id, [cls.about(*file) for file in files])

    @classmethod
    def request(cls, file_name: str, overwrite: bool, large_layers: str) -> SaveRequest:
        return SaveRequest(
            cls.hidden.unique_id, file_name, overwrite, large_layers == FULL_DIFFERENCE
        )

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
        request = cls.request(file_name, overwrite, large_layers)
        how = How("" if cover is None else jpeg_uri(cover[0]), request.whole)
        if waiting := uncovered(merged, request):
            found, why = waiting.found, waiting.why
            if cover is not None:
                found = written(list(found), parts, how, overwrite=True)
        else:
            wanted = path_to_save(host.output_folder(), file_name)
            before = None if overwrite else saved_before(wanted, parts, how)
            found = before or save(parts, wanted, how, overwrite=overwrite)
            why = [] if before else why_numbered(wanted, found, list(parts))  # it was told then
        covered(merged, request)
        shown: list[str] = []
        told: list[dict[str, Any]] = []
        for (path, read), part in zip(found.items(), parts.values(), strict=True):
            facts = cls.about(path, part)
            beside = beside_it(path, part, facts["words"], cover)
            shown += [str(path), read, in_words(facts), *(why if not told else [])]
            lines = (save_beside(path, *each, overwrite=overwrite) for each in beside.items())
            shown += filter(None, lines)
            shown += [] if facts["listed_as"] else [_UNLISTED]
            told.append(facts)
        name = told[0]["listed_as"]
        stack = [(name, 1.0, 1.0)] if name else []
        path = next(iter(found))
        return io.NodeOutput(
            str(path), stack, ui={"text": shown, "iteris_saved": told, "iteris_made": [merged.made]}
        )

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
            "prompt": words_for([lora.use for lora in merged.loras], together=merged.is_together),
            "hash": lora_header(path).digest,
            "report": merged.report and merged.report.to_dict()["digest"],
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
    if name is None:
        return
    wanted = path_to_save(host.output_folder(), name)
    if inputs.get("overwrite") is True:
        before = upstream(prompt, save, ("merged",))
        is_pair = any(LOW_INPUT in inputs_of(prompt, node) for node in before)
        check_listed(wanted, ENDS_OF_PAIR if is_pair else ("",))


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the size, the rank and the trigger words of a saved file as a line."""
    least, most = facts["ranks"]
    rank = f"rank {least}" if least == most else f"rank {least} to {most}"
    words = ", ".join(facts["words"]) or "none"
    return f"{facts['mb']:.1f} MB, {rank}, trigger words: {words}"
