"""Short sampling runs of teachers, from which the latents of calibration samples come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..adapters import Adapter
from ..files.tensors import sha256_of_tensors
from ..network import Network
from ..rows.wearing import wearing
from .calibration import Calibration, euler_trajectory, kept_steps, noise
from .samples import Contexts, Plan, Reading, UnetRow, mix_in

Kept = list[tuple[Tensor, Tensor]]  # (latents, sigma) of a run


@dataclass(frozen=True)
class Part:
    """A teacher's part in a run.

    Args:
        mix: What it wears.
        text, negative: The contexts that it reads, (tokens, 768).
        region: Where it draws, (height, width); the regions of a run add up to 1. None: everywhere.
    """

    mix: Mapping[int, float]
    text: Tensor
    negative: Tensor
    region: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """One sampling run: its teachers, the seed of its noise, and the steps whose latents are
    kept.
    """

    parts: tuple[Part, ...]
    seed: int
    steps: tuple[int, ...]


def own_runs(g: int, plan: Plan, calibration: Calibration, contexts: Contexts) -> list[Run]:
    """Return the sampling runs of task g, one per caption, each with its own teacher."""
    negative = contexts[g, Reading.of(calibration.negative_prompt)].teacher
    # seeds differ between tasks, so that no two rows of the merge see the same latents
    seed = calibration.seed * 1_000_003 + g * 1009
    return [
        Run(
            (Part(plan.mix, contexts[g, Reading.of(text)].teacher, negative),),
            seed + i,
            tuple(kept_steps(calibration, i)),
        )
        for i, text in enumerate(plan.captions)
    ]


def sample_runs(
    network: Network,
    adapters: Sequence[Adapter],
    runs: Sequence[Run],
    sigmas: Tensor,
    shape: tuple[int, int, int],
    calibration: Calibration,
    rows_per_call: int,
    progress: Callable[[int, int], None],
) -> list[Kept]:
    """Sample, with guidance, and return what each run keeps; runs that the network's memory has are
    taken from there.

    Args:
        network: The UNet, see `StableDiffusion.unet`.
        adapters: What the parts' mixes mean.
        runs: Those of several teachers join their estimates of the clean latents, each in its
            region, at every step.
        sigmas: (steps + 1,), falling to 0.
        shape: Of the latents.
        calibration: Uses ``cfg``.
        rows_per_call: Teachers in one forward call, two rows each; a run's own always come
            together.
        progress: Told about steps done and in all; may raise to cancel.
    """
    sample = partial(
        _sample,
        network,
        adapters,
        sigmas=sigmas,
        shape=shape,
        cfg=calibration.cfg,
        progress=progress,
    )
    memory = network.memory
    if memory is None:
        return sample(_batches(runs, rows_per_call))
    digests = [_digest(adapter) for adapter in adapters]
    keys = [_key(run, adapters, digests, sigmas, shape, calibration.cfg) for run in runs]
    found = {key: memory[key] for key in keys if key in memory}
    missing = {key: run for key, run in zip(keys, runs, strict=True) if key not in found}
    found |= zip(missing, sample(_batches(list(missing.values()), rows_per_call)), strict=True)
    memory.update(found)
    return [found[key] for key in keys]


def _digest(adapter: Adapter) -> str:
    """Return a hash of what an adapter adds."""
    tensors = {
        f"{path} {side}": getattr(delta, side)
        for path, delta in adapter.deltas.items()
        for side in ("up", "down")
    }
    return sha256_of_tensors(tensors)


def _key(
    run: Run,
    adapters: Sequence[Adapter],
    digests: Sequence[str],
    sigmas: Tensor,
    shape: tuple[int, int, int],
    cfg: float,
) -> str:
    """Return a hash of everything that decides what a run keeps, but for the model."""
    tensors = {"sigmas": sigmas}
    mixes = []
    for i, part in enumerate(run.parts):
        tensors |= {f"{i} text": part.text, f"{i} negative": part.negative}
        tensors |= {} if part.region is None else {f"{i} region": part.region}
        mixes.append([(digests[k], share) for k, share in mix_in(adapters, part.mix).items()])
    return sha256_of_tensors(tensors) + repr((mixes, run.seed, run.steps, shape, cfg))


def _sample(
    network: Network,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Run]],
    *,
    sigmas: Tensor,
    shape: tuple[int, int, int],
    cfg: float,
    progress: Callable[[int, int], None],
) -> list[Kept]:
    kept: list[Kept] = []
    done = 0
    total = len(batches) * (len(sigmas) - 1)

    for batch in batches:
        parts = [(i, part) for i, run in enumerate(batch) for part in run.parts]

        def denoise(x: Tensor, sigma: Tensor, parts: list[tuple[int, Part]] = parts) -> Tensor:
            nonlocal done
            rows = [UnetRow(x[i], sigma, part.text) for i, part in parts]
            rows += [UnetRow(x[i], sigma, part.negative) for i, part in parts]
            conditional, unconditional = network.forward(rows).float().cpu().chunk(2)
            done += 1
            progress(done, total)
            estimates = unconditional + cfg * (conditional - unconditional)
            joined = torch.zeros_like(x)
            for (i, part), estimate in zip(parts, estimates, strict=True):
                joined[i] += estimate if part.region is None else part.region * estimate
            return joined

        start = torch.stack([noise(shape, run.seed) for run in batch])
        mixes = [mix_in(adapters, part.mix) for _, part in parts]
        with torch.no_grad(), wearing(network.modules, adapters, mixes * 2):
            seen = euler_trajectory(denoise, start, sigmas)
        kept += [
            [(seen[step][i].clone(), sigmas[step]) for step in run.steps]
            for i, run in enumerate(batch)
        ]
    return kept


def _batches(runs: Sequence[Run], rows_per_call: int) -> list[list[Run]]:
    batches: list[list[Run]] = []
    for run in runs:
        if (
            not batches
            or sum(len(other.parts) for other in batches[-1]) + len(run.parts) > rows_per_call
        ):
            batches.append([])
        batches[-1].append(run)
    return batches
