"""On which samples the LoRAs are measured."""

from __future__ import annotations

from comfy_api.latest import io

from ..iteris_core.diffusion.calibration import PRESERVE_CAPTIONS
from ..iteris_core.diffusion.calibration import Calibration as Settings
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
            description="How the samples are made on which the LoRAs are measured. Not connected: "
                        "these defaults.",
            inputs=[
                io.Int.Input(
                    "trajectories", default=_DEFAULTS.trajectories, min=1, max=256,
                    tooltip="Short sampling runs per LoRA, each with a prompt and a seed of its "
                            "own. More: better, slower.",
                ),
                io.Int.Input(
                    "timesteps", default=_DEFAULTS.timesteps, min=1, max=50,
                    tooltip="Latents kept of each run, spread over the whole of it.",
                ),
                io.Int.Input(
                    "sampling_steps", default=_DEFAULTS.sampling_steps, min=1, max=100, tooltip="Steps "
                                                                                                "of "
                                                                                                "each "
                                                                                                "run.",
                ),
                io.Int.Input(
                    "resolution", default=_DEFAULTS.resolution, min=64, max=2048, step=64,
                    tooltip="Side of the pictures in pixels. Smaller is faster and needs less "
                            "memory.",
                ),
                io.Float.Input(
                    "cfg", default=_DEFAULTS.cfg, min=0.0, max=30.0, step=0.1,
                    tooltip="Guidance of the runs: what you will sample with.",
                ),
                io.Float.Input(
                    "unconditional_share", default=_DEFAULTS.unconditional_share, min=0.0, max=1.0, step=0.05,
                    tooltip="Part of the samples that are also measured with the negative prompt. "
                            "Guided sampling needs them.",
                ),
                io.Float.Input(
                    "composition_share", default=_DEFAULTS.composition_share, min=0.0, max=1.0, step=0.05,
                    tooltip="Part of your prompts that get company ('... and a red chair'), "
                    "so that the merged LoRA can still put its subject beside other things.",
                ),
                io.Float.Input(
                    "preserve_weight", default=_DEFAULTS.preserve_weight, min=0.0, max=10.0, step=0.05,
                    tooltip="How much the base model's behaviour on ordinary prompts is kept. 0 "
                            "leaves it out: then the merged LoRA may show up in pictures that did "
                            "not ask for it.",
                ),
                io.String.Input(
                    "preserve_prompts", multiline=True, default="",
                    tooltip="Ordinary prompts, one per line, on which the base model is kept. "
                            "Empty: a list of our own.",
                ),
                io.String.Input("negative_prompt", default="", tooltip="The negative prompt that "
                                                                       "you will sample with."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                    tooltip="Of the captions and the noise. Kept, so that a second run is taken "
                            "from the cache.",
                ),
                io.Int.Input(
                    "held_out", default=_DEFAULTS.held_out, min=0, max=64, optional=True,
                    tooltip="Sampling runs per LoRA, with prompts and seeds that the merge has not "
                            "seen, to check it. 0: no check, which saves some time.",
                ),
            ],
            outputs=[CALIBRATION.Output(display_name="calibration")],
        )  # fmt: skip

    @classmethod
    def execute(cls, preserve_prompts: str, **settings: object) -> io.NodeOutput:
        return io.NodeOutput(
            Settings(preserve_captions=lines(preserve_prompts) or PRESERVE_CAPTIONS, **settings)
        )
