"""One LoRA to merge: from a file, or trained in the same workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..iteris_core import CalibrationError, IterisError
from . import host
from .loras.names import fingerprint
from .loras.prompts import entry_of_file, lines, told
from .sockets import LORA_MODEL, TASKS, LoraEntry

if TYPE_CHECKING:
    from torch import Tensor

STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
PLACEHOLDER = (
    "empty: the file's own trigger words\na photo of <trigger word>\na drawing of {trigger}"
)
PROMPTS = (
    "What this LoRA is for, one prompt per line, with its trigger words; trigger in curly braces "
    "stands for those that the file names. Empty: our own prompts with them. The merged LoRA is "
    "made to do on these what this LoRA does. Emphasis such as (word:1.3) counts as 1."
)
WEIGHT = "How much this LoRA counts where the LoRAs are in conflict. Only the ratios matter."


class LoraToMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISLora",
            display_name="LoRA to merge (IterIS)",
            category="loaders/IterIS",
            description="One LoRA of a merge. Chain one node per LoRA through 'previous'; the last "
                        "goes to IterIS Merge.",
            inputs=[
                io.Combo.Input("lora_name", options=host.lora_names(), tooltip="The LoRA file."),
                io.Float.Input(
                    "strength_model", **STRENGTH,
                    tooltip="How strongly you would use this LoRA's UNet part on its own. It is "
                            "baked into the merged LoRA.",
                ),
                io.Float.Input("strength_clip", **STRENGTH, tooltip="The same for its text encoder "
                                                                    "part."),
                io.String.Input("prompts", multiline=True, default="", placeholder=PLACEHOLDER, tooltip=PROMPTS),
                io.Float.Input("weight", default=1.0, min=0.0, max=100.0, step=0.05, tooltip=WEIGHT),
                TASKS.Input("previous", optional=True, tooltip="The LoRAs before this one."),
            ],
            outputs=[TASKS.Output(display_name="LoRAs")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **inputs: object) -> str:
        """Return what changes with the file; where the name comes through a link, only what it is
        decides.
        """
        return fingerprint(host.find_lora(lora_name)) if lora_name else "linked"

    @classmethod
    def execute(
        cls,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
        prompts: str,
        weight: float,
        previous: tuple[LoraEntry, ...] = (),
    ) -> io.NodeOutput:
        entry = entry_of_file(lora_name, strength_model, strength_clip, lines(prompts), weight)
        return show(cls.hidden.unique_id, [entry], previous)


class TrainedLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISTrainedLora",
            display_name="Trained LoRA to merge (IterIS)",
            category="loaders/IterIS",
            description="A LORA_MODEL as one LoRA of a merge: from core's Train LoRA, without "
                        "saving it first, or from IterIS Merge itself.",
            inputs=[
                LORA_MODEL.Input("lora", tooltip="From core's Train LoRA, or any node that makes a "
                                                 "LORA_MODEL."),
                io.String.Input("name", default="trained", tooltip="What to call it in reports and "
                                                                   "errors."),
                io.Float.Input("strength_model", **STRENGTH, tooltip="How strongly you would use "
                                                                     "it on its own."),
                io.String.Input(
                    "prompts", multiline=True, default="", placeholder="the captions that it was "
                                                                       "trained on",
                    tooltip="What it is for, one prompt per line: the captions that it was trained "
                            "on, or some like them.",
                ),
                io.Float.Input("weight", default=1.0, min=0.0, max=100.0, step=0.05, tooltip=WEIGHT),
                TASKS.Input("previous", optional=True, tooltip="The LoRAs before this one."),
            ],
            outputs=[TASKS.Output(display_name="LoRAs")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        name: str,
        strength_model: float,
        prompts: str,
        weight: float,
        previous: tuple[LoraEntry, ...] = (),
    ) -> io.NodeOutput:
        name = name.strip() or "trained"
        if not lora:
            raise IterisError(
                f"{name}: the LORA_MODEL is empty; connect the 'lora' output of Train LoRA"
            )
        if strength_model and not lines(prompts):
            raise CalibrationError(
                f"{name} has no prompts, and a LoRA that is in no file has no metadata to take them "
                "from. Write the captions that it was trained on, one per line"
            )
        entry = LoraEntry(
            name, strength_model, strength_model, lines(prompts), weight, tensors=dict(lora)
        )
        return show(cls.hidden.unique_id, [entry], previous)


def show(
    node_id: str, entries: list[LoraEntry], previous: tuple[LoraEntry, ...], note: str = ""
) -> io.NodeOutput:
    """Return the chain with these LoRAs at its end, and show on the node what is merged with which
    prompts.
    """
    ui = told(entries, note)
    host.show_text(node_id, ui["text"][0])
    return io.NodeOutput((*previous, *entries), ui=ui)
