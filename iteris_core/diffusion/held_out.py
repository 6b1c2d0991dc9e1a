"""How true a merge of Stable Diffusion LoRAs is on prompts and seeds that it was not solved on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..adapters import Adapter
from ..devices import with_smaller_calls
from ..merging import MergeResult
from ..network import Network
from ..progress import nobody
from ..report.fidelity import fidelity
from ..report.records import Note, TaskFidelity
from ..rows.wearing import wearing
from ..tasks import Task
from .calibration import Calibration, own_captions
from .samples import Context, Contexts, Plan, PromptedAdapter, Reading, common_length, unet_samples
from .sampling import own_runs, sample_runs
from .stable_diffusion import StableDiffusion, StageProgress

HELD_OUT_STAGE = "Check on unseen samples"
# A merge weaker than this is not made up for by strength: it has failed, and more of it would not
# help.
_STRONGEST_CORRECTION = 1.3


def with_held_out(
    model: StableDiffusion,
    loras: Sequence[PromptedAdapter],
    result: MergeResult,
    calibration: Calibration,
    *,
    correct_strength: bool = False,
    samples_per_chunk: int = 8,
    progress: StageProgress | None = None,
) -> MergeResult:
    """Return the merge with its fidelity on unseen prompts and seeds in the report.

    Each LoRA, and the base model, draws ``calibration.held_out`` pictures of captions and seeds
    that the merge has not seen; on the latents of these runs the merged model's output is compared
    with the LoRA's own.

    Args:
        model: The base model.
        loras: What was merged.
        result: Of `merge_stable_diffusion`.
        calibration: Of the merge; its ``held_out`` is the number of runs per task, 0 measures
            nothing.
        correct_strength: Scale the merged LoRA by one over the mean measured strength of its LoRAs,
            1 to 1.3, and measure again: the ridge and the preserve task make a merge weaker than
            its LoRAs.
        samples_per_chunk: Samples of one forward call.
        progress: Told about the stage `HELD_OUT_STAGE`; may raise to cancel.

    Raises:
        IterisError: What sampling or `fidelity.fidelity` raises.
    """
    used = [lora for lora in loras if not lora.adapter.is_idle]
    if not calibration.held_out or not used:
        return result
    tell = partial(progress, HELD_OUT_STAGE) if progress else None
    measure = partial(_fidelity, model, used, calibration, samples_per_chunk, tell)
    found = measure(result.adapter)
    if not correct_strength:
        return replace(result, report=replace(result.report, fidelity=found))
    factor = strength_correction(found)
    scaled = result.adapter.scaled(factor)
    settings = {**result.report.settings, "strength_correction": factor}
    before = ", ".join(
        f"{entry.task} {entry.strength:.2f}" for entry in found if entry.strength is not None
    )
    note = Note("strength", f"scaled by {factor:.3f}; strength before: {before}")
    notes = (*result.report.notes, note)
    report = replace(result.report, fidelity=measure(scaled), notes=notes, settings=settings)
    return replace(result, adapter=scaled, report=report)


def strength_correction(found: Sequence[TaskFidelity]) -> float:
    """Return the factor that brings the mean measured strength to 1, but not below 1 and not above
    1.3.
    """
    strengths = [entry.strength for entry in found if entry.strength is not None]
    mean = sum(strengths) / len(strengths) if strengths else 1.0
    return min(max(1 / mean, 1.0), _STRONGEST_CORRECTION) if mean > 0 else _STRONGEST_CORRECTION


def unseen_captions(
    lora: PromptedAdapter, seen: Sequence[str], calibration: Calibration, seed: int
) -> list[str]:
    """Return captions of a LoRA's prompts in company that the merge has not read; its prompts alone
    if there are no others.
    """
    pairs = itertools.product(calibration.compositions, calibration.companions, lora.prompts)
    possible = [form.format(prompt=prompt, thing=thing) for form, thing, prompt in pairs]
    unseen = [caption for caption in dict.fromkeys(possible) if caption not in set(seen)] or list(
        lora.prompts
    )
    chance = random.Random(seed)
    return [chance.choice(unseen) for _ in range(calibration.held_out)]


def _fidelity(
    model: StableDiffusion,
    loras: Sequence[PromptedAdapter],
    calibration: Calibration,
    samples_per_chunk: int,
    tell: object,
    merged: Adapter,
) -> tuple[TaskFidelity, ...]:
    plans = _plans(loras, calibration)
    unseen = replace(calibration, seed=calibration.seed + 7919)
    text = [
        adapter.select(model.is_text_module)
        for adapter in (*(lora.adapter for lora in loras), merged)
    ]
    unet = [
        adapter.select(lambda path: not model.is_text_module(path))
        for adapter in (*(x.adapter for x in loras), merged)
    ]
    contexts, bases = _contexts(model, plans, text, calibration.negative_prompt)
    sigmas = model.sigmas(calibration.sampling_steps).float().cpu()
    shape = model.latent_shape(calibration.resolution)
    runs = [run for g, plan in enumerate(plans) for run in own_runs(g, plan, unseen, contexts)]
    with model.unet() as network:

        def measure(size: int) -> tuple[TaskFidelity, ...]:
            left = iter(
                sample_runs(
                    network,
                    unet[:-1],
                    runs,
                    sigmas,
                    shape,
                    unseen,
                    size,
                    tell or (lambda done, total: None),
                )
            )
            tasks = []
            base_rows = []
            for g, plan in enumerate(plans):
                latents = [next(left) for _ in plan.captions]
                samples = unet_samples(g, plan, unseen, contexts, latents)
                tasks.append(Task(plan.name, samples, plan.mix))
                base_rows.append(
                    [row.teacher for row in unet_samples(g, plan, unseen, bases, latents)]
                )
            return fidelity(
                network,
                unet[:-1],
                tasks,
                unet[-1],
                samples_per_chunk=size,
                base_reads=lambda g, i: base_rows[g][i],
                progress=tell or nobody,
            )

        return with_smaller_calls(measure, samples_per_chunk, "the check on unseen samples")


def _plans(loras: Sequence[PromptedAdapter], calibration: Calibration) -> list[Plan]:
    plans = []
    for k, lora in enumerate(loras):
        seen = own_captions(lora.prompts, calibration, calibration.seed + k)
        captions = unseen_captions(
            lora, [*seen, *lora.prompts], calibration, calibration.seed + 7919 + k
        )
        plans.append(
            Plan(lora.adapter.name, {k: 1.0}, 1.0, tuple(captions), calibration.unconditional_share)
        )
    # the last of the ordinary captions: the preserve task takes them from the first on
    ordinary = calibration.preserve_captions[::-1] or ("",)
    captions = tuple(ordinary[i % len(ordinary)] for i in range(calibration.held_out))
    return [*plans, Plan("base model", {}, 1.0, captions, calibration.unconditional_share)]


def _contexts(
    model: StableDiffusion, plans: Sequence[Plan], adapters: Sequence[Adapter], negative_prompt: str
) -> tuple[Contexts, Contexts]:
    """Return each task's contexts as teacher and merged model read them, and as `fidelity`'s
    reference rows read them.
    """
    pieces = {
        text: model.tokenize(text) for plan in plans for text in (*plan.captions, negative_prompt)
    }
    longest = common_length(list(pieces.items()))
    contexts: dict[tuple[int, Reading], Context] = {}
    bases: dict[tuple[int, Reading], Context] = {}
    everything = {k: 1.0 for k in range(len(adapters) - 1)}
    with model.text_encoder() as network:
        for g, plan in enumerate(plans):
            for text in dict.fromkeys((*plan.captions, negative_prompt)):
                mixes = (plan.mix, {len(adapters) - 1: 1.0}, {} if plan.mix else everything)
                teacher, student, base = (
                    _encode(network, adapters, pieces[text], mix) for mix in mixes
                )
                times = longest // len(pieces[text])
                contexts[g, Reading.of(text)] = Context.repeated(teacher, student, times)
                bases[g, Reading.of(text)] = Context.repeated(base, base, times)
    return contexts, bases


@torch.no_grad()
def _encode(
    network: Network,
    adapters: Sequence[Adapter],
    pieces: Sequence[object],
    mix: Mapping[int, float],
) -> Tensor:
    with wearing(network.modules, adapters, [mix] * len(pieces)):
        return network.forward(list(pieces)).flatten(0, 1)
