"""The plain loader: the rows of a merge, each put on the model as it is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.diffusion.lora_rows import placed, read_rows
from ..iteris_core.diffusion.lora_use import check_count
from . import host
from .loras.names import fingerprints
from .loras.prompts import triggers_of, use_without_prompts
from .loras.stack_formats import read_stack
from .sockets import LORA_STACK, LORAS, ChosenLora, found_by
from .stack import ROWS, ROWS_EXAMPLE, refused, remember, watched
from .validation import checked


class LoadLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISLoad",
            display_name="Load LoRAs (IterIS)",
            **found_by(
                "load lora", "load loras", "lora loader", "power lora loader", "stack loras"
            ),
            category="loaders/IterIS",
            description="Puts LoRAs on MODEL and CLIP, as ComfyUI's own loader does one after the "
            "other. Its rows are those of Merge LoRAs; nothing is measured, so it takes no time.",
            inputs=[
                io.Model.Input("model", tooltip="The model for which the LoRAs were made."),
                io.String.Input(
                    "loras", multiline=True, default="", placeholder=ROWS_EXAMPLE, tooltip=ROWS
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP of this model. Without it, the LoRAs' parts for the text "
                    "encoder are left out.",
                ),
                LORAS.Input(
                    "more_loras",
                    optional=True,
                    tooltip="More LoRAs, as Merge LoRAs takes them. They come before the rows.",
                ),
                LORA_STACK.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="From any LoRA stacker. These LoRAs come first.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                LORA_STACK.Output(
                    display_name="LORA_STACK",
                    tooltip="The files with their strengths, for nodes of other packs. It has no "
                    "block weights, and leaves out LoRAs that are in no file.",
                ),
                io.String.Output(
                    display_name="trigger words",
                    tooltip="The trigger words of all these LoRAs, with commas between them: the "
                    "phrases that a file states, or else the most frequent tag of its training.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, loras: object = None, **inputs: object) -> str:
        """Return a fingerprint of the files that count; see `watched`."""
        return fingerprints(watched(loras, "lora_stack" in inputs))

    @classmethod
    def validate_inputs(cls, loras: str | None = None) -> bool | str:
        """Refuse rows that cannot be put on the model before that is loaded."""
        return refused(loras, use_without_prompts, cls.hidden.unique_id)

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        loras: str,
        clip: Any = None,
        more_loras: tuple[ChosenLora, ...] = (),
        lora_stack: Any = None,
    ) -> io.NodeOutput:
        stacked = read_stack(lora_stack)
        rows = read_rows(loras)
        check_count(len(stacked) + len(more_loras) + len(rows))  # before files are read
        chosen: list[tuple[str, ChosenLora]] = [
            *((row.where, ChosenLora(use_without_prompts(row))) for row in stacked),
            *(("", lora) for lora in more_loras),
            *((row.where, ChosenLora(use_without_prompts(row))) for row in rows),
        ]
        used = [(place, lora) for place, lora in chosen if not lora.use.is_idle]
        remember(lora.use for _, lora in used)
        words: dict[str, None] = {}
        wrong = []
        for place, lora in used:
            host.heed_cancel()
            try:
                with placed(place):
                    model, clip = _with_lora(model, clip, lora)
                    words |= dict.fromkeys(triggers_of(lora.use))
            except IterisError as error:
                wrong.append(str(error))
        if wrong:
            raise IterisError(". ".join(wrong))
        stack = [
            (use.file, use.strength_model, use.strength_clip)
            for use in (lora.use for _, lora in used)
            if use.file is not None
        ]
        return io.NodeOutput(model, clip, stack, ", ".join(words))


def _with_lora(model: Any, clip: Any, lora: ChosenLora) -> tuple[Any, Any]:
    from ..iteris_core.files.tensors import read_tensors

    if lora.tensors is not None:
        return host.with_lora(model, clip, lora.use, lora.tensors, {})
    return host.with_lora(model, clip, lora.use, *read_tensors(host.lora_path(str(lora.use.file))))
