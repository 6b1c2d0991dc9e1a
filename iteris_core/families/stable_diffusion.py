"""Stable Diffusion 1.5: captions and sampling runs become tasks; the text encoder is swept first, then the UNet.

Whoever holds the model (a ComfyUI node, a diffusers pipeline) implements `StableDiffusion`; this file knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..adapters import Adapter, mean_vectors
from ..calibration import Calibration, base_captions, euler_trajectory, is_chosen, kept_steps, noise, own_captions
from ..config import MergeConfig
from ..errors import AdapterError, CalibrationError
from ..merge import MergeResult, merge
from ..network import Network
from ..report import joined
from ..rows import wearing
from ..tasks import Sample, Task

# (name of the stage, steps done, steps in all); may raise to cancel.
StageProgress = Callable[[str, int, int], None]
TEXT_STAGE, SAMPLING_STAGE, UNET_STAGE = "Text encoder", "Sampling", "UNet"
_MOST_PIECES = 4  # of a prompt; contexts of 1, 2, 3 and 4 pieces have 12 in common
TEXT_STREAM, IMAGE_STREAM = "text", "image"


@dataclass(frozen=True)
class UnetRow:
    """What one UNet row reads: latents (4, h, w) at noise level sigma (0-dim), and a context (tokens, 768)."""

    latents: Tensor
    sigma: Tensor
    context: Tensor


class StableDiffusion(Protocol):
    """The model, as its host offers it."""

    def tokenize(self, caption: str) -> Sequence[Any]:
        """Return a caption as pieces of 77 tokens; each is one row of the text encoder."""
        ...

    def text_encoder(self) -> AbstractContextManager[Network]:
        """Open the text encoder; rows are token pieces, its forward returns contexts (rows, 77, 768)."""
        ...

    def unet(self) -> AbstractContextManager[Network]:
        """Open the UNet; rows are `UnetRow` with contexts of one length, its forward returns estimates of the clean latents.

        Layers that read the context are of the stream `TEXT_STREAM`.
        """
        ...

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels of a sampling run, (steps + 1,), ending in 0."""
        ...

    def is_text_module(self, path: str) -> bool:
        """Tell the text encoder's module paths from the UNet's."""
        ...


@dataclass(frozen=True)
class PromptedAdapter:
    """A LoRA to merge.

    Args:
        adapter: At the strengths at which the user would use it.
        prompts: What it is for; with its trigger words.
        weight: Of its task, relative to the others'.
    """

    adapter: Adapter
    prompts: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class _Plan:
    """One task before its samples exist: a caption per sampling run."""

    name: str
    mix: Mapping[int, float]
    weight: float
    captions: tuple[str, ...]
    unconditional_share: float


def merge_stable_diffusion(
    model: StableDiffusion,
    loras: Sequence[PromptedAdapter],
    calibration: Calibration,
    config: MergeConfig,
    progress: StageProgress | None = None,
) -> MergeResult:
    """Merge LoRAs of one Stable Diffusion model, text encoder and UNet.

    Args:
        model: The base model, in its host.
        loras: One or more; those of strength 0 are left out.
        calibration: How samples are made.
        config: How layers are solved.
        progress: Told about stages and steps; may raise to cancel.

    Raises:
        IterisError: Nothing to merge, unusable prompts, or what `merge` raises.
    """
    used = [lora for lora in loras if not lora.adapter.is_idle]
    if not used:
        raise AdapterError("none of the LoRAs changes anything: every strength is 0, or the files hold no weights")
    adapters = [lora.adapter for lora in used]
    plans = _plans(used, calibration)
    text = [adapter.select(model.is_text_module) for adapter in adapters]
    unet = [adapter.select(lambda path: not model.is_text_module(path)) for adapter in adapters]
    tell = progress or (lambda stage, done, total: None)

    contexts, parts = _sweep_text(model, text, plans, calibration, config, partial(tell, TEXT_STAGE))
    if any(adapter.deltas for adapter in unet):
        with model.unet() as network:
            latents = _sample(model, network, unet, plans, calibration, contexts, config, partial(tell, SAMPLING_STAGE))
            tasks = [
                Task(plan.name, _unet_samples(g, plan, calibration, contexts, latents[g]), _mix_in(unet, plan.mix), plan.weight)
                for g, plan in enumerate(plans)
            ]
            parts.append(merge(network, unet, tasks, config, progress=partial(tell, UNET_STAGE)))
    deltas = {path: delta for part in parts for path, delta in part.adapter.deltas.items()}
    idle = [lora.adapter.name for lora in loras if lora.adapter.is_idle]
    vectors = mean_vectors(adapters)
    report = joined(*(part.report for part in parts))
    report = replace(
        report,
        unmatched={adapter.name: adapter.unmatched for adapter in adapters if adapter.unmatched},
        notes=tuple(_notes(idle, vectors)),
        settings={"calibration": asdict(calibration), "config": _as_json(config), "loras": [_recipe(lora) for lora in loras]},
    )
    return MergeResult(Adapter(" + ".join(adapter.name for adapter in adapters), deltas, vectors=vectors), report)


