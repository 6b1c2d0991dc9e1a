"""The node 'Merge settings': all that the merge node does not ask for."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..iteris_core import MergeConfig
from ..iteris_core.config import UNIT_GAIN, Balance, Engine, Method, Ridge
from ..iteris_core.diffusion.calibration import Calibration, Changes
from ..iteris_core.settings import PRECISIONS, bounds
from .inputs import checked
from .loras.prompts import lines
from .sockets import SETTINGS, advanced
from .words import OF_CALIBRATION, OF_CONFIG, TARGETS

# Values of widgets that set nothing. -1 where 0 means that there is none.
UNSET = {"sample_runs": 0, "check_runs": -1}
WHOLE = 1.0  # quality kept: nothing is cut by it
FILE_PRECISIONS = ("float16", "bfloat16", "float32")


class Settings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISSettings",
            display_name="Merge settings (IterIS)",
            category="loaders/IterIS",
            description="All settings of a merge that Merge LoRAs does not ask for. They replace "
            "the preset's values. Few merges need this node.",
            inputs=[
                io.Int.Input(
                    "sample_runs",
                    default=UNSET["sample_runs"],
                    min=UNSET["sample_runs"],
                    max=int(bounds(Calibration, "trajectories")["max"]),
                    optional=True,
                    tooltip="Short sampling runs per LoRA, each with its own prompt and seed "
                    "(trajectories). More measures more, and takes longer. 0: as the preset says, "
                    f"which is {Calibration.trajectories} for Balanced.",
                ),
                io.Int.Input(
                    "check_runs",
                    default=UNSET["check_runs"],
                    min=UNSET["check_runs"],
                    max=int(bounds(Calibration, "held_out")["max"]),
                    optional=True,
                    tooltip="Sampling runs per LoRA that check the result, on prompts and seeds "
                    "that the merge has not seen (held out). 0: no check and no verdict, which "
                    "saves time. -1: as the preset says.",
                ),
                io.Float.Input(
                    "protect_base",
                    default=Calibration.preserve_weight,
                    **bounds(Calibration, "preserve_weight"),
                    step=0.05,
                    optional=True,
                    tooltip="Protect the base model: how much it counts that ordinary prompts stay "
                    "as they were (weight of the preserve task). 0: off. Then the merged LoRA may "
                    "show up in pictures that did not ask for it.",
                ),
                io.String.Input(
                    "protected_prompts",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Ordinary prompts that should stay as they were, one per line. Empty: "
                    "a built-in list.",
                ),
                io.Int.Input(
                    "resolution",
                    default=Calibration.resolution,
                    **bounds(Calibration, "resolution"),
                    step=64,
                    optional=True,
                    tooltip="Side of the measured pictures in pixels. Smaller is faster and needs "
                    "less memory. 0: what suits the model, which is 768 for SDXL and 512 for all "
                    "others.",
                ),
                io.Float.Input(
                    "cfg",
                    default=Calibration.cfg,
                    **bounds(Calibration, "cfg"),
                    step=0.1,
                    optional=True,
                    tooltip="Guidance of the sampling runs. Use the value with which you will "
                    "sample. 1: none, for turbo and distilled models; then the negative prompt is "
                    "not measured. 0: what suits the model, such as 7 for SD1.5, 6 for SDXL and 1 "
                    "for Flux.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    optional=True,
                    tooltip="The negative prompt with which you will sample. It counts only with "
                    "guidance.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=MergeConfig.alpha,
                    **bounds(MergeConfig, "alpha"),
                    step=1e-6,
                    round=False,
                    optional=True,
                    tooltip="More keeps the merged LoRA nearer to the average of the LoRAs (the "
                    "ridge, alpha). 1e-4 suits most merges. Use 1e-3 if the base model is not "
                    "protected.",
                ),
                io.Float.Input(
                    "quality_kept",
                    default=WHOLE,
                    min=0.01,
                    max=WHOLE,
                    step=0.001,
                    round=False,
                    optional=True,
                    tooltip="The share of its effect that every layer keeps, with the smallest "
                    "rank that does it (kept energy). It counts with the sizes 'as is' and "
                    "'smaller', which is 0.99. 1: no such limit.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(FILE_PRECISIONS),
                    default=FILE_PRECISIONS[0],
                    optional=True,
                    tooltip="Number format of the merged LoRA. Later layers make up for the "
                    "rounding of earlier ones.",
                ),
                io.Boolean.Input(
                    "correct_strength",
                    default=False,
                    optional=True,
                    tooltip="A merge is often a little weaker than its LoRAs. On: the merged LoRA "
                    "is scaled by what the check on unseen prompts measures, up to 1.3 times. "
                    "Needs check runs.",
                ),
                io.Int.Input(
                    "seed",
                    default=Calibration.seed,
                    **bounds(Calibration, "seed"),
                    control_after_generate=False,
                    optional=True,
                    tooltip="Seed of the captions and the noise. Keep it, so that the next merge "
                    "can reuse the sampling runs.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=Calibration.sampling_steps,
                    **bounds(Calibration, "sampling_steps"),
                    optional=True,
                    tooltip="Steps of a whole sampling run. A run ends at the last latents that "
                    "are kept of it.",
                    **advanced(),
                ),
                io.Int.Input(
                    "latents_per_run",
                    default=Calibration.timesteps,
                    **bounds(Calibration, "timesteps"),
                    optional=True,
                    tooltip="Latents kept of each sampling run, spread over the whole run "
                    "(timesteps).",
                    **advanced(),
                ),
                io.Float.Input(
                    "negative_share",
                    default=Calibration.unconditional_share,
                    **bounds(Calibration, "unconditional_share"),
                    step=0.05,
                    optional=True,
                    tooltip="Share of the latents that are also measured with the negative prompt "
                    "(unconditional share). Sampling with guidance needs them. At a cfg of 1 there "
                    "are none.",
                    **advanced(),
                ),
                io.Float.Input(
                    "company_share",
                    default=Calibration.composition_share,
                    **bounds(Calibration, "composition_share"),
                    step=0.05,
                    optional=True,
                    tooltip="Share of the captions that put the subject of your prompt next to an "
                    "ordinary thing, such as 'a sks dog and a red chair' (composition share). So "
                    "the merged LoRA can still draw its subject next to other things.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "reproduce",
                    options=list(TARGETS),
                    default=next(iter(TARGETS)),
                    optional=True,
                    tooltip="What is reproduced at each layer (the target). Whole output: it also "
                    "corrects the drift of the layer's inputs. It is better from three LoRAs on, "
                    "and 'together' needs it. What the LoRA adds: as in the paper.",
                    **advanced(),
                ),
                io.Float.Input(
                    "layer_gain",
                    default=UNIT_GAIN,
                    **bounds(MergeConfig, "unit_gain"),
                    step=0.1,
                    optional=True,
                    tooltip="What a merge loses of a LoRA at a layer is given back, up to this "
                    "factor, so that the merged LoRA is as strong as its LoRAs (unit gain). 1: "
                    "off.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "method",
                    options=list(get_args(Method)),
                    default=MergeConfig.method,
                    optional=True,
                    tooltip="iteris, or another way to merge, for comparison. Other methods use "
                    "size and precision. Smoothing and what follows are for iteris.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "engine",
                    options=list(get_args(Engine)),
                    default=MergeConfig.engine,
                    optional=True,
                    tooltip="sweep: solve every layer in one pass. iterate: the paper's loop, "
                    "which takes many passes and converges to the same result.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "ridge",
                    options=list(get_args(Ridge)),
                    default=MergeConfig.ridge,
                    optional=True,
                    tooltip="How the smoothing is scaled. consistent: one objective is minimised. "
                    "paper: as in the published code.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "balance",
                    options=list(get_args(Balance)),
                    default=MergeConfig.balance,
                    optional=True,
                    tooltip="How LoRAs of different size are balanced. delta: the paper's formula. "
                    "full: the published code's. uniform: not at all.",
                    **advanced(),
                ),
                io.Float.Input(
                    "input_mix",
                    default=MergeConfig.input_mix,
                    min=0.0,
                    max=0.99,  # 1 itself is outside
                    step=0.01,
                    optional=True,
                    tooltip="Share of the single LoRA's inputs that is mixed into the inputs of "
                    "the merged model. 0: off.",
                    **advanced(),
                ),
            ],
            outputs=[SETTINGS.Output(display_name="settings")],
        )

    @classmethod
    @checked
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(changes_of(**widgets))


def changes_of(
    *,
    protected_prompts: str = "",
    quality_kept: float = WHOLE,
    precision: str = FILE_PRECISIONS[0],
    reproduce: str = next(iter(TARGETS)),
    correct_strength: bool = False,
    **plain: Any,
) -> Changes:
    """Return what the widgets change. Those that say "as the preset says" change nothing, nor do
    those that are left out.

    Raises:
        ConfigError: Settings of the calibration that do not go together.
    """
    said = {name: value for name, value in plain.items() if UNSET.get(name) != value}
    calibration = {OF_CALIBRATION[name]: said[name] for name in said if name in OF_CALIBRATION}
    config = {OF_CONFIG[name]: said[name] for name in said if name in OF_CONFIG}
    config |= {"target": TARGETS[reproduce], "output_dtype": PRECISIONS[precision]}
    if lines(protected_prompts):
        calibration["preserve_captions"] = lines(protected_prompts)
    if quality_kept < WHOLE:
        config["kept_energy"] = quality_kept
    Calibration(**calibration)  # what does not go together is an error of this node
    return Changes(calibration, config, {"correct_strength": correct_strength})
