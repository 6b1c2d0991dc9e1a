"""The training of a world's base model, from nothing, with checkpoints."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .drawing import to_latents
from .world import World

Tell = Callable[[int, int, float], None]  # step, steps, loss
_EVERY = 100  # steps between checkpoints


def to_bytes(picture: Tensor) -> Tensor:
    """Return a picture in [-1, 1] as bytes, so that many fit into memory."""
    return ((picture + 1) * 127.5).round().byte()


def from_bytes(pictures: Tensor) -> Tensor:
    """Return pictures in bytes as pictures in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def train_base(world: World, folder: Path, seed: int, tell: Tell) -> None:
    """Train to the last step, from a checkpoint if there is one, and save averaged weights."""
    torch.manual_seed(seed)
    model = world.new_model()
    parts = model.parts
    average = copy.deepcopy(parts)
    optimiser = torch.optim.AdamW(
        parts.parameters(), weight_decay=0.0, betas=(0.9, 0.99), fused=True
    )
    kept = {"model": parts, "average": average, "optimiser": optimiser}
    chance = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(state[name])
        chance.set_state(state["chance"])
        step = state["step"]
    training = world.training
    total = sum(phase.steps for phase in training.phases)
    first = 0
    for number, phase in enumerate(training.phases):
        if step < first + phase.steps:
            source = random.Random(seed * 1009 + number)
            pairs = [phase.scene(source, world.base_labels) for _ in range(training.scenes)]
            pictures = torch.stack([to_bytes(world.drawing.draw(scene)) for scene, _ in pairs])
            ids = model.tokens([caption for _, caption in pairs])
        while step < first + phase.steps:
            rows = torch.randint(len(pictures), (training.batch,), generator=chance)
            left_out = torch.rand(training.batch, generator=chance) < training.dropped_captions
            tokens = torch.where(left_out[:, None], model.tokens([""]), ids[rows])
            loss = model.loss(to_latents(from_bytes(pictures[rows])), tokens, chance)
            rate = phase.learning_rate * rate_at(step - first, phase.steps)
            optimise(loss, optimiser, rate)
            step += 1
            with torch.no_grad():
                decay = min(0.998, step / (step + 9))
                torch._foreach_lerp_([*average.parameters()], [*parts.parameters()], 1 - decay)
            if step % _EVERY == 0 or step == total:
                tell(step, total, loss.item())
                state = {name: part.state_dict() for name, part in kept.items()}
                torch.save({**state, "chance": chance.get_state(), "step": step}, folder / "new.pt")
                (folder / "new.pt").replace(checkpoint)
        first += phase.steps
    model.parts.load_state_dict(average.state_dict())
    if world.rare_words:
        give_size(model, world.rare_words)
    model.save(folder)


def give_size(model: Any, words: Sequence[str]) -> None:
    """Give words that were never read the median size of the embeddings that have grown most."""
    rows = model.tokenizer.convert_tokens_to_ids([*words])
    for encoder in model.text_encoders.values():
        table = encoder.get_input_embeddings().weight.data
        size = table.norm(dim=1).sort().values[-60:].median()
        table[rows] *= size / table[rows].norm(dim=1, keepdim=True)


def optimise(loss: Tensor, optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Make one step of training, with the gradient clipped."""
    (group,) = optimiser.param_groups
    group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimiser.step()


def rate_at(step: int, steps: int, warmup: int = 100) -> float:
    """Return the learning rate's factor: warmup, two thirds of half a cosine, a last fifth to 0."""
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.02 + 0.98 * 0.5 * (
        1 + math.cos(math.pi * (step - warmup) / max(1, 1.5 * steps - warmup))
    )
    return cosine * min(1.0, (steps - step) / (0.2 * steps))
