"""A merge of LoRAs of one diffusion model: the text encoders are swept first, then the diffusion
model.

    LoRAs -> plans -> contexts (text encoders swept) -> latents (sampled) -> tasks -> denoiser swept

The student of the diffusion model reads what the merged text encoders write, so the order matters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from ..adapters import Adapter, check_adapters, check_result, mean_vectors, target_layers
from ..config import MergeConfig
from ..devices import with_smaller_calls
from ..engines.problem import Watch
from ..errors import CalibrationError, ConfigError
from ..merging import MergeResult, merge, much_unread, notes_about_vectors, smallest_size
from ..network import Network
from ..progress import StageProgress, at_intervals, nobody
from ..report.records import MergeReport, Note, joined
from ..settings import called, called_value, setting_to
from ..tasks import Sample, Task
from .calibration import Calibration
from .foreseen import foresee
from .lora_use import LoadedLora, loras_in_use, own_names
from .model import (
    DENOISER_STAGE,
    PROMPTS_STAGE,
    SAMPLING_STAGE,
    TEXT_STAGE,
    DenoiserRow,
    DiffusionHost,
    in_stage,
)
from .plans import Contexts, Plan, ScenePlan, make_plans
from .recipe import settings_of
from .samples import Reading, Tokenized
from .sampling import Latents, Part, Run, Sampler, mix_in, noise
from .scenes import TokenPositions

T = TypeVar("T")


def merge_diffusion(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    config: MergeConfig,
    progress: StageProgress = nobody,
    watch: Watch = nobody,
) -> MergeResult:
    """Merge LoRAs of one diffusion model, text encoders and diffusion model.

    Args:
        model: The base model, in its host.
        loras: LoRAs to merge, at least one; those of strength 0 are omitted.
        calibration: Settings of the calibration samples.
        config: Settings of the merge.
        progress: Listener for (stage, steps done, steps in all); may raise to cancel.
        watch: Listener for the report of each layer, called as soon as the layer is solved.

    Raises:
        IterisError: Nothing to merge, unusable prompts, or an error of `merge`.
    """
    calibration = calibration.for_family(model.family)
    used = loras_in_use(loras)
    check_adapters([lora.adapter for lora in used])
    plans = plans_of(model, used, calibration, config, tick_of(progress))
    solver = PartSolver([lora.adapter for lora in used], config, progress, watch)
    contexts, of_text = merge_text_encoder(model, plans, solver)
    of_denoiser = merge_denoiser(model, plans, contexts, calibration, solver)
    parts = [part for part in (of_text, of_denoiser) if part is not None]
    deltas = {path: delta for part in parts for path, delta in part.adapter.deltas.items()}
    name = " + ".join(lora.adapter.name for lora in used)
    merged = check_result(Adapter(name, deltas, vectors=mean_vectors(solver.adapters)))
    report = _report([part.report for part in parts], loras, calibration)
    settings = settings_of([lora.use for lora in loras], calibration, config)
    return MergeResult(merged, replace(report, settings=settings))


def plans_of(
    model: DiffusionHost,
    used: Sequence[LoadedLora],
    calibration: Calibration,
    config: MergeConfig,
    tick: Callable[[], None] = nobody,
) -> list[Plan]:
    """Return the plans of a merge's tasks, checked; no model is run.

    Args:
        model: The base model.
        used: The LoRAs that change something.
        calibration: Settings of the calibration samples, for this model's family.
        config: Settings of the merge.
        tick: Called again and again; may raise to cancel.

    Raises:
        IterisError: Unusable prompts, or scenes that the model or the target cannot have.
    """
    uses = own_names([lora.use for lora in used])
    plans = make_plans(uses, calibration, token_positions_of(model, tick))
    check_target(plans, config)
    return plans


def tick_of(progress: StageProgress) -> Callable[[], None]:
    """Return what to call again and again while captions are made and cut into tokens; it is heard
    of only where that takes long.
    """
    return at_intervals(functools.partial(in_stage(progress, PROMPTS_STAGE), 0, 1))


def check_captions(
    model: DiffusionHost, plans: Iterable[Plan], tick: Callable[[], None] = nobody
) -> None:
    """Refuse captions that the model's text encoder cannot read; no model is run.

    Args:
        model: The base model.
        plans: Plans of a merge, and of its check.
        tick: Called again and again; may raise to cancel.

    Raises:
        CalibrationError: A caption is too long; shows it.
    """
    readings = [plan.readings() for plan in plans]
    tokenized = tokenize_all(model, readings, tick)
    for reading in {reading: None for of_plan in readings for reading in of_plan}:
        tokenized.samples(reading)


def token_positions_of(model: DiffusionHost, tick: Callable[[], None]) -> TokenPositions:
    """Return the model's function for scenes, which asks it for the positions of a text's words.

    Args:
        model: The base model.
        tick: Called each time.

    Its function raises:
        ConfigError: The model has no text layers.
    """

    def token_positions(text: str) -> Sequence[int]:
        tick()
        if not model.has_text_layers:
            raise ConfigError(
                "scene prompts of several subjects are for models with text encoders that are "
                "merged and layers that read the text alone, which are SD1.5 and SDXL; this model "
                f"is {model.family.name}. Set {setting_to('scene_weight', 0)}"
            )
        return model.token_positions(text)

    return token_positions


def check_target(plans: Sequence[Plan], config: MergeConfig) -> None:
    """Refuse a target that scenes cannot have.

    Raises:
        ConfigError: There are scenes, and the target is not ``full_output``.
    """
    if config.target != "full_output" and any(isinstance(plan, ScenePlan) for plan in plans):
        raise ConfigError(
            "scene tasks need whole outputs, since teacher and student read different captions; "
            f"{called('target')} is {called_value('target', config.target)!r}. Set it to "
            f"{called_value('target', 'full_output')!r}, or "
            f"{setting_to('scene_weight', 0)}"
        )


@dataclass(frozen=True)
class PartSolver:
    """Merges one part of the model at a time.

    Args:
        adapters: The LoRAs, both parts.
        config: The settings for both parts.
        progress: See `merge_diffusion`.
        watch: See `merge_diffusion`.
    """

    adapters: Sequence[Adapter]
    config: MergeConfig
    progress: StageProgress
    watch: Watch

    def merge(
        self, network: Network, part: Sequence[Adapter], tasks: Sequence[Task], stage: str
    ) -> MergeResult:
        """Merge one part; see `merging.merge`."""
        config = config_of_part(self.config, part, self.adapters)
        return merge(
            network, part, tasks, config, progress=in_stage(self.progress, stage), watch=self.watch
        )


def config_of_part(
    config: MergeConfig, part: Sequence[Adapter], whole: Sequence[Adapter]
) -> MergeConfig:
    """Return the settings for one part of the model: its ranks, and its share of a total size.

    Each part has the size of rank 1 in all of its layers. The rest is shared by how much more the
    parts have when nothing is cut.
    """
    if isinstance(config.rank, Mapping):
        paths = target_layers(part)
        return replace(
            config, rank={path: rank for path, rank in config.rank.items() if path in paths}
        )
    if config.size is None:
        return config
    least_part, least_whole = (smallest_size(group) for group in (part, whole))
    more_part, more_whole = (
        sum(d.rank * sum(d.shape) for adapter in group for d in adapter.deltas.values()) - least
        for group, least in ((part, least_part), (whole, least_whole))
    )
    room = max(0, config.size - least_whole)
    return replace(config, size=least_part + room * more_part // max(1, more_whole))


def merge_text_encoder(
    model: DiffusionHost, plans: Sequence[Plan], solver: PartSolver
) -> tuple[Contexts, MergeResult | None]:
    """Merge the text encoders' part, and encode every caption as its teacher and as the student
    read it.

    Returns:
        The contexts, and the merge; None if no LoRA changes the text encoders.
    """
    adapters = [adapter.split(model.is_text_module)[0] for adapter in solver.adapters]
    readings = {plan: plan.readings() for plan in plans}
    tokenized = tokenize_all(model, readings.values(), tick_of(solver.progress))
    tasks = [
        Task(
            plan.name,
            [sample for reading in readings[plan] for sample in tokenized.samples(reading)],
            mix_in(adapters, plan.mix),
            plan.weight,
        )
        for plan in plans
    ]
    result = None
    outputs: Sequence[Sequence[tuple[Any, Any]]] = [[] for _ in plans]
    if any(task.samples for task in tasks):
        with model.text_encoder() as network:
            if any(adapter.deltas for adapter in adapters):
                result = solver.merge(network, adapters, tasks, TEXT_STAGE)
                outputs = _outputs_of(result)
            else:
                outputs = with_smaller_calls(
                    lambda size: [read_by_base(network, task.samples, size) for task in tasks],
                    max(len(task.samples) for task in tasks),
                    "reading the prompts",
                )
    contexts = {}
    for plan, rows in zip(plans, outputs, strict=True):
        counts = [len(tokenized.pieces[reading.teacher]) for reading in readings[plan]]
        for reading, of_reading in zip(readings[plan], in_groups(rows, counts), strict=True):
            teacher = [row for row, _ in of_reading]
            student = [row for _, row in of_reading]
            contexts[plan, reading] = tokenized.context(reading, teacher, student)
    return contexts, result


def tokenize_all(
    model: DiffusionHost,
    readings: Iterable[Sequence[Reading]],
    tick: Callable[[], None] = nobody,
) -> Tokenized:
    """Return the captions of all readings as the model's text encoder reads them."""
    captions = dict.fromkeys(
        caption for of_plan in readings for reading in of_plan for caption in reading.captions
    )
    return Tokenized.of(model, captions, tick)


