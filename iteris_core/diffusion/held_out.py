"""The fidelity of a merge of diffusion LoRAs on unseen prompts and seeds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ..adapters import Adapter
from ..memory import with_smaller_calls
from ..network import Network
from ..progress import Progress, in_parts, nobody
from ..report.fidelity import Compared, fidelity
from ..report.runs import FidelityKind, TaskFidelity
from ..rows.wearing import Mix
from ..settings import MOST_SEEDS
from ..tasks import Task
from .calibration import Calibration
from .check_of_pairs import LOOKED_AT, TogetherPlan, make_together_plans
from .choices import base_captions, own_captions
from .cost import check_parts
from .drawn import STEPS, DrawnPlan, judged
from .lora_use import LoraUse
from .model import DenoiserRow, DiffusionHost
from .plans import CaptionPlan, Contexts, Plan, runs_of
from .samples import Context, Reading, Tokenized, written_for
from .sampling import Sampler, mix_in

CheckPlan = DrawnPlan | CaptionPlan | TogetherPlan
# What teachers and the merged model read of each plan's captions; and what reference rows read.
_Readers = tuple[Contexts, Contexts]

# Distance of the check's seeds from the merge's.
_UNSEEN = 7919
# Captions that the check draws from; ten prompts have 480 with our forms and things.
_MOST_POSSIBLE = 50_000


@dataclass(frozen=True)
class HeldOutCheck:
    """A check on pictures that a merge has not seen.

    For each LoRA ``calibration.held_out`` pictures are drawn from seeds that the merge has not
    seen, by the merge and by the LoRA alone, and judged by the LoRA, see `drawn`. Their captions
    are the LoRA's prompts, in turn alone and in company that the merge has not read.

    Two subjects in one picture (see `check_of_pairs`), and pictures of the base model, are checked
    on noisy latents of such pictures: the merged model's output is compared with the teacher's.

    Args:
        plans: The plans of the check, see `make_check_plans`.
        calibration: The calibration of the merge, for the model's family.
    """

    model: DiffusionHost
    adapters: Sequence[Adapter]
    plans: Sequence[CheckPlan]
    calibration: Calibration
    samples_per_chunk: int = 8
    progress: Progress = nobody

    def measure(self, merged: Adapter) -> tuple[TaskFidelity, ...]:
        """Return the fidelity of the merged LoRA to each LoRA and to the base model.

        Raises:
            IterisError: An error of sampling or of `fidelity.fidelity`.
        """
        parts = [adapter.split(self.model.is_text_module) for adapter in (*self.adapters, merged)]
        texts = [text for text, _ in parts]
        self._parts()[0](0, 1)  # it is this stage by now, though the captions are read first
        readers = _contexts(self.model, self.plans, texts, self.samples_per_chunk)
        of_denoiser = [part for _, part in parts]
        with self.model.denoiser() as network:

            def measured(size: int) -> tuple[TaskFidelity, ...]:
                drawn = self._drawn(network, of_denoiser, readers, size)
                return *drawn, *self._compared(network, of_denoiser, readers, size)

            return with_smaller_calls(
                measured, self.samples_per_chunk, "the check on unseen samples"
            )

    def _drawn(
        self, network: Network, adapters: Sequence[Adapter], readers: _Readers, size: int
    ) -> list[TaskFidelity]:
        """Return what is kept of each LoRA in the pictures that the merge draws."""
        plans = [plan for plan in self.plans if isinstance(plan, DrawnPlan)]
        drawn, looked_at, *_ = self._parts()
        sampler = Sampler.of(self.model, network, self.calibration, STEPS)
        latents = sampler.sample(adapters, runs_of(plans, readers[0]), size, drawn)
        return judged(plans, latents, adapters, readers, self.model.noised, 2 * size, looked_at)

    def _parts(self) -> list[Progress]:
        """Return listeners for the steps of the check's parts, in their order."""
        rows = check_parts(self.plans, guided=self.calibration.is_guided)
        return in_parts(self.progress, rows)

    def _compared(
        self, network: Network, adapters: Sequence[Adapter], readers: _Readers, size: int
    ) -> list[TaskFidelity]:
        """Return the fidelity in pictures of two, and to the base model."""
        own, base = readers
        plans = [plan for plan in self.plans if not isinstance(plan, DrawnPlan)]
        *_, drawn, comparing = self._parts()
        sampler = Sampler.of(self.model, network, self.calibration)
        runs = runs_of(plans, own)
        latents = sampler.sample(adapters[:-1], runs, size, drawn)
        compared = [
            Compared(
                Task(plan.name, plan.samples(own, latents), plan.mix),
                [sample.student_reads for sample in plan.samples(base, latents)],
                plan.samples_of_runs(),
                plan.masks(latents) if isinstance(plan, TogetherPlan) else None,
            )
            for plan in plans
        ]
        measured = fidelity(
            network,
            adapters[:-1],
            compared,
            adapters[-1],
            row_key=DenoiserRow.digest,
            samples_per_chunk=size,
            progress=comparing,
        )
        kinds: list[FidelityKind] = ["together" if plan.mix else "base" for plan in plans]
        return [replace(entry, kind=kind) for entry, kind in zip(measured, kinds, strict=True)]


