"""The merge."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from comfy_api.latest import io

from ..iteris_core import ConfigError, MergeConfig
from ..iteris_core.config import MOST_RANK, Balance, Engine, Method, Ridge, Target
from ..iteris_core.diffusion.calibration import Calibration, sample_count, task_count
from ..iteris_core.settings import PRECISIONS as DTYPES
from ..iteris_core.settings import bounds, check, setting
from . import host
from .inputs import checked
from .sockets import (
    CALIBRATION,
    LORA_MODEL,
    LORAS,
    MERGED,
    REPORT,
    SETTINGS,
    ChosenLora,
    MergedLora,
    advanced,
    found_by,
    growing,
)
from .workflow import texts_upstream

if TYPE_CHECKING:
    from ..iteris_core.devices import Room
    from ..iteris_core.diffusion.job import MergeSettings
    from ..iteris_core.diffusion.lora_use import LoadedLora
    from ..iteris_core.report.records import Note

PRECISIONS = ("float16", "bfloat16", "float32")
logger = logging.getLogger("iteris")
METHODS = list(get_args(Method))
_BYTES_OF_NAMES = 500  # of a layer's three tensors in the file's header
_MOST_MB = 10_000  # of a merged LoRA; more than the largest models have


@dataclass(frozen=True)
class Ranks:
    """How ranks are chosen, as the node's widgets say it; the default of each means: not by this.

    Raises:
        ConfigError: A value outside its bounds, or more than one way.
    """

    rank: int = setting(0, "Rank of the merged LoRA.", at_least=0, at_most=MOST_RANK)
    kept_energy: float = setting(1.0, "See `MergeConfig`.", at_least=0.01, at_most=1)
    size_mb: float = setting(0.0, "Size of the file in MB.", at_least=0, at_most=_MOST_MB)

    def __post_init__(self) -> None:
        check(self)
        given = {"rank": (self.rank, 0), "kept_energy": (self.kept_energy, 1)}
        given["size_mb"] = (self.size_mb, 0)
        used = [f"{name} is {value:g}" for name, (value, off) in given.items() if value != off]
        if len(used) > 1:
            raise ConfigError(
                f"{' and '.join(used)}, but each of them decides the ranks. Set one, and leave the "
                "others off: rank 0, kept_energy 1, size_mb 0"
            )


class Merge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISMerge",
            display_name="IterIS Merge",
            **found_by("merge lora", "merge loras", "combine loras", "lora merger", "mix loras"),
            category="loaders/IterIS",
            description="Merges LoRAs into one. It runs each of them on its prompts, measures "
            "every layer, and computes the one LoRA that comes closest to doing what "
            "each of them does. LoRAs that MODEL or CLIP already carry count as part "
            "of the base model.",
            inputs=[
                io.Model.Input("model", tooltip="The model for which the LoRAs were made."),
                io.Clip.Input("clip", tooltip="The CLIP of this model: its text encoders."),
                LORAS.Input(
                    "tasks", tooltip="The LoRAs to merge: connect the last node of the chain."
                ),
                CALIBRATION.Input(
                    "calibration",
                    optional=True,
                    tooltip="How the LoRAs are measured. Not connected: the defaults.",
                ),
                io.Float.Input(
                    "alpha",
                    default=MergeConfig.alpha,
                    **bounds(MergeConfig, "alpha"),
                    step=1e-6,
                    round=False,
                    tooltip="Ridge: more keeps the merged LoRA nearer to the average of the LoRAs. "
                    "1e-4 suits most merges. Use 1e-3 if preserve_weight is 0.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float16",
                    tooltip="Number format of the merged LoRA. Later layers make up for the "
                    "rounding of earlier ones.",
                ),
                io.Int.Input(
                    "rank",
                    default=Ranks.rank,
                    **bounds(Ranks, "rank"),
                    optional=True,
                    tooltip="Rank of the merged LoRA. 0: the sum of the LoRAs' ranks. A lower rank "
                    "makes a smaller file. What matters least on the measured inputs is "
                    "cut, and later layers make up for it.",
                ),
                io.Combo.Input(
                    "target",
                    options=list(get_args(Target)),
                    default=MergeConfig.target,
                    optional=True,
                    tooltip="full_output: reproduce the whole output of each layer. It also "
                    "corrects the drift of the layer's inputs. It is better from three "
                    "LoRAs on, and scene prompts need it. delta: reproduce only what each "
                    "LoRA adds.",
                ),
                io.Float.Input(
                    "kept_energy",
                    default=Ranks.kept_energy,
                    **bounds(Ranks, "kept_energy"),
                    step=0.001,
                    round=False,
                    optional=True,
                    tooltip="Instead of rank: the share of its effect that every layer keeps, with "
                    "the smallest rank that does it. 0.99 is a good start. 1: off.",
                ),
                io.Float.Input(
                    "size_mb",
                    default=Ranks.size_mb,
                    **bounds(Ranks, "size_mb"),
                    step=1.0,
                    round=False,
                    optional=True,
                    tooltip="Instead of rank: the size of the file in MB, at the chosen precision. "
                    "Layers that gain most get more rank. Takes twice the time. 0: off.",
                ),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default=METHODS[0],
                    optional=True,
                    tooltip="iteris, or another way to merge, for comparison. Other methods use "
                    "rank and precision. alpha and target are for iteris.",
                ),
                io.Boolean.Input(
                    "correct_strength",
                    default=False,
                    optional=True,
                    tooltip="A merge is often a little weaker than its LoRAs. On: the merged LoRA "
                    "is scaled by what the check on unseen prompts measures, up to 1.3 "
                    "times. Needs held_out of 1 or more.",
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
                    tooltip="How the ridge is scaled. consistent: one objective is minimised. "
                    "paper: as in the published code.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "balance",
                    options=list(get_args(Balance)),
                    default=MergeConfig.balance,
                    optional=True,
                    tooltip="How LoRAs of different size are balanced. delta: the paper's formula. "
                    "full: that of the published code. uniform: not at all.",
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
                io.Float.Input(
                    "unit_gain",
                    default=MergeConfig.unit_gain,
                    **bounds(MergeConfig, "unit_gain"),
                    step=0.1,
                    optional=True,
                    tooltip="What a merge loses of a LoRA at a layer is given back, up to this "
                    "factor, so that the merged LoRA is as strong as its LoRAs. 1: off.",
                    **advanced(),
                ),
                io.Boolean.Input(
                    "try_several",
                    default=False,
                    optional=True,
                    tooltip="On: several ways to merge are tried on the same sampling runs, plain "
                    "stacking among them, and the best on unseen prompts is kept. The report says "
                    "which. Needs held_out of 1 or more.",
                ),
                *growing("more", LORAS, "More LoRAs, connected one by one instead of in a chain."),
                SETTINGS.Input(
                    "settings",
                    optional=True,
                    tooltip="From Load recipe. They replace all settings of this node, so that a "
                    "file is made again as it was.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                LORA_MODEL.Output(
                    display_name="LORA_MODEL",
                    tooltip="The part for the diffusion model, for ComfyUI's own Load LoRA Model "
                    "and Save LoRA Weights.",
                ),
                MERGED.Output(
                    display_name="merged LoRA",
                    tooltip="Diffusion model and text encoders, for Save merged LoRA.",
                ),
                REPORT.Output(
                    display_name="report",
                    tooltip="How well each LoRA is reproduced, for Merge report.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            # a merge may end in its report; and only an output node's is sent again from the cache
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        tasks: tuple[ChosenLora, ...],
        calibration: Calibration | None = None,
        more: Mapping[str, tuple[ChosenLora, ...] | None] | None = None,
        settings: MergeSettings | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..iteris_core.diffusion.job import merge_and_check
        from ..iteris_core.diffusion.lora_use import LoadedLora, check_count, loras_in_use
        from ..iteris_core.engines.measure import room_for_sums
        from ..iteris_core.processes import alone
        from .loras.chosen import in_sockets, load, scenes_of

        chosen = [*tasks, *in_sockets(more or {})]
        check_count(len(chosen))
        ranks_in(widgets)  # before files are read
        scenes = scenes_of(chosen)
        calibration = calibration or Calibration()
        calibration = scenes.applied_to(calibration) if scenes else calibration
        base = host.ComfyModel(model, clip)
        calibration = calibration.for_family(base.family)
        loras, joined = load(base, chosen)
        settings = settings or from_widgets(loras, **widgets)
        styles = sum(lora.use.kind == "style" for lora in loras)
        room = base.make_room(
            calibration.resolution,
            sample_count(calibration, len(loras), styles),
            lambda modules: room_for_sums(
                modules,
                [lora.adapter for lora in loras],
                task_count(calibration, len(loras)),
                settings.config,
            ),
        )
        settings = replace(
            settings,
            config=replace(
                settings.config,
                samples_per_chunk=room.samples_per_chunk,
                waiting_bytes=room.waiting_bytes,
            ),
            made_on=cls.made_on(),
            notes=(*joined, *carried(host.patches_of(model, clip)), *too_small(room)),
        )
        node_id = cls.hidden.unique_id
        progress = host.stage_progress(node_id)
        watch = host.layer_teller(node_id)
        with alone():  # a process group in this server is another node's
            result = merge_and_check(base, loras, calibration, settings, progress, watch)
        report = result.report
        for alert in report.alerts:
            logger.warning(alert)
        # the LoRAs' weights are not needed any more, and outputs stay in the host's cache
        sources = [LoadedLora(lora.use, lora.adapter.scaled(0)) for lora in loras_in_use(loras)]
        return io.NodeOutput(
            *base.patched(result.adapter),
            base.lora_model_tensors(result.adapter),
            MergedLora(result.adapter, base.keys, json.dumps(report.settings), tuple(sources)),
            report,
            ui={"iteris_report": [report.to_dict()], "text": [str(report)]},
        )

    @classmethod
    def made_on(cls) -> dict[str, str]:
        """Return what else a recipe should know: ComfyUI's version, and the base model's files as
        the workflow names them.
        """
        named = set(
            texts_upstream(cls.hidden.prompt or {}, cls.hidden.unique_id, ("model", "clip"))
        )
        base = ", ".join(host.model_files(named))
        return {"comfyui_version": host.version(), **({"base": base} if base else {})}


def from_widgets(
    loras: Sequence[LoadedLora],
    *,
    precision: str,
    rank: int = 0,
    kept_energy: float = 1.0,
    size_mb: float = 0.0,
    correct_strength: bool = False,
    try_several: bool = False,
    **same: Any,
) -> MergeSettings:
    """Return the settings that the widgets mean for these LoRAs.

    Args:
        loras: The LoRAs of the merge, whose layers a size in MB is shared out over.
        precision: The precision of the merged LoRA.
        rank: The rank of the merged LoRA; 0: the sum of the LoRAs' ranks.
        kept_energy: See `MergeConfig`; 1: off.
        size_mb: The size of the file; 0: off.
        correct_strength: See `MergeSettings`.
        try_several: See `MergeSettings`.
        same: Widgets that are called as the field of `MergeConfig` that they set.

    Raises:
        ConfigError: More than one way to choose ranks.
    """
    from ..iteris_core.diffusion.job import MergeSettings

    Ranks(rank, kept_energy, size_mb)
    dtype = DTYPES[precision]
    config = MergeConfig(
        rank=rank or "sum",
        kept_energy=kept_energy if kept_energy < 1 else None,
        size=weights_in(size_mb, dtype, loras) if size_mb else None,
        output_dtype=dtype,
        **same,
    )
    return MergeSettings(config, correct_strength, try_several)


def ranks_in(widgets: Mapping[str, Any]) -> Ranks:
    """Return how ranks are chosen by the widgets of the node; what is not among them is off.

    Raises:
        ConfigError: See `Ranks`.
    """
    names = {item.name for item in fields(Ranks)}
    return Ranks(**{name: value for name, value in widgets.items() if name in names})


def weights_in(size_mb: float, dtype: torch.dtype, loras: Sequence[LoadedLora]) -> int:
    """Return how many weights a file of this size has room for, in all factors together.

    Raises:
        ConfigError: It has no room for rank 1 at every layer.
    """
    from ..iteris_core.adapters import target_layers

    adapters = [lora.adapter for lora in loras]
    shapes = {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}
    names = _BYTES_OF_NAMES * len(target_layers(adapters))
    weights = int((size_mb * 1e6 - names) / dtype.itemsize)
    least = sum(map(sum, shapes.values()))
    if weights < least:
        raise ConfigError(
            f"size_mb is {size_mb:g}; the smallest merge of these LoRAs, rank 1 in all "
            f"{len(shapes)} layers, takes {(least * dtype.itemsize + names) / 1e6:.1f} MB. Allow "
            "more"
        )
    return weights


def carried(patches: Mapping[str, Sequence[Any]]) -> list[Note]:
    """Return a note about LoRAs that are on the model and not in the merge."""
    from ..iteris_core.report.records import Note
    from .loras.harvest import count_loras

    count = count_loras(patches)
    text = (
        f"MODEL and CLIP carry {count} LoRA{'s' * (count > 1)} already, which count as part of the "
        "base model: they are not in the merged LoRA. 'LoRAs on this model' takes them off and "
        "merges them"
    )
    return [Note("host", text)] if count else []


def too_small(room: Room) -> list[Note]:
    """Return a note about a device that is too small for the whole model and the least of work,
    which the log tells at once.
    """
    from ..iteris_core.report.records import Note

    if not room.missing:
        return []
    text = (
        "the whole model, a call of one sample and the sums of the largest layer take about "
        f"{room.missing / 1e9:.1f} GB more than is free, by ComfyUI's formula. Then a part "
        "of the model waits in the computer's memory, which is slow, or the merge runs out of "
        "memory. Lower resolution, or merge fewer LoRAs at once"
    )
    logger.warning(text)
    return [Note("memory", text)]
