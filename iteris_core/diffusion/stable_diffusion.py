"""Stable Diffusion 1.5: captions and sampling runs become tasks; the text encoder is swept first,
then the UNet.

Whoever holds the model (a ComfyUI node, a diffusers pipeline) implements `StableDiffusion`; this
file knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..adapters import Adapter, mean_vectors, target_layers
from ..config import MergeConfig
from ..devices import with_smaller_calls
from ..errors import AdapterError, ConfigError
from ..merging import MergeResult, merge
from ..network import Network
from ..report.records import LayerReport, Note, joined
from ..tasks import Sample, Task
from .calibration import Calibration
from .samples import (
    Context,
    Contexts,
    Plan,
    PromptedAdapter,
    check_one_piece,
    common_length,
    make_plans,
    mix_in,
    text_samples,
    unet_samples,
)
from .sampling import own_runs, sample_runs
from .scene_samples import ScenePlan, make_scene_plans, make_styled_plans, scene_runs, scene_samples

# (name of the stage, steps done, steps in all); may raise to cancel.
StageProgress = Callable[[str, int, int], None]
TEXT_STAGE = "Text encoder"
SAMPLING_STAGE = "Sampling"
UNET_STAGE = "UNet"


class StableDiffusion(Protocol):
    """The model, as its host offers it."""

    def tokenize(self, caption: str) -> Sequence[Any]:
        """Return a caption as pieces of 77 tokens; each is one row of the text encoder."""
        ...

    def text_encoder(self) -> AbstractContextManager[Network]:
        """Open the text encoder; rows are token pieces, its forward returns contexts (rows, 77,
        768).
        """
        ...

    def unet(self) -> AbstractContextManager[Network]:
        """Open the UNet; rows are `UnetRow` with contexts of one length, its forward returns
        estimates of the clean latents.

        Layers that read the context are of the stream `TEXT_STREAM`.
        """
        ...

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels of a sampling run, (steps + 1,), ending in 0."""
        ...

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a picture with this side in pixels."""
        ...

    def is_text_module(self, path: str) -> bool:
        """Tell the text encoder's module paths from the UNet's."""
        ...

    def token_positions(self, text: str) -> Sequence[int]:
        """Return where, in a text's context (its pieces one after the other), the tokens of its
        words stand.

        Start, end and padding are left out. Only scene tasks ask for it.
        """
        ...


def merge_stable_diffusion(
    model: StableDiffusion,
    loras: Sequence[PromptedAdapter],
    calibration: Calibration,
    config: MergeConfig,
    progress: StageProgress | None = None,
    watch: Callable[[LayerReport], None] | None = None,
) -> MergeResult:
    """Merge LoRAs of one Stable Diffusion model, text encoder and UNet.

    Args:
        model: The base model, in its host.
        loras: One or more; those of strength 0 are left out.
        calibration: How samples are made.
        config: How layers are solved.
        progress: Told about stages and steps; may raise to cancel.
        watch: Told each layer's report the moment it is solved.

    Raises:
        IterisError: Nothing to merge, unusable prompts, or what `merge` raises.
    """
    used = [lora for lora in loras if not lora.adapter.is_idle]
    if not used:
        raise AdapterError(
            "none of the LoRAs changes anything: every strength is 0, or the files hold no weights"
        )
    adapters = [lora.adapter for lora in used]
    tell = progress or (lambda stage, done, total: None)
    plans = make_plans(used, calibration)
    names = [plan.name for plan in plans]
    scenes = make_scene_plans(used, names, calibration, lambda text: model.token_positions(text))
    plans += make_styled_plans(used, names, calibration)
    if scenes and config.target != "full_output":
        raise ConfigError(
            "scene tasks need the target 'full_output', since teacher and student read different "
            f"captions; it is {config.target!r}. Set target to 'full_output', or scene_weight to 0"
        )
    text = [adapter.select(model.is_text_module) for adapter in adapters]
    unet = [adapter.select(lambda path: not model.is_text_module(path)) for adapter in adapters]

    def solve(
        network: Network, part: Sequence[Adapter], tasks: Sequence[Task], stage: str
    ) -> MergeResult:
        settings = config_of_part(config, part, adapters)
        return merge(network, part, tasks, settings, progress=partial(tell, stage), watch=watch)

    contexts, parts = _sweep_text(
        model, text, [*plans, *scenes], calibration.negative_prompt, solve
    )
    if any(adapter.deltas for adapter in unet):
        with model.unet() as network:
            tasks = _unet_tasks(
                model,
                network,
                unet,
                plans,
                scenes,
                calibration,
                contexts,
                config.samples_per_chunk,
                tell,
            )
            parts.append(solve(network, unet, tasks, UNET_STAGE))
    deltas = {path: delta for part in parts for path, delta in part.adapter.deltas.items()}
    idle = [lora.adapter.name for lora in loras if lora.adapter.is_idle]
    vectors = mean_vectors(adapters)
    alone = bool(calibration.scene_weight and len(used) == 1)
    report = joined(*(part.report for part in parts))
    report = replace(
        report,
        unmatched={adapter.name: adapter.unmatched for adapter in adapters if adapter.unmatched},
        notes=(
            *(note for note in report.notes if note.kind == "method"),
            *_notes(idle, vectors, alone),
        ),
        settings={
            "calibration": asdict(calibration),
            "config": config.to_dict(),
            "loras": [_recipe(lora) for lora in loras],
        },
    )
    return MergeResult(
        Adapter(" + ".join(adapter.name for adapter in adapters), deltas, vectors=vectors), report
    )


def _notes(idle: Sequence[str], vectors: Mapping[str, Tensor], alone: bool) -> list[Note]:
    notes = []
    if idle:
        text = f"left out, since their strength is 0: {', '.join(idle)}"
        notes.append(Note("left_out", text))
    if vectors:
        text = (
            f"{len(vectors)} bias and norm changes are merged by their mean; calibration ran "
            "without them"
        )
        notes.append(Note("vectors", text))
    if alone:
        notes.append(Note("scenes", "there are no scene tasks: a single LoRA meets no other"))
    return notes


def _sweep_text(
    model: StableDiffusion,
    adapters: Sequence[Adapter],
    plans: Sequence[Plan | ScenePlan],
    negative_prompt: str,
    solve: Callable[[Network, Sequence[Adapter], Sequence[Task], str], MergeResult],
) -> tuple[Contexts, list[MergeResult]]:
    """Merge the text encoder's part, and encode every caption as its teacher and as the student
    read it.
    """
    wanted = [plan.readings(negative_prompt) for plan in plans]
    captions = dict.fromkeys(
        text
        for readings in wanted
        for reading in readings
        for text in (reading.teacher, reading.student)
    )
    pieces = {caption: model.tokenize(caption) for caption in captions}
    check_one_piece([reading for readings in wanted for reading in readings], pieces)
    samples = [
        [sample for reading in readings for sample in text_samples(reading, pieces)]
        for readings in wanted
    ]
    with model.text_encoder() as network:
        if any(adapter.deltas for adapter in adapters):
            tasks = [
                Task(p.name, samples[g], mix_in(adapters, p.mix), p.weight)
                for g, p in enumerate(plans)
            ]
            result = solve(network, adapters, tasks, TEXT_STAGE)
            rows = result.outputs
            results = [result]
        else:
            rows = [_encoded(network, task) for task in samples]
            results = []
    contexts = {}
    longest = common_length(list(pieces.items()))
    for g, readings in enumerate(wanted):
        left = iter(rows[g])
        for reading in readings:
            count = len(pieces[reading.teacher])
            pairs = [next(left) for _ in range(count)]
            teacher, student = (torch.cat(side) for side in zip(*pairs, strict=True))
            contexts[g, reading] = Context.repeated(
                teacher, student, longest // count, reading.positions
            )
    return contexts, results


@torch.no_grad()
def _encoded(network: Network, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
    """Return what teacher and student read of each sample, without any adapter."""
    rows = network.forward([sample.teacher for sample in samples])
    others = [sample.student for sample in samples if sample.student is not None]
    students = iter(network.forward(others) if others else ())
    return [
        (row, row if sample.student is None else next(students))
        for row, sample in zip(rows, samples, strict=True)
    ]


def _unet_tasks(
    model: StableDiffusion,
    network: Network,
    adapters: Sequence[Adapter],
    plans: Sequence[Plan],
    scenes: Sequence[ScenePlan],
    calibration: Calibration,
    contexts: Contexts,
    rows_per_call: int,
    tell: StageProgress,
) -> list[Task]:
    """Run every task's own teacher, and return the UNet's tasks on the latents that it saw."""
    sigmas = model.sigmas(calibration.sampling_steps).float().cpu()
    shape = model.latent_shape(calibration.resolution)
    own = [run for g, plan in enumerate(plans) for run in own_runs(g, plan, calibration, contexts)]
    of_scenes = scene_runs(scenes, len(plans), calibration, contexts, shape)
    runs = [*own, *of_scenes.values()]
    kept = with_smaller_calls(
        lambda size: sample_runs(
            network, adapters, runs, sigmas, shape, calibration, size, partial(tell, SAMPLING_STAGE)
        ),
        rows_per_call,
        "sampling",
    )
    left = iter(kept)
    tasks = []
    for g, plan in enumerate(plans):
        samples = unet_samples(g, plan, calibration, contexts, [next(left) for _ in plan.captions])
        tasks.append(Task(plan.name, samples, mix_in(adapters, plan.mix), plan.weight))
    latents = dict(zip(of_scenes, left, strict=True))
    for g, plan in enumerate(scenes, len(plans)):
        samples = scene_samples(g, plan, contexts, latents, shape, sigmas[0])
        tasks.append(Task(plan.name, samples, mix_in(adapters, plan.mix), plan.weight))
    return tasks


def config_of_part(
    config: MergeConfig, part: Sequence[Adapter], whole: Sequence[Adapter]
) -> MergeConfig:
    """Return the settings for one part of the model: its ranks, and its share of a total size."""
    if isinstance(config.rank, Mapping):
        paths = target_layers(part)
        return replace(
            config, rank={path: rank for path, rank in config.rank.items() if path in paths}
        )
    if config.size is None:
        return config
    uncut = [
        sum(d.rank * sum(d.shape) for adapter in group for d in adapter.deltas.values())
        for group in (part, whole)
    ]
    return replace(config, size=max(1, config.size * uncut[0] // uncut[1]))


def _recipe(lora: PromptedAdapter) -> dict[str, Any]:
    recipe = {"name": lora.adapter.name, "prompts": list(lora.prompts), "weight": lora.weight}
    return {**recipe, "trigger": lora.in_scenes.words, "kind": lora.kind}