def _outputs_of(result: MergeResult) -> Sequence[Sequence[tuple[Any, Any]]]:
    """Return what the rows of a merged text encoder read, by task and sample.

    Raises:
        CalibrationError: The text encoder returned nothing.
    """
    if result.outputs is None:
        raise CalibrationError(
            "the text encoder's forward returns nothing that the diffusion model could read; it "
            "must return one output per row"
        )
    return result.outputs


@torch.no_grad()
def read_by_base(
    network: Network, samples: Sequence[Sample], rows_per_call: int
) -> list[tuple[Any, Any]]:
    """Return the encoded rows of teacher and student where no LoRA changes the encoder."""

    def encoded(texts: Sequence[Any]) -> list[Any]:
        starts = range(0, len(texts), rows_per_call)
        return [row for i in starts for row in network.forward(texts[i : i + rows_per_call])]

    rows = encoded([sample.teacher for sample in samples])
    others = [sample for sample in samples if sample.student is not None]
    of_others = encoded([sample.student for sample in others])
    students = {id(sample): row for sample, row in zip(others, of_others, strict=True)}
    return [(row, students.get(id(sample), row)) for sample, row in zip(samples, rows, strict=True)]


def in_groups(items: Sequence[T], counts: Sequence[int]) -> Iterator[Sequence[T]]:
    """Yield items in groups of these sizes, in order."""
    start = 0
    for count in counts:
        yield items[start : start + count]
        start += count