def _notes(idle: Sequence[str], vectors: Mapping[str, Tensor]) -> list[str]:
    notes = []
    if idle:
        notes.append(f"left out, since their strength is 0: {', '.join(idle)}")
    if vectors:
        notes.append(f"{len(vectors)} bias and norm changes are merged by their mean; calibration ran without them")
    return notes


def _plans(loras: Sequence[PromptedAdapter], calibration: Calibration) -> list[_Plan]:
    plans = []
    for k, lora in enumerate(loras):
        try:
            captions = own_captions(lora.prompts, calibration, calibration.seed + k)
        except CalibrationError as error:
            raise CalibrationError(f"LoRA {lora.adapter.name!r}: {error}") from error
        plans.append(_Plan(lora.adapter.name, {k: 1.0}, lora.weight, tuple(captions), calibration.unconditional_share))
    names = [plan.name for plan in plans]
    plans = [p if names.count(p.name) == 1 else replace(p, name=f"{p.name} ({k + 1})") for k, p in enumerate(plans)]
    if calibration.preserve_weight:
        # as many rows as one adapter has; its empty captions take the place of unconditional rows
        runs = round(calibration.trajectories * (1 + calibration.unconditional_share))
        captions = tuple(base_captions(calibration, runs))
        plans.append(_Plan("base model (preserve)", {}, calibration.preserve_weight, captions, 0.0))
    return plans


def _mix_in(adapters: Sequence[Adapter], mix: Mapping[int, float]) -> dict[int, float]:
    """Return what a mix means for one part of the model; rows of adapters without that part run through the base."""
    return {k: share for k, share in mix.items() if adapters[k].deltas}


@dataclass(frozen=True)
class _Context:
    """A caption as its teacher and as the student read it, (tokens, 768) each, and the tokens' weights."""

    teacher: Tensor
    student: Tensor
    weights: Tensor | None

    @classmethod
    def repeated(cls, teacher: Tensor, student: Tensor, times: int) -> _Context:
        """Repeat a short context to the length of the longest: attention stays the same, and each token counts once."""
        if times == 1:
            return cls(teacher, student, None)
        teacher, student = teacher.repeat(times, 1), student.repeat(times, 1)
        return cls(teacher, student, torch.full((len(teacher),), 1 / times))


_Contexts = Mapping[tuple[int, str], _Context]  # by task and caption