def make_check_plans(loras: Sequence[LoraUse], calibration: Calibration) -> list[CheckPlan]:
    """Return the plans of the check: of each LoRA's pictures, of each in pictures with others, and
    of the base model.

    Args:
        loras: The LoRAs that change something.
    """
    unseen = replace(calibration, seed=(calibration.seed + _UNSEEN) % MOST_SEEDS)
    plans: list[CheckPlan] = []
    for k, lora in enumerate(loras):
        seen = own_captions(lora, calibration, calibration.seed + k)
        company = unseen_captions(lora, seen, unseen, unseen.seed + k)
        # as users write them, and in company that the merge has not read
        alone = itertools.cycle(lora.prompts)
        captions = [next(alone) if i % 2 == 0 else other for i, other in enumerate(company)]
        plans.append(DrawnPlan(lora.name, {k: 1.0}, 1.0, k, unseen, tuple(captions), len(loras)))
    # ordinary captions from the last on, since the preserve task takes them from the first on; what
    # it has read only if there is nothing else
    read = set(base_captions(calibration))
    known = calibration.preserve_captions[::-1] or ("",)
    ordinary = [caption for caption in known if caption not in read] or known
    captions_of_base = tuple(ordinary[i % len(ordinary)] for i in range(calibration.held_out))
    base = CaptionPlan(
        "base model", {}, 1.0, len(loras), unseen, captions_of_base, 0.0, looked_at=LOOKED_AT
    )
    return [*plans, *make_together_plans(loras, unseen, len(loras) + 1), base]


def unseen_captions(
    lora: LoraUse, seen: Sequence[str], calibration: Calibration, seed: int
) -> list[str]:
    """Return captions of the subjects of a LoRA's prompts in company that the merge has not read;
    its prompts alone if there are no others.

    Args:
        seen: The captions of its task in the merge.
    """
    subjects = map(lora.subject_of, lora.prompts)
    parts = itertools.product(calibration.compositions, calibration.companions, subjects)
    possible = [
        form.format(prompt=subject, thing=thing)
        for form, thing, subject in islice(parts, _MOST_POSSIBLE)
    ]
    known = {*seen, *lora.prompts}
    unseen = [caption for caption in dict.fromkeys(possible) if caption not in known]
    rng = random.Random(seed)
    return [rng.choice(unseen or list(lora.prompts)) for _ in range(calibration.held_out)]


def _contexts(
    model: DiffusionHost,
    plans: Sequence[CheckPlan],
    adapters: Sequence[Adapter],
    samples_per_chunk: int,
) -> _Readers:
    """Return each plan's contexts.

    Args:
        adapters: The LoRAs' text encoder parts, and last the merged one.
    """
    tokenized = Tokenized.of(model, [plan.readings() for plan in plans])
    own: dict[tuple[Plan, Reading], Context] = {}
    bases: dict[tuple[Plan, Reading], Context] = {}
    last = len(adapters) - 1
    stacked = dict.fromkeys(range(last), 1.0)
    worn: dict[tuple[CheckPlan, Reading], list[Mix]] = {}
    for plan in plans:
        of_plan = plan.mix, {last: 1.0}, {} if plan.mix else stacked  # teacher, merge, reference
        mixes: list[Mix] = [tuple(mix_in(adapters, mix).items()) for mix in of_plan]
        worn |= {(plan, reading): mixes for reading in plan.readings()}
    asked = {(reading.teacher, mix) for (_, reading), mixes in worn.items() for mix in mixes}
    texts = sorted(asked)
    pieces = [(piece, mix) for text, mix in texts for piece in tokenized.pieces[text]]
    rows: list[Any] = []
    if pieces:
        with model.text_encoder() as network:
            rows = with_smaller_calls(
                lambda size: written_for(network, pieces, 2 * size, adapters),
                samples_per_chunk,
                "the check's captions",
            )
    following = iter(rows)
    written = {text: list(islice(following, len(tokenized.pieces[text[0]]))) for text in texts}
    for (plan, reading), mixes in worn.items():
        teacher, student, base = (written[reading.teacher, mix] for mix in mixes)
        own[plan, reading] = tokenized.context(reading, teacher, student)
        bases[plan, reading] = tokenized.context(reading, base, base)
    return own, bases