def merge_denoiser(
    model: DiffusionHost,
    plans: Sequence[Plan],
    contexts: Contexts,
    calibration: Calibration,
    solver: PartSolver,
) -> MergeResult | None:
    """Let every teacher sample, and merge the diffusion model's part on the latents of these runs;
    None if no LoRA changes it.

    Args:
        model: The base model.
        plans: Plans of the tasks.
        contexts: What their rows read.
        calibration: Settings of the calibration samples, for this model's family.
        solver: Merges the part.
    """
    adapters = [adapter.split(model.is_text_module)[1] for adapter in solver.adapters]
    if not any(adapter.deltas for adapter in adapters):
        return None
    with model.denoiser() as network:
        sampler = Sampler.of(model, network, calibration)
        runs = runs_of(plans, contexts)
        samples = sum(plan.sample_count() for plan in plans)
        notes = _foreseen(sampler, runs, adapters, solver.config, samples)
        latents = with_smaller_calls(
            lambda size: sampler.sample(
                adapters,
                runs,
                size,
                in_stage(solver.progress, SAMPLING_STAGE),
            ),
            solver.config.samples_per_chunk,
            "sampling",
        )
        tasks = [
            Task(
                plan.name,
                plan.samples(contexts, latents),
                mix_in(adapters, plan.mix),
                plan.weight,
            )
            for plan in plans
        ]
        result = solver.merge(network, adapters, tasks, DENOISER_STAGE)
    report = result.report
    notes += _remembered(latents)
    return replace(result, report=replace(report, notes=(*report.notes, *notes)))