def _sweep_text(
    model: StableDiffusion,
    adapters: Sequence[Adapter],
    plans: Sequence[_Plan],
    calibration: Calibration,
    config: MergeConfig,
    progress: Callable[[int, int], None],
) -> tuple[_Contexts, list[MergeResult]]:
    """Merge the text encoder's part, and encode every caption as its teacher and as the student read it."""
    wanted = [list(dict.fromkeys([*plan.captions, calibration.negative_prompt])) for plan in plans]
    pieces = [{caption: model.tokenize(caption) for caption in captions} for captions in wanted]
    samples = [[Sample(piece) for caption in captions for piece in pieces[g][caption]] for g, captions in enumerate(wanted)]
    with model.text_encoder() as network:
        if any(adapter.deltas for adapter in adapters):
            tasks = [Task(p.name, samples[g], _mix_in(adapters, p.mix), p.weight) for g, p in enumerate(plans)]
            result = merge(network, adapters, tasks, config, progress=progress)
            rows, results = result.outputs, [result]
        else:
            with torch.no_grad():
                rows = [[(row, row) for row in network.forward([sample.teacher for sample in task])] for task in samples]
            results = []
    contexts = {}
    longest = _common_length([caption_pieces for of_task in pieces for caption_pieces in of_task.items()])
    for g, captions in enumerate(wanted):
        left = iter(rows[g])
        for caption in captions:
            count = len(pieces[g][caption])
            pairs = [next(left) for _ in range(count)]
            teacher, student = (torch.cat(side) for side in zip(*pairs, strict=True))
            contexts[g, caption] = _Context.repeated(teacher, student, longest // count)
    return contexts, results


def _common_length(pieces: Sequence[tuple[str, Sequence[Any]]]) -> int:
    """Return the number of pieces to which every caption's context can be repeated a whole number of times."""
    caption, longest = max(pieces, key=lambda item: len(item[1]))
    if len(longest) > _MOST_PIECES:
        raise CalibrationError(
            f"the prompt {caption[:40]!r}... has {len(longest)} pieces of 75 tokens; calibration can use prompts of up to "
            f"{_MOST_PIECES}. Write shorter ones: trigger words and a few others are enough"
        )
    return math.lcm(*(len(of_caption) for _, of_caption in pieces))


def _sample(
    model: StableDiffusion,
    network: Network,
    adapters: Sequence[Adapter],
    plans: Sequence[_Plan],
    calibration: Calibration,
    contexts: _Contexts,
    config: MergeConfig,
    progress: Callable[[int, int], None],
) -> list[list[list[tuple[Tensor, Tensor]]]]:
    """Run every task's own teacher, and return the kept (latents, sigma) of task g's run i as ``[g][i]``."""
    sigmas = model.sigmas(calibration.sampling_steps).float().cpu()
    side = calibration.resolution // 8
    runs = [(g, i) for g, plan in enumerate(plans) for i in range(len(plan.captions))]
    batches = [runs[start : start + config.samples_per_chunk] for start in range(0, len(runs), config.samples_per_chunk)]
    kept: list[list[list[tuple[Tensor, Tensor]]]] = [[] for _ in plans]
    done, total = 0, len(batches) * calibration.sampling_steps

    for batch in batches:
        texts = [contexts[g, plans[g].captions[i]].teacher for g, i in batch]
        negatives = [contexts[g, calibration.negative_prompt].teacher for g, _ in batch]

        def denoise(x: Tensor, sigma: Tensor, texts: list[Tensor] = texts, negatives: list[Tensor] = negatives) -> Tensor:
            nonlocal done
            rows = [UnetRow(latents, sigma, text) for latents, text in zip([*x, *x], [*texts, *negatives], strict=True)]
            conditional, unconditional = network.forward(rows).float().cpu().chunk(2)
            done += 1
            progress(done, total)
            return unconditional + calibration.cfg * (conditional - unconditional)

        # seeds differ between tasks, so that no two rows of the merge see the same latents
        seeds = [calibration.seed * 1_000_003 + g * 1009 + i for g, i in batch]
        start = torch.stack([noise((4, side, side), seed) for seed in seeds])
        mixes = [_mix_in(adapters, plans[g].mix) for g, _ in batch]
        with torch.no_grad(), wearing(network.modules, adapters, mixes * 2):
            seen = euler_trajectory(denoise, start, sigmas)
        for row, (g, i) in enumerate(batch):
            kept[g].append([(seen[step][row], sigmas[step]) for step in kept_steps(calibration, i)])
    return kept


def _unet_samples(
    g: int, plan: _Plan, calibration: Calibration, contexts: _Contexts, runs: Sequence[Sequence[tuple[Tensor, Tensor]]]
) -> list[Sample]:
    """Return a task's UNet samples: each kept latent with its caption, and a share of them with the negative prompt."""
    samples = []
    for i, (caption, latents) in enumerate(zip(plan.captions, runs, strict=True)):
        for j, (x, sigma) in enumerate(latents):
            guided = is_chosen(j, plan.unconditional_share, i)
            for text in [caption, calibration.negative_prompt] if guided else [caption]:
                context = contexts[g, text]
                weights = {TEXT_STREAM: context.weights} if context.weights is not None else {}
                samples.append(Sample(UnetRow(x, sigma, context.teacher), UnetRow(x, sigma, context.student), weights))
    return samples


def _as_json(config: MergeConfig) -> dict[str, Any]:
    return {**asdict(config), "output_dtype": str(config.output_dtype).removeprefix("torch.")}


def _recipe(lora: PromptedAdapter) -> dict[str, Any]:
    return {"name": lora.adapter.name, "prompts": list(lora.prompts), "weight": lora.weight}
