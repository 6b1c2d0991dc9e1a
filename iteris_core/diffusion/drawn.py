"""What a merge draws for each of its LoRAs, judged by that LoRA itself.

A diffusion model also tells where a picture comes from. For a noisy picture, a LoRA's estimate and
the base model's differ by what the LoRA does there. s tells how far the clean picture x lies along
this difference:

    s(x) = <x - base(x_t), lora(x_t) - base(x_t)> / ||lora(x_t) - base(x_t)||^2

An estimate is the mean of all clean pictures that the noise may hide, so s is 1 on average over
pictures that the LoRA would draw, and 0 over pictures of the base model. (The difference of two
such errors classifies pictures in Li et al. 2023, arXiv:2303.16203.) With guidance both become
larger. So what a merge keeps of a LoRA is s of the merge's pictures divided by s of the LoRA's own
from the same noise: 1 if they show the LoRA as much, 0 if they could be the base model's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError
from ..progress import Progress, nobody
from ..report.runs import RunFidelity, TaskFidelity
from ..rows.outputs import Rows, outputs_of
from ..settings import label
from .model import DenoiserRow
from .plans import Contexts, Plan
from .samples import Reading
from .sampling import Latents, Part, Run, noise

# Noise levels of a picture, and those where it is judged, counted from pure noise at 0: in the
# middle, where what is drawn is decided. One step goes from pure noise to the first of them, and
# one from the last to the clean picture: details that more steps would draw say less than they
# disturb (docs/why.md).
STEPS = 6
LEVELS = (2, 3)
PATH = (0, *LEVELS, STEPS)
# A LoRA whose own pictures show less of it can hardly be told from the base model; what a merge
# lacks of it is then relative to this.
_LEAST = 0.2


@dataclass(frozen=True, eq=False)
class DrawnPlan(Plan):
    """The plan of one LoRA's pictures, each drawn by the LoRA alone and by the merge, from the same
    noise.

    Args:
        captions: One caption per picture.
        merged: Number of the merged LoRA among the adapters of the check.
    """

    captions: tuple[str, ...]
    merged: int

    def readings(self) -> list[Reading]:
        return self.with_negative(self.captions)

    def drawn_in(self) -> list[Run]:
        return [run for pair in self.pairs for run in pair]

    @property
    def pairs(self) -> list[tuple[Run, Run]]:
        """The runs of each picture, the LoRA's and the merge's."""
        whole = ((STEPS,), PATH)
        seeds = map(self.seed, range(len(self.captions)))
        return [
            (
                Run(f"{self.name}, alone", i, seed, *whole, first=seed),
                Run(f"{self.name}, merged", i, seed, *whole, first=seed),
            )
            for i, seed in enumerate(seeds)
        ]

    def sample_count(self) -> int:
        """Return how many noisy pictures the LoRA and the base model look at."""
        return 2 * len(LEVELS) * len(self.captions)

    def runs(self, contexts: Contexts) -> dict[Run, Part]:
        runs = {}
        negative = self.negative(contexts)
        of_merge = (
            contexts[self, self.unconditional].student if self.calibration.is_guided else None
        )
        for caption, (alone, merged) in zip(self.captions, self.pairs, strict=True):
            context = contexts[self, Reading.of(caption)]
            runs[alone] = Part(self.mix, context.teacher, negative)
            runs[merged] = Part({self.merged: 1.0}, context.student, of_merge)
        return runs


def judged(
    plans: Sequence[DrawnPlan],
    latents: Latents,
    adapters: Sequence[Adapter],
    readers: tuple[Contexts, Contexts],
    noised: Callable[[Tensor, Tensor, Tensor], Tensor],
    rows_per_call: int,
    progress: Progress = nobody,
) -> list[TaskFidelity]:
    """Return what the merge keeps of each plan's LoRA, see the module.

    Args:
        latents: The pictures of their runs.
        adapters: Adapters that the mixes of the plans number.
        readers: Contexts of the plans' captions for the LoRAs, as teachers, and for the base model.
        noised: (clean latents, unit noise, sigma) -> noisy latents.

    Raises:
        CalibrationError: Outputs that are not finite.
    """
    own, base = readers
    rows = Rows(DenoiserRow.digest)
    looks: dict[Run, list[tuple[int, int]]] = {}
    for plan in plans:
        for caption, pair in zip(plan.captions, plan.pairs, strict=True):
            of_lora = own[plan, Reading.of(caption)].teacher
            of_base = base[plan, Reading.of(caption)].student
            for run in pair:
                looks[run] = [
                    (
                        rows.add(DenoiserRow(x, sigma, of_lora), plan.mix),
                        rows.add(DenoiserRow(x, sigma, of_base), {}),
                    )
                    for x, sigma in _noisy(run, latents, noised)
                ]
    outputs = outputs_of(latents.sampler.network, adapters, rows, rows_per_call, progress)
    shares = {
        run: share_of(_picture(run, latents), [(outputs[a], outputs[b]) for a, b in pairs])
        for run, pairs in looks.items()
    }
    return [_kept(plan, [(shares[a], shares[b]) for a, b in plan.pairs]) for plan in plans]


def _picture(run: Run, latents: Latents) -> Tensor:
    return latents.kept[run][-1][0]


def _noisy(
    run: Run, latents: Latents, noised: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the picture of a run with noise, at each of `LEVELS`; both runs of a pair get the same
    noise.
    """
    clean = _picture(run, latents)
    for level in LEVELS:
        sigma = latents.sampler.sigmas[level]
        yield noised(clean, noise(clean.shape, run.seed + 1 + level), sigma), sigma


def share_of(picture: Tensor, estimates: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return ``s`` of a picture, the mean over its looks; None where the LoRA does nothing there.

    Args:
        estimates: The LoRA's and the base model's estimate of each look, of the same shape.

    Raises:
        CalibrationError: An estimate is not finite.
    """
    shares = []
    for of_lora, of_base in estimates:
        effect = (of_lora.double() - of_base.double()).flatten()
        along = torch.dot((picture.double() - of_base.double()).flatten(), effect)
        energy = effect.square().sum()
        if not torch.isfinite(along + energy):
            raise CalibrationError(
                "the check's pictures are not finite: a precision that overflows, or a NaN. Use "
                f"another precision, or set {label('held_out')} to 0"
            )
        if energy:
            shares.append((along / energy).item())
    return statistics.fmean(shares) if shares else None


def _kept(plan: DrawnPlan, shares: Sequence[tuple[float | None, float | None]]) -> TaskFidelity:
    """Return what each picture kept of a LoRA, relative to the mean of the LoRA's own pictures.

    Args:
        shares: ``s`` of each picture, the LoRA's own and the merge's.
    """
    seen = [(alone, merged) for alone, merged in shares if alone is not None and merged is not None]
    if not seen:
        return TaskFidelity.of(plan.name, [RunFidelity(0.0, None)], len(shares))
    alone = statistics.fmean(alone for alone, _ in seen)
    kept = [1 + (merged - alone) / max(alone, _LEAST) for _, merged in seen]
    return TaskFidelity.of(plan.name, [RunFidelity(abs(1 - k), k) for k in kept], len(shares))
