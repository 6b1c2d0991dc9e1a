"""The merge."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..iteris_core import ConfigError, MergeConfig
from ..iteris_core.adapters import target_layers
from ..iteris_core.calibration import Calibration, sample_count
from ..iteris_core.config import Method
from ..iteris_core.families.diffusion_held_out import with_held_out
from ..iteris_core.families.diffusion_samples import PromptedAdapter
from ..iteris_core.families.stable_diffusion import merge_stable_diffusion
from ..iteris_core.formats.files import read_tensors
from ..iteris_core.formats.recipe import UsedLora, sha256, with_recipe
from . import host
from .files import adapter_name, sha256_of_tensors
from .sockets import CALIBRATION, LORA_MODEL, MERGED, REPORT, TASKS, LoraEntry, MergedLora, growing

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TARGETS = ("delta", "full_output")
METHODS = list(get_args(Method))
_BYTES_OF_NAMES = 500  # of a layer's three tensors in the file's header


class Merge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISMerge",
            display_name="IterIS Merge",
            category="loaders/IterIS",
            description="Merges LoRAs into one: runs each of them on its prompts, measures what enters every layer, and "
            "solves for the one LoRA that does the same. LoRAs that MODEL or CLIP already carry count "
            "as part of the base model.",
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 model for which the LoRAs were made."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                TASKS.Input("tasks", tooltip="The last 'LoRA to merge' of the chain."),
                CALIBRATION.Input("calibration", optional=True, tooltip="How samples are made. Not connected: the defaults."),
                io.Float.Input(
                    "alpha", default=MergeConfig.alpha, min=0.0, max=1.0, step=1e-6, round=False,
                    tooltip="Ridge: higher pulls the merged LoRA towards the average of the LoRAs. 1e-4 suits most; "
                    "try 1e-3 without a preserve task.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="float16",
                    tooltip="Of the merged LoRA. Later layers make up for the rounding of earlier ones.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=1280, optional=True,
                    tooltip="Of the merged LoRA. 0: the sum of the LoRAs' ranks, nothing is cut. Lower makes a smaller "
                    "file; what is cut is what matters least on the measured inputs, and later layers make up for it.",
                ),
                io.Combo.Input(
                    "target", options=list(TARGETS), default="delta", optional=True,
                    tooltip="delta: reproduce what each LoRA adds. full_output: the whole output of each layer, which "
                    "also makes up for the drift of its inputs.",
                ),
                io.Float.Input(
                    "kept_energy", default=1.0, min=0.01, max=1.0, step=0.001, round=False, optional=True,
                    tooltip="Instead of rank: give every layer the smallest rank that keeps this share of its effect on "
                    "the measured inputs; 0.99 is a good start. 1: off.",
                ),
                io.Float.Input(
                    "size_mb", default=0.0, min=0.0, max=10000.0, step=1.0, round=False, optional=True,
                    tooltip="Instead of rank: the size of the file in MB, at the chosen precision. Ranks go to the layers "
                    "that gain most by them. Takes twice the time. 0: off.",
                ),
                io.Combo.Input(
                    "method", options=METHODS, default=METHODS[0], optional=True,
                    tooltip="iteris, or another way to merge, to compare with; those take rank and precision, and leave alpha "
                    "and target alone.",
                ),
                io.Boolean.Input(
                    "correct_strength", default=False, optional=True,
                    tooltip="A merge is often a little weaker than its LoRAs. On: it is scaled by what the check on unseen "
                    "prompts measures, by 1.3 at most; that needs held_out samples.",
                ),
                *growing("more", TASKS, "More LoRAs, each in a socket of its own instead of a chain."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                LORA_MODEL.Output(
                    display_name="LORA_MODEL", tooltip="The UNet part, for core's own Load LoRA Model and Save LoRA Weights.",
                ),
                MERGED.Output(display_name="merged LoRA", tooltip="UNet and text encoder, for Save merged LoRA."),
                REPORT.Output(
                    display_name="report", tooltip="How well each LoRA is reproduced, for Merge report.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # a merge may end in its report; and only an output node's is sent again from the cache
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        tasks: tuple[LoraEntry, ...],
        alpha: float,
        precision: str,
        calibration: Calibration | None = None,
        rank: int = 0,
        target: str = "delta",
        kept_energy: float = 1.0,
        size_mb: float = 0.0,
        method: str = METHODS[0],
        correct_strength: bool = False,
        more: Mapping[str, tuple[LoraEntry, ...] | None] | None = None,
    ) -> io.NodeOutput:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; it can be {', '.join(PRECISIONS)}")
        check_ranks(rank, kept_energy, size_mb)
        calibration = calibration or Calibration()
        if correct_strength and not calibration.held_out:
            raise ConfigError("correct_strength needs samples to measure it on; set held_out of the calibration to 1 or more")
        tasks = (*tasks, *in_sockets(more or {}))
        base = host.ComfyStableDiffusion(model, clip)
        loras = [read(base, entry) for entry in tasks]
        samples_per_chunk, park_on_host = base.make_room(calibration.resolution, sample_count(calibration, len(loras)))
        config = MergeConfig(
            method=method,
            alpha=alpha,
            target=target,
            rank=rank or "sum",
            kept_energy=kept_energy if kept_energy < 1 else None,
            size=weights_in(size_mb, PRECISIONS[precision], loras) if size_mb else None,
            output_dtype=PRECISIONS[precision],
            samples_per_chunk=samples_per_chunk,
            park_on_host=park_on_host,
        )
        progress, watch = host.stage_progress(cls.hidden.unique_id), host.layer_teller(cls.hidden.unique_id)
        result = merge_stable_diffusion(base, loras, calibration, config, progress, watch)
        checked = {"correct_strength": correct_strength, "samples_per_chunk": samples_per_chunk}
        result = with_held_out(base, loras, result, calibration, progress=progress, **checked)
        report = with_recipe(result.report, [used(entry) for entry in tasks])
        sources = tuple((lora.adapter.name, lora.adapter.metadata) for lora in loras if not lora.adapter.is_idle)
        merged = MergedLora(result.adapter, base.keys, json.dumps(report.settings), sources)
        return io.NodeOutput(
            *base.patched(result.adapter),
            base.lora_model_tensors(result.adapter),
            merged,
            report,
            ui={"iteris_report": [report.to_dict()], "text": [str(report)]},
        )


def in_sockets(more: Mapping[str, tuple[LoraEntry, ...] | None]) -> Iterator[LoraEntry]:
    """Yield the LoRAs of growing sockets, named "loras0", "loras1" and so on, in their order; sockets may be free."""
    for name in sorted(more, key=lambda name: int(name.removeprefix("loras"))):
        yield from more[name] or ()


def read(base: host.ComfyStableDiffusion, entry: LoraEntry) -> PromptedAdapter:
    """Return a LoRA at the strengths that the user asked for."""
    if entry.tensors is None:
        tensors, metadata = read_tensors(host.lora_path(entry.lora_name))
    else:
        tensors, metadata = entry.tensors, {}
    adapter = base.adapter(adapter_name(entry.lora_name), tensors, metadata, entry.strength_model, entry.strength_clip)
    return PromptedAdapter(adapter, entry.prompts, entry.weight, entry.trigger, entry.kind)


def check_ranks(rank: int, kept_energy: float, size_mb: float) -> None:
    """Refuse more than one way to choose ranks.

    Raises:
        ConfigError: Says which of them are set.
    """
    given = {"rank": (rank, 0), "kept_energy": (kept_energy, 1), "size_mb": (size_mb, 0)}
    used = [f"{name} is {value:g}" for name, (value, off) in given.items() if value != off]
    if len(used) > 1:
        raise ConfigError(
            f"{' and '.join(used)}, but each of them decides the ranks. Set one, and leave the others off: "
            "rank 0, kept_energy 1, size_mb 0"
        )


def weights_in(size_mb: float, dtype: torch.dtype, loras: Sequence[PromptedAdapter]) -> int:
    """Return how many weights a file of this size has room for, in all factors together.

    Raises:
        ConfigError: It has no room for rank 1 at every layer.
    """
    adapters = [lora.adapter for lora in loras]
    shapes = {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}
    names = _BYTES_OF_NAMES * len(target_layers(adapters))
    weights, least = int((size_mb * 1e6 - names) / dtype.itemsize), sum(map(sum, shapes.values()))
    if weights < least:
        raise ConfigError(
            f"size_mb is {size_mb:g}; the smallest merge of these LoRAs, rank 1 in all {len(shapes)} layers, takes "
            f"{(least * dtype.itemsize + names) / 1e6:.1f} MB. Allow more"
        )
    return weights


def used(entry: LoraEntry) -> UsedLora:
    """Return a LoRA as the recipe tells it."""
    is_file = entry.tensors is None
    return UsedLora(
        name=adapter_name(entry.lora_name),
        file=entry.lora_name if is_file else None,
        sha256=sha256(host.lora_path(entry.lora_name)) if is_file else sha256_of_tensors(entry.tensors),
        strength_model=entry.strength_model,
        strength_clip=entry.strength_clip,
        prompts=entry.prompts,
        prompts_from=entry.prompts_from,
        weight=entry.weight,
        trigger=entry.trigger,
        kind=entry.kind,
    )
