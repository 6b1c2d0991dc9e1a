"""Short sampling runs of teachers, from which the latents of calibration samples come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..adapters import Adapter
from ..network import Network, in_calls
from ..processes import Processes
from ..progress import Progress, nobody
from ..rows.wearing import DeltaCache, answers_of
from .calibration import Calibration
from .model import DenoiserRow, DiffusionHost, Encoded, PictureTokens
from .regions import Area, Region
from .runs import Run

Latents = tuple[Tensor, Tensor]  # where a run ends, and their noise level
# (latents, sigma of all or of each) -> estimate of the clean latents
Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Part:
    """A teacher's part in a run.

    Args:
        negative: The negative prompt; None without guidance.
        region: Region that it draws in: shape of the latents -> mask (height, width). The regions
            of a run add up to 1. None: everywhere.
    """

    mix: Mapping[int, float]
    text: Encoded
    negative: Encoded | None
    region: Callable[[Sequence[int]], Tensor] | None = None


_PartOfRun = tuple[int, Part]  # number of the run in its batch, and one of its parts
# (seed of the noise, part) -> the part's estimate of the clean latents at pure noise
FirstEstimates = dict[tuple[int, Part], Tensor]


@dataclass(frozen=True, eq=False)
class Sampler:
    """Samples with guidance, except in a run's first step.

    That begins with pure noise, where guidance does more harm than good (Kynkäänniemi et al. 2024,
    arXiv:2404.07724), and where runs with the same caption share an estimate.

    Args:
        sigmas: Noise levels that runs may stand at, (levels + 1,), falling to 0.
        start: (unit noise (runs, ...), first noise level) -> what the runs begin with.
        shape: (channels, ..., height, width) of the latents.
    """

    network: Network
    sigmas: Tensor
    start: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    cfg: float
    processes: Processes = field(default_factory=Processes)
    picture: PictureTokens | None = None

    @classmethod
    def of(cls, model: DiffusionHost, network: Network, calibration: Calibration) -> Sampler:
        """Return the sampler of a calibration for the model's opened `network`."""
        return cls(
            network,
            model.sigmas(calibration.levels).float().cpu(),
            model.start,
            model.latent_shape(calibration.resolution, calibration.frames),
            calibration.cfg,
            Processes.current(),
            model.picture_tokens,
        )

    def sample(
        self,
        adapters: Sequence[Adapter],
        runs: Mapping[Run, Sequence[Part]],
        parts_per_call: int,
        progress: Progress = nobody,
    ) -> dict[Run, Latents]:
        """Return the latents that each run ends with.

        Args:
            adapters: Adapters that the mixes of the parts number.
            runs: Each run with its parts. The teachers of several parts join their estimates of
                the clean latents at every step, each in its region.
            parts_per_call: Teachers in one forward call, two rows each; those of one run always
                come together.
        """
        # runs of one length share a batch, so that a batch ends with its runs
        ordered = {run: runs[run] for run in sorted(runs, key=lambda run: run.length)}
        batches = self._batches(ordered, parts_per_call)
        with self.processes.together():
            own = self._sample_batches(adapters, runs, self.processes.share(batches), progress)
            gathered = self.processes.gather(own)
        return {run: latents for batch in gathered for run, latents in batch.items()}

    def _sample_batches(
        self,
        adapters: Sequence[Adapter],
        runs: Mapping[Run, Sequence[Part]],
        batches: Sequence[Sequence[Run]],
        progress: Progress,
    ) -> list[dict[Run, Latents]]:
        found: list[dict[Run, Latents]] = []
        first: FirstEstimates = {}
        lengths = [max(run.length for run in batch) for batch in batches]
        done = 0
        for batch, length in zip(batches, lengths, strict=True):
            latents = start = self.begun([run.seed for run in batch])
            together = _Batch(self, {run: runs[run] for run in batch}, adapters, first)
            # a run that has ended stays at its last level
            levels = [[r.path[min(step, r.length)] for r in batch] for step in range(length + 1)]
            stands_at = self.sigmas[torch.tensor(levels)]
            # the generator yields latents before it makes a step: the one to 0 is never made
            sigmas = torch.cat([stands_at, stands_at.new_zeros(1, len(batch))])
            with torch.no_grad():
                steps = euler_steps(together.denoise, start, sigmas)
                for x in itertools.islice(steps, 1, length + 1):
                    latents = x
                    done += 1
                    progress(done, sum(lengths))
            found.append(
                {
                    run: (of_run.clone(), self.sigmas[run.path[-1]])
                    for run, of_run in zip(batch, latents, strict=True)
                }
            )
        return found

    def _batches(self, runs: Mapping[Run, Sequence[Part]], parts_per_call: int) -> list[list[Run]]:
        """Return the runs in groups of at most so many parts whose rows can share calls, in order;
        a run is never cut.
        """
        nothing = torch.zeros(self.shape), self.sigmas[0]
        keys = [
            tuple(
                self.network.call_key(DenoiserRow(*nothing, prompt))
                for part in parts
                for prompt in (part.text, part.negative)
                if prompt is not None
            )
            for parts in runs.values()
        ]
        batches: list[list[Run]] = []
        known = list(runs)
        for numbers in in_calls(keys, len(known)):
            room = 0
            for run in (known[number] for number in numbers):
                if len(runs[run]) > room:
                    batches.append([])
                    room = parts_per_call
                batches[-1].append(run)
                room -= len(runs[run])
        return batches

    def region(self, area: Area) -> Region:
        """Return an area as weights of a layer's tokens."""
        frames = math.prod(self.shape[1:-2])
        return Region(area.mask(self.shape), self.picture, frames)

    def pure_noise(self, seed: int) -> Latents:
        """Return latents that are nothing but noise, and their noise level."""
        sigma = self.sigmas[0]
        # whose size is right for flow models; others have sqrt(1 + sigma^2), which is near it
        return noise(self.shape, seed) * sigma, sigma

    def begun(self, seeds: Sequence[int]) -> Tensor:
        """Return what runs with noise of these seeds begin with."""
        return self.start(torch.stack([noise(self.shape, seed) for seed in seeds]), self.sigmas[0])


