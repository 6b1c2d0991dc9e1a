"""A merge of LoRAs of one diffusion model: the text encoders are swept first, then the diffusion
model.

    job -> contexts (text encoders swept) -> latents (sampled) -> tasks -> denoiser swept

The student of the diffusion model reads what the merged text encoders write, so the order matters.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from ..adapters import Adapter, merged_adapter
from ..errors import FAILURES, IterisError, OutOfMemoryError, plain
from ..memory import is_out_of_memory, with_smaller_calls, without_smaller_calls
from ..merging import MergeResult, config_of_part, merge, merge_files, notes_about_unread
from ..network import Network
from ..progress import StageProgress, nobody
from ..report.records import MergeReport, Note, Source, joined
from ..rows.wearing import Mix
from ..tasks import Sample, Task
from . import stages
from .contexts import Context, Contexts, Texts, Tokenized, written_for
from .cost import STEPS_OF_A_PICTURE
from .job import Job
from .lora_use import LoraUse
from .polish import polish
from .proof import check_called, prove_merged
from .recipe import recipe_of
from .samples import SampleSpec, as_rows, runs_of, tasks_of, texts_of
from .sampling import Sampler, mix_in
from .stages import in_stage, numbered

logger = logging.getLogger("iteris")
# Kinds of notes that the merges of the parts make; all others are the job's.
_OF_PARTS = ("method", "unpolished")
# Errors after a merge that do not end it, since it took long to make.
_PASSED_OVER = (*FAILURES, MemoryError)


def merge_loras(job: Job, progress: StageProgress = nobody) -> MergeResult:
    """Check that the model calls what the LoRAs change, merge them, prove what the host makes of
    the result, and write what was done into the report, with the recipe. A proof that fails is a
    note.

    Raises:
        IterisError: Memory that runs out even with the smallest calls, or an error of
            `check_called` or `merge_diffusion`.
    """
    _log(job)
    begin = time.monotonic()
    told = numbered(progress, job.stages)
    if job.is_checked:
        with without_smaller_calls("the check of the LoRAs"):
            check_called(job.model, job.loras, job.calibration)
        in_stage(told, stages.CHECK)(1, 1)
    with without_smaller_calls("the merge"):
        result = merge_diffusion(job, told)
    if job.config.measured:
        result = _proved(result, job)
    report = replace(
        result.report,
        settings=recipe_of(job.asked, job.calibration, job.config, job.settings.made_on),
        loras=tuple(map(_source, job.asked)),
        rows=job.cost.rows,
        seconds=time.monotonic() - begin,
        saved_bytes=result.adapter.saved_bytes,
        notes=(*result.report.notes, *job.settings.notes),
    )
    return replace(result, report=report)


def _source(use: LoraUse) -> Source:
    strengths = use.strength_model, use.strength_clip
    return Source(use.name, *strengths, use.prompts, are_made=bool(use.prompts_from))


def _proved(result: MergeResult, job: Job) -> MergeResult:
    """Return a merge after the proof of what the host makes of it."""
    try:
        prove_merged(job.model, result.adapter)
        return result
    except _PASSED_OVER as error:
        why = _why("the proof of the merge", error)
        text = f"What ComfyUI draws with this merge is not proved: {why}"
        return _noted(result, Note("unproved", text))


def _why(what: str, error: Exception, where_full: str = "") -> str:
    """Return why something after a merge failed, for a note.

    Args:
        where_full: What follows where memory ran out.
    """
    if isinstance(error, OutOfMemoryError) or is_out_of_memory(error):
        return f"memory ran out{where_full}"
    if not isinstance(error, IterisError) or error.__cause__ is not None:
        logger.warning("%s failed", what, exc_info=error)
    return plain(str(error)) or type(error).__name__


def _noted(result: MergeResult, *notes: Note) -> MergeResult:
    report = result.report
    return replace(result, report=replace(report, notes=(*report.notes, *notes)))


def _log(job: Job) -> None:
    room = job.room.waiting_bytes
    logger.info(
        "merging %s: %d rows through the diffusion model, as many as %d pictures of %d steps; %d "
        "samples a call%s",
        plain(", ".join(use.name for use in job.asked)),
        job.cost.rows,
        job.cost.pictures,
        STEPS_OF_A_PICTURE,
        job.room.samples_per_chunk,
        "" if room is None else f", room for {room} bytes of waiting samples",
    )


def merge_diffusion(job: Job, progress: StageProgress = nobody) -> MergeResult:
    """Merge LoRAs of one diffusion model, text encoders and diffusion model.

    Raises:
        IterisError: An error of `merge`.
    """
    if not job.config.measured:
        # for np_lora, whose style is the first one
        loras = sorted(job.loras, key=lambda lora: lora.use.kind != "style")
        adapters = [lora.adapter for lora in loras]
        result = merge_files(adapters, job.config, in_stage(progress, stages.FILES))
        return replace(result, report=_report(job, [result.report]))
    solver = PartSolver(job, progress)
    contexts, of_text = merge_text_encoder(solver)
    of_denoiser = merge_denoiser(solver, contexts)
    parts = [part for part in (of_text, of_denoiser) if part is not None]
    deltas = {path: delta for part in parts for path, delta in part.adapter.deltas.items()}
    merged = merged_adapter(job.adapters, deltas)
    return MergeResult(merged, _report(job, [part.report for part in parts]))


def _report(job: Job, parts: Sequence[MergeReport]) -> MergeReport:
    """Return one report of both parts."""
    report = joined(*parts)
    of_parts = [note for note in report.notes if note.kind in _OF_PARTS]
    notes = (*of_parts, *notes_about_unread(job.adapters), *job.notes)
    return replace(report, notes=notes)


@dataclass(frozen=True)
class PartSolver:
    """Merges one part of the model at a time."""

    job: Job
    progress: StageProgress

    def adapters(self, *, text: bool) -> list[Adapter]:
        """Return the text encoders' part of each LoRA, or the diffusion model's."""
        is_text = self.job.model.is_text_module
        return [adapter.select(lambda path: is_text(path) == text) for adapter in self.job.adapters]

    def merge(
        self, network: Network, part: Sequence[Adapter], tasks: Sequence[Task], stage: str
    ) -> MergeResult:
        """Merge one part; see `merging.merge`."""
        config = config_of_part(self.job.config, part)
        progress = in_stage(self.progress, stage)
        return merge(network, part, tasks, config, room=self.job.room, progress=progress)


def merge_text_encoder(solver: PartSolver) -> tuple[Contexts, MergeResult | None]:
    """Merge the text encoders' part, and encode every caption as its teacher and as the student
    read it.

    Returns:
        The contexts, and the merge; None if no LoRA changes the text encoders.
    """
    job = solver.job
    texts = [texts_of(of_task, job.calibration) for of_task in tasks_of(job.samples)]
    known = set(chain(*texts))
    others = [
        [each for each in texts_of(of_task, job.calibration) if each not in known]
        for of_task in tasks_of(job.polish_samples)
    ]
    tokenized = Tokenized.of(job.model, chain(*texts, *others))
    outputs, result = _text_outputs(solver, texts, others, tokenized)
    contexts: dict[Texts, Context] = {}
    for of_task, rows in zip([*texts, *others], outputs, strict=True):
        following = iter(rows)
        for each in of_task:
            own = list(islice(following, len(tokenized.pieces[each.teacher])))
            teacher, student = ([row[side] for row in own] for side in (0, 1))
            contexts[each] = tokenized.context(each, teacher, student)
    return contexts, result


def _text_outputs(
    solver: PartSolver,
    texts: Sequence[Sequence[Texts]],
    others: Sequence[Sequence[Texts]],
    tokenized: Tokenized,
) -> tuple[Sequence[Sequence[tuple[Any, Any]]], MergeResult | None]:
    """Return the text encoders' outputs for teacher and student, by task and sample, and the merge
    of the text encoders; None if no LoRA changes them.

    Args:
        texts: What the samples of the merge read, which the text encoders are merged on.
        others: What those of the polish read.
    """
    job = solver.job
    adapters = solver.adapters(text=True)
    tasks, later = (
        _tasks(
            samples,
            adapters,
            [[row for each in of_task for row in tokenized.samples(each)] for of_task in of_texts],
        )
        for samples, of_texts in ((job.samples, texts), (job.polish_samples, others))
    )
    if not any(task.samples for task in tasks):
        return [[] for _ in (*tasks, *later)], None
    with job.model.text_encoder() as network:
        outputs: list[Sequence[tuple[Any, Any]]] = []
        result: MergeResult | None = None
        student: Mix = ()
        if any(adapter.deltas for adapter in adapters):
            result = solver.merge(network, adapters, tasks, stages.TEXT)
            assert result.outputs is not None, "a text encoder returns one output per row"
            outputs += result.outputs
            tasks, adapters = [], [*adapters, result.adapter]
            student = ((len(adapters) - 1, 1.0),)
        read = [*tasks, *later]
        if read:
            outputs += with_smaller_calls(
                lambda size: [_written(network, task, adapters, student, size) for task in read],
                max(len(task.samples) for task in read) or 1,
                "reading the prompts",
            )
        return outputs, result


def _written(
    network: Network, task: Task, adapters: Sequence[Adapter], student: Mix, rows_per_call: int
) -> list[tuple[Any, Any]]:
    """Return a text encoder's outputs for a task's teacher, and for a student that wears a mix."""
    mix = tuple(task.mix.items())
    rows = written_for(
        network, [(sample.teacher, mix) for sample in task.samples], rows_per_call, adapters
    )
    others = [
        (i, sample.student_reads)
        for i, sample in enumerate(task.samples)
        if student or sample.student is not None
    ]
    pieces = [(reads, student) for _, reads in others]
    of_others = written_for(network, pieces, rows_per_call, adapters)
    students = dict(enumerate(rows))
    students |= {i: row for (i, _), row in zip(others, of_others, strict=True)}
    return list(zip(rows, students.values(), strict=True))


def _tasks(
    samples: Sequence[SampleSpec], adapters: Sequence[Adapter], rows: Sequence[Sequence[Sample]]
) -> list[Task]:
    """Return the tasks of one part of the model.

    Args:
        rows: The rows of each task there.
    """
    first = [of_task[0] for of_task in tasks_of(samples)]
    return [
        Task(each.task, of_task, mix_in(adapters, each.mix), each.weight)
        for each, of_task in zip(first, rows, strict=True)
    ]


def merge_denoiser(solver: PartSolver, contexts: Contexts) -> MergeResult | None:
    """Let every teacher sample, and merge the diffusion model's part on the latents of these runs;
    None if no LoRA changes it.
    """
    job = solver.job
    adapters = solver.adapters(text=False)
    if not any(adapter.deltas for adapter in adapters):
        return None
    with job.model.denoiser(job.calibration.levels) as network:
        sampler = Sampler.of(job.model, network, job.calibration)
        samples = (*job.samples, *job.polish_samples)
        runs = runs_of(samples, contexts, job.calibration)
        latents = with_smaller_calls(
            lambda size: sampler.sample(
                adapters, runs, size, in_stage(solver.progress, stages.SAMPLING)
            ),
            job.room.samples_per_chunk,
            "sampling",
        )
        rows = [as_rows(each, contexts, sampler, latents) for each in tasks_of(job.samples)]
        tasks = _tasks(job.samples, adapters, rows)
        following = iter(as_rows(job.polish_samples, contexts, sampler, latents))
        rows = [list(islice(following, len(each))) for each in tasks_of(job.polish_samples)]
        later = _tasks(job.polish_samples, adapters, rows)
        result = solver.merge(network, adapters, tasks, stages.DENOISER)
        if later:
            result, note = _polished(result, network, adapters, later, solver)
            result = _noted(result, note)
    return result


def _polished(
    result: MergeResult,
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    solver: PartSolver,
) -> tuple[MergeResult, Note]:
    """Return a merge of the diffusion model's part after its polish, and a note about it. Where it
    cannot be polished, return it as it is: it took long to make.

    Args:
        tasks: Those of the polish.
    """
    job = solver.job
    steps = job.calibration.polish
    try:
        polished = with_smaller_calls(
            lambda size: polish(
                network,
                adapters,
                tasks,
                result.adapter,
                steps,
                size,
                in_stage(solver.progress, stages.POLISH),
            ),
            job.room.samples_per_chunk,
            "the polish",
        )
    except _PASSED_OVER as error:
        why = _why("the polish", error, ". Lower resolution, or choose a smaller size")
        return result, Note("unpolished", f"The merge was not polished: {why}")
    lowest = polished.lowest
    text = (
        f"polished: after {lowest.step} of {steps} steps, the error of samples that were kept "
        f"out is {100 * lowest.level:.0f} % of what it was; the layers' figures are those before"
        if lowest.step
        else f"none of {steps} steps of the polish lowered the error of samples that were kept "
        "out, so the merge is as it was solved"
    )
    return replace(result, adapter=polished.adapter), Note("method", text)