def _remembered(latents: Latents) -> tuple[Note, ...]:
    """Return a note about sampling runs that were not made again, if there are any."""
    runs = len(latents.kept)
    if not latents.remembered:
        return ()
    count = "all" if latents.remembered == runs else f"{latents.remembered} of the"
    text = f"{count} {runs} sampling runs are taken from an earlier merge"
    return (Note("reused", text),)


def _foreseen(
    sampler: Sampler,
    runs: Mapping[Run, Sequence[Part]],
    adapters: Sequence[Adapter],
    config: MergeConfig,
    samples: int,
) -> tuple[Note, ...]:
    """Return notes about rows that will wait on the host, if some of them may."""
    prompts = (part.text for parts in runs.values() for part in parts)
    prompt = next(prompts, None)
    if config.waiting_bytes is None or prompt is None:
        return ()
    sigma = sampler.sigmas[0]
    latents = sampler.start(noise(sampler.shape, seed=0)[None], sigma)[0]
    row = DenoiserRow(latents, sigma, prompt)
    paths = target_layers(adapters)
    return foresee(sampler.network, row, paths, samples, config.waiting_bytes).notes


def runs_of(plans: Sequence[Plan], contexts: Contexts) -> dict[Run, list[Part]]:
    """Return the sampling runs of all plans; plans that share a run each have a part in it."""
    runs: dict[Run, list[Part]] = {}
    for plan in plans:
        for run, part in plan.runs(contexts).items():
            runs.setdefault(run, []).append(part)
    return runs


def _report(
    reports: Sequence[MergeReport],
    loras: Sequence[LoadedLora],
    calibration: Calibration,
) -> MergeReport:
    """Return one report of both parts, with notes about LoRAs that were omitted."""
    used = [lora.adapter for lora in loras if not lora.adapter.is_idle]
    idle = [lora.adapter.name for lora in loras if lora.adapter.is_idle]
    report = joined(*reports)
    notes = [note for note in report.notes if note.kind in ("method", "memory", "reused")]
    if idle:
        text = f"left out, since their strength is 0, or 0 in all blocks: {', '.join(idle)}"
        notes.append(Note("left_out", text))
    unheeded = [lora.use.name for lora in loras if not (lora.use.weight or lora.adapter.is_idle)]
    if unheeded:
        text = f"not kept, since their {called('weight')} is 0: {', '.join(unheeded)}"
        notes.append(Note("left_out", text))
    notes += notes_about_vectors(used)
    if calibration.scene_weight and len(used) == 1:
        notes.append(Note("scenes", "there are no scene tasks: a single LoRA meets no other"))
    return replace(
        report,
        unmatched={adapter.name: adapter.unmatched for adapter in used if adapter.unmatched},
        unread=much_unread(used),
        notes=tuple(notes),
    )
