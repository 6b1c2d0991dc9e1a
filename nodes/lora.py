"""The node for one LoRA to merge, from a file or trained in the same workflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.diffusion.lora_rows import Row
from ..iteris_core.diffusion.lora_use import LoraUse, check_count
from ..iteris_core.diffusion.row_uses import use_as_written
from ..iteris_core.settings import bounds
from . import host
from .loras.names import fingerprints
from .loras.prompts import lines, shown_on_node, use_of_file
from .sockets import LORA_MODEL, LORAS, ChosenLora, advanced
from .validation import checked

if TYPE_CHECKING:
    from torch import Tensor

STRENGTH = {"default": 1.0, **bounds(LoraUse, "strength_model"), "step": 0.01}
_PRIORITY = {"default": 1.0, **bounds(LoraUse, "weight"), "step": 0.05}
PLACEHOLDER = (
    "empty: the file's own trigger words\na photo of <trigger word>\na drawing of {trigger}"
)
PROMPTS = (
    "What you use this LoRA for, one prompt per line, with its trigger words. The merged LoRA is "
    "made to do on these prompts what this LoRA does. The word trigger in curly braces is "
    "replaced by the trigger words that the file names. Empty: prompts are made from these "
    "words. Emphasis such as (word:1.3) counts as 1."
)
PRIORITY = (
    "How much this LoRA counts where LoRAs contradict each other (the weight of its task). Only "
    "the ratio to the others' matters. This is not a strength."
)
_BLOCKS = (
    "How much this LoRA counts in individual blocks, as after blocks= in a row of Merge LoRAs: "
    "names such as IN01:0.5, MID:0. Empty: fully everywhere."
)
_WITHOUT = (
    "Layers that are left out of this LoRA, one pattern of their paths per line, as after "
    "without= in a row, such as *attn2*."
)


class LoraToMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISLora",
            display_name="LoRA to merge (IterIS)",
            category="loaders/IterIS",
            description="One LoRA of a merge: a file, or a LORA_MODEL such as ComfyUI's own Train "
            "LoRA gives. Chain several through 'previous', and connect the last one to more_loras "
            "of Merge LoRAs.",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=host.lora_names(),
                    tooltip="The LoRA file. It does not count where a LORA_MODEL is connected.",
                ),
                io.Float.Input(
                    "strength_model",
                    **STRENGTH,
                    tooltip="How strongly you would use this LoRA alone, for the diffusion model. "
                    "The merged LoRA contains this strength.",
                ),
                io.Float.Input(
                    "strength_clip",
                    **STRENGTH,
                    tooltip="How strongly you would use this LoRA alone, for the text encoder. 0 "
                    "leaves its text part out. What changes a T5 or a language model is never "
                    "merged and always left out.",
                ),
                io.String.Input(
                    "prompts", multiline=True, default="", placeholder=PLACEHOLDER, tooltip=PROMPTS
                ),
                io.Float.Input("priority", **_PRIORITY, tooltip=PRIORITY),
                LORAS.Input(
                    "previous", optional=True, tooltip="The LoRAs before this one in the chain."
                ),
                LORA_MODEL.Input(
                    "lora_model",
                    optional=True,
                    tooltip="A LoRA that is in no file, from ComfyUI's own Train LoRA or any other "
                    "node with a LORA_MODEL. Write the captions that it was trained on into "
                    "prompts.",
                ),
                *advanced(
                    io.String.Input("blocks", default="", optional=True, tooltip=_BLOCKS),
                    io.String.Input(
                        "without", multiline=True, default="", optional=True, tooltip=_WITHOUT
                    ),
                ),
            ],
            outputs=[LORAS.Output(display_name="LoRAs")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **inputs: object) -> str:
        """Return a fingerprint of the file; constant if its name comes through a link."""
        return fingerprints([lora_name]) if isinstance(lora_name, str) and lora_name else "linked"

    @classmethod
    @checked
    def execute(
        cls,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
        prompts: str,
        priority: float,
        previous: tuple[ChosenLora, ...] = (),
        lora_model: Mapping[str, Tensor] | None = None,
        blocks: str = "",
        without: str = "",
    ) -> io.NodeOutput:
        name = lora_name if lora_model is None else f"trained LoRA {len(previous) + 1}"
        row = Row(
            name,
            strength_model,
            strength_clip,
            priority=priority,
            blocks=blocks.strip(),
            without=lines(without),
            prompts=lines(prompts),
        )
        if lora_model is None:
            return show([ChosenLora(use_of_file(lora_name, row))], previous)
        if not lora_model:
            raise IterisError("the LORA_MODEL is empty; connect the output of Train LoRA")
        return show([ChosenLora(use_as_written(row, name, None), dict(lora_model))], previous)


def show(
    loras: Sequence[ChosenLora], previous: tuple[ChosenLora, ...], note: str = ""
) -> io.NodeOutput:
    """Return the chain with these LoRAs at its end, and show their prompts on the node.

    Raises:
        ConfigError: More LoRAs than a merge can take.
    """
    chain = (*previous, *loras)
    check_count(len(chain))
    return io.NodeOutput(chain, ui=shown_on_node([lora.use for lora in loras], note))
