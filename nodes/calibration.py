"""The node for the settings of the calibration samples."""

from __future__ import annotations

from comfy_api.latest import io

from ..iteris_core.diffusion.calibration import PRESERVE_CAPTIONS
from ..iteris_core.diffusion.calibration import Calibration as Settings
from ..iteris_core.settings import bounds
from .inputs import checked
from .loras.prompts import lines
from .sockets import CALIBRATION

_DEFAULTS = Settings()


class Calibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISCalibration",
            display_name="Calibration (IterIS)",
            category="loaders/IterIS",
            description="How the samples are made on which the LoRAs are measured. If this node is "
            "not connected, these defaults are used.",
            inputs=[
                io.Int.Input(
                    "trajectories",
                    default=_DEFAULTS.trajectories,
                    **bounds(Settings, "trajectories"),
                    tooltip="Short sampling runs per LoRA, each with its own prompt and seed. More "
                    "measures more, and takes longer.",
                ),
                io.Int.Input(
                    "timesteps",
                    default=_DEFAULTS.timesteps,
                    **bounds(Settings, "timesteps"),
                    tooltip="Latents kept of each sampling run, spread over the whole run.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=_DEFAULTS.sampling_steps,
                    **bounds(Settings, "sampling_steps"),
                    tooltip="Steps of a whole sampling run. A run ends at the last latents that "
                    "are kept of it.",
                ),
                io.Int.Input(
                    "resolution",
                    default=_DEFAULTS.resolution,
                    **bounds(Settings, "resolution"),
                    step=64,
                    tooltip="Side of the pictures in pixels. Smaller is faster and needs less "
                    "memory. 0: what suits the model, which is 768 for SDXL and 512 for all "
                    "others.",
                ),
                io.Float.Input(
                    "cfg",
                    default=_DEFAULTS.cfg,
                    **bounds(Settings, "cfg"),
                    step=0.1,
                    tooltip="Guidance of the sampling runs. Use the value with which you will "
                    "sample. 1: none, for turbo and distilled models; then the negative prompt is "
                    "not measured. 0: what suits the model, such as 7 for SD1.5, 6 for SDXL and 1 "
                    "for Flux.",
                ),
                io.Float.Input(
                    "unconditional_share",
                    default=_DEFAULTS.unconditional_share,
                    **bounds(Settings, "unconditional_share"),
                    step=0.05,
                    tooltip="Share of the latents that are also measured with the negative prompt. "
                    "Sampling with guidance needs them. At a cfg of 1 there are none.",
                ),
                io.Float.Input(
                    "composition_share",
                    default=_DEFAULTS.composition_share,
                    **bounds(Settings, "composition_share"),
                    step=0.05,
                    tooltip="Share of the captions that put the subject of your prompt beside an "
                    "ordinary thing ('a sks dog and a red chair'). So the merged LoRA can still "
                    "put its subject beside other things.",
                ),
                io.Float.Input(
                    "preserve_weight",
                    default=_DEFAULTS.preserve_weight,
                    **bounds(Settings, "preserve_weight"),
                    step=0.05,
                    tooltip="How much it counts that ordinary prompts stay as they were. 0: off. "
                    "Then the merged LoRA may show up in pictures that did not ask for "
                    "it.",
                ),
                io.String.Input(
                    "preserve_prompts",
                    multiline=True,
                    default="",
                    tooltip="Ordinary prompts that should stay as they were, one per line. Empty: "
                    "a built-in list.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    tooltip="The negative prompt with which you will sample. It counts only with "
                    "guidance.",
                ),
                io.Int.Input(
                    "seed",
                    default=_DEFAULTS.seed,
                    **bounds(Settings, "seed"),
                    control_after_generate=False,
                    tooltip="Seed of the captions and the noise. Keep it, so that the next merge "
                    "can reuse the sampling runs.",
                ),
                io.Int.Input(
                    "held_out",
                    default=_DEFAULTS.held_out,
                    **bounds(Settings, "held_out"),
                    optional=True,
                    tooltip="Sampling runs per LoRA that check the result, on prompts and seeds "
                    "that the merge has not seen. 0: no check, which saves time.",
                ),
            ],
            outputs=[CALIBRATION.Output(display_name="calibration")],
        )

    @classmethod
    @checked
    def execute(cls, preserve_prompts: str, **settings: object) -> io.NodeOutput:
        return io.NodeOutput(
            Settings(preserve_captions=lines(preserve_prompts) or PRESERVE_CAPTIONS, **settings)
        )