@dataclass(frozen=True, eq=False)
class _Batch:
    """Runs that are sampled side by side, and what estimates their clean latents.

    Args:
        first: The estimates of first steps so far; new ones are added.
    """

    sampler: Sampler
    runs: Mapping[Run, Sequence[Part]]
    adapters: Sequence[Adapter]
    first: FirstEstimates

    @cached_property
    def cache(self) -> DeltaCache:
        return DeltaCache(self.sampler.network.worn_bytes)

    @cached_property
    def parts(self) -> list[_PartOfRun]:
        return [(i, part) for i, parts in enumerate(self.runs.values()) for part in parts]

    @cached_property
    def masks(self) -> dict[Part, Tensor]:
        """The regions of the parts that have one."""
        shape = self.sampler.shape
        return {part: part.region(shape) for _, part in self.parts if part.region is not None}

    @cached_property
    def mixes(self) -> dict[Part, dict[int, float]]:
        return {part: mix_in(self.adapters, part.mix) for _, part in self.parts}

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return estimates of the clean latents, with guidance except in the first step. Latents of
        runs that have ended stay as they are.
        """
        levels = self.sampler.sigmas
        ends = [levels[run.path[-1]] for run in self.runs]
        parts = [(i, part) for i, part in self.parts if sigma[i] > ends[i]]
        is_first = all(sigma[i] == levels[0] for i, _ in parts)
        estimates = self._at_first(parts) if is_first else self._with_guidance(parts, x, sigma)
        joined = x.clone()
        joined[[i for i, _ in parts]] = 0
        for (i, part), estimate in zip(parts, estimates, strict=True):
            joined[i] += self.masks[part] * estimate if part in self.masks else estimate
        return joined

    def _at_first(self, parts: Sequence[_PartOfRun]) -> Tensor:
        """Return the estimates of parts at their first step, each made once."""
        runs = list(self.runs)
        wanted = [(runs[i].first, part) for i, part in parts]
        missing = [key for key in dict.fromkeys(wanted) if key not in self.first]
        if missing:
            x = self.sampler.begun([seed for seed, _ in missing])
            rows = [
                DenoiserRow(latents, self.sampler.sigmas[0], part.text)
                for latents, (_, part) in zip(x, missing, strict=True)
            ]
            estimates = self._outputs(rows, [self.mixes[part] for _, part in missing])
            self.first.update(zip(missing, estimates, strict=True))
        return torch.stack([self.first[key] for key in wanted])

    def _with_guidance(self, parts: Sequence[_PartOfRun], x: Tensor, sigma: Tensor) -> Tensor:
        mixes = [self.mixes[part] for _, part in parts]
        rows = [DenoiserRow(x[i], sigma[i], part.text) for i, part in parts]
        negatives = [(i, part.negative) for i, part in parts if part.negative is not None]
        rows += [DenoiserRow(x[i], sigma[i], negative, True) for i, negative in negatives]
        estimates = self._outputs(rows, mixes * 2 if negatives else mixes)
        if not negatives:
            return estimates
        conditional, unconditional = estimates.chunk(2)
        return unconditional + self.sampler.cfg * (conditional - unconditional)

    def _outputs(self, rows: Sequence[DenoiserRow], mixes: Sequence[Mapping[int, float]]) -> Tensor:
        """Return the outputs of all rows, on the CPU."""
        network = self.sampler.network
        answers: dict[int, Tensor] = {}
        for numbers in in_calls([network.call_key(row) for row in rows], len(rows)):
            worn = [mixes[number] for number in numbers]
            reads = [rows[number] for number in numbers]
            answer = answers_of(network, self.adapters, worn, reads, self.cache)
            answers |= dict(zip(numbers, answer.float().cpu(), strict=True))
        return torch.stack([answers[number] for number in range(len(rows))])


def mix_in(adapters: Sequence[Adapter], mix: Mapping[int, float]) -> dict[int, float]:
    """Return a mix without the adapters that have no delta in this part of the model.

    A task whose mix names such an adapter would be dropped as one without a teacher. With this mix
    its rows run through the base model, and are measured like all others.
    """
    return {k: share for k, share in mix.items() if adapters[k].deltas}


def noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return standard normal noise on the CPU, which depends on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32)


def euler_steps(denoise: Denoise, start: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Sample with Euler's method, and yield the model's input of every step before it is made.

    Args:
        denoise: Estimates the clean latents, guidance included.
        start: Latents at the first noise level, (runs, ...).
        sigmas: Falling to 0, (steps + 1,), or (steps + 1, runs) where each run has its own. Latents
            are a blend of clean ones and noise that is straight in sigma: clean + sigma * noise, or
            (1 - sigma) * clean + sigma * noise of flow models.
    """
    x = start
    whole = (1,) * (start.ndim - 1)
    for sigma, following in itertools.pairwise(sigmas):
        yield x
        now, change = (s.reshape(-1, *whole) for s in (sigma, following - sigma))
        x = x + (x - denoise(x, sigma)) / now * change
