"""Stable Diffusion 1.5: captions and sampling runs become tasks; the text encoder is swept first, then the UNet.

Whoever holds the model (a ComfyUI node, a diffusers pipeline) implements `StableDiffusion`; this file knows neither.
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
from ..calibration import Calibration, euler_trajectory, kept_steps, noise
from ..config import MergeConfig
from ..errors import AdapterError
from ..memory import with_smaller_calls
from ..merge import MergeResult, merge
from ..network import Network
from ..report import joined
from ..rows import wearing
from ..tasks import Sample, Task
from .diffusion_samples import (
    Context,
    Contexts,
    Plan,
    PromptedAdapter,
    UnetRow,
    common_length,
    make_plans,
    mix_in,
    unet_samples,
)

# (name of the stage, steps done, steps in all); may raise to cancel.
StageProgress = Callable[[str, int, int], None]
TEXT_STAGE, SAMPLING_STAGE, UNET_STAGE = "Text encoder", "Sampling", "UNet"


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

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a picture with this side in pixels."""
        ...

    def is_text_module(self, path: str) -> bool:
        """Tell the text encoder's module paths from the UNet's."""
        ...


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
    plans = make_plans(used, calibration)
    text = [adapter.select(model.is_text_module) for adapter in adapters]
    unet = [adapter.select(lambda path: not model.is_text_module(path)) for adapter in adapters]
    tell = progress or (lambda stage, done, total: None)

    contexts, parts = _sweep_text(
        model, text, plans, calibration, config_of_part(config, text, adapters), partial(tell, TEXT_STAGE)
    )
    if any(adapter.deltas for adapter in unet):
        with model.unet() as network:
            latents = with_smaller_calls(
                lambda size: _sample(model, network, unet, plans, calibration, contexts, size, partial(tell, SAMPLING_STAGE)),
                config.samples_per_chunk,
                "sampling",
            )
            tasks = [
                Task(plan.name, unet_samples(g, plan, calibration, contexts, latents[g]), mix_in(unet, plan.mix), plan.weight)
                for g, plan in enumerate(plans)
            ]
            part = config_of_part(config, unet, adapters)
            parts.append(merge(network, unet, tasks, part, progress=partial(tell, UNET_STAGE)))
    deltas = {path: delta for part in parts for path, delta in part.adapter.deltas.items()}
    idle = [lora.adapter.name for lora in loras if lora.adapter.is_idle]
    vectors = mean_vectors(adapters)
    report = joined(*(part.report for part in parts))
    report = replace(
        report,
        unmatched={adapter.name: adapter.unmatched for adapter in adapters if adapter.unmatched},
        notes=tuple(_notes(idle, vectors)),
        settings={"calibration": asdict(calibration), "config": config.to_dict(), "loras": [_recipe(lora) for lora in loras]},
    )
    return MergeResult(Adapter(" + ".join(adapter.name for adapter in adapters), deltas, vectors=vectors), report)


def _notes(idle: Sequence[str], vectors: Mapping[str, Tensor]) -> list[str]:
    notes = []
    if idle:
        notes.append(f"left out, since their strength is 0: {', '.join(idle)}")
    if vectors:
        notes.append(f"{len(vectors)} bias and norm changes are merged by their mean; calibration ran without them")
    return notes


def _sweep_text(
    model: StableDiffusion,
    adapters: Sequence[Adapter],
    plans: Sequence[Plan],
    calibration: Calibration,
    config: MergeConfig,
    progress: Callable[[int, int], None],
) -> tuple[Contexts, list[MergeResult]]:
    """Merge the text encoder's part, and encode every caption as its teacher and as the student read it."""
    wanted = [list(dict.fromkeys([*plan.captions, calibration.negative_prompt])) for plan in plans]
    pieces = [{caption: model.tokenize(caption) for caption in captions} for captions in wanted]
    samples = [[Sample(piece) for caption in captions for piece in pieces[g][caption]] for g, captions in enumerate(wanted)]
    with model.text_encoder() as network:
        if any(adapter.deltas for adapter in adapters):
            tasks = [Task(p.name, samples[g], mix_in(adapters, p.mix), p.weight) for g, p in enumerate(plans)]
            result = merge(network, adapters, tasks, config, progress=progress)
            rows, results = result.outputs, [result]
        else:
            with torch.no_grad():
                rows = [[(row, row) for row in network.forward([sample.teacher for sample in task])] for task in samples]
            results = []
    contexts = {}
    longest = common_length([caption_pieces for of_task in pieces for caption_pieces in of_task.items()])
    for g, captions in enumerate(wanted):
        left = iter(rows[g])
        for caption in captions:
            count = len(pieces[g][caption])
            pairs = [next(left) for _ in range(count)]
            teacher, student = (torch.cat(side) for side in zip(*pairs, strict=True))
            contexts[g, caption] = Context.repeated(teacher, student, longest // count)
    return contexts, results


def _sample(
    model: StableDiffusion,
    network: Network,
    adapters: Sequence[Adapter],
    plans: Sequence[Plan],
    calibration: Calibration,
    contexts: Contexts,
    runs_per_call: int,
    progress: Callable[[int, int], None],
) -> list[list[list[tuple[Tensor, Tensor]]]]:
    """Run every task's own teacher, and return the kept (latents, sigma) of task g's run i as ``[g][i]``."""
    sigmas = model.sigmas(calibration.sampling_steps).float().cpu()
    shape = model.latent_shape(calibration.resolution)
    runs = [(g, i) for g, plan in enumerate(plans) for i in range(len(plan.captions))]
    batches = [runs[start : start + runs_per_call] for start in range(0, len(runs), runs_per_call)]
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
        start = torch.stack([noise(shape, seed) for seed in seeds])
        mixes = [mix_in(adapters, plans[g].mix) for g, _ in batch]
        with torch.no_grad(), wearing(network.modules, adapters, mixes * 2):
            seen = euler_trajectory(denoise, start, sigmas)
        for row, (g, i) in enumerate(batch):
            kept[g].append([(seen[step][row], sigmas[step]) for step in kept_steps(calibration, i)])
    return kept


def config_of_part(config: MergeConfig, part: Sequence[Adapter], whole: Sequence[Adapter]) -> MergeConfig:
    """Return the settings for one part of the model: its ranks, and its share of a total size."""
    if isinstance(config.rank, Mapping):
        paths = target_layers(part)
        return replace(config, rank={path: rank for path, rank in config.rank.items() if path in paths})
    if config.size is None:
        return config
    uncut = [sum(d.rank * sum(d.shape) for adapter in group for d in adapter.deltas.values()) for group in (part, whole)]
    return replace(config, size=max(1, config.size * uncut[0] // uncut[1]))


def _recipe(lora: PromptedAdapter) -> dict[str, Any]:
    return {"name": lora.adapter.name, "prompts": list(lora.prompts), "weight": lora.weight}
