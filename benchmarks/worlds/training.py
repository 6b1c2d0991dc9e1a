"""The training of a world's base model, from nothing, with checkpoints."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .drawing import Drawing, Label, to_latents
from .settings import BaseSettings
from .world import World

Tell = Callable[[int, int, float], None]  # step, steps, loss


class Model(Protocol):
    """A model of pictures and captions that can be trained."""

    @property
    def parts(self) -> nn.ModuleDict:
        """Return what is trained."""
        ...

    def tokens(self, captions: list[str]) -> Tensor:
        """Return token ids (captions, length)."""
        ...

    def loss(
        self, clean: Tensor, tokens: Tensor, chance: torch.Generator, weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss of clean latents at random noise levels."""
        ...

    def save(self, folder: Path) -> None: ...


class LoraModel(Model, Protocol):
    """A model on which LoRAs can be trained."""

    def lora_layers(self, kinds: Sequence[str], *, text: bool) -> dict[str, list[str]]:
        """Return part -> names of its layers of these kinds."""
        ...

    def save_loras(self, folder: Path, name: str) -> None:
        """Save the LoRAs that PEFT has put into the parts."""
        ...


def training_data(
    settings: BaseSettings, number: int, drawing: Drawing, labels: list[Label], model: Model
) -> tuple[Tensor, Tensor]:
    """Return a phase's pictures as bytes (n, 3, 24, 24) and token ids (n, length)."""
    chance = random.Random(settings.seed * 1009 + number)
    pairs = [settings.phases[number].scene(chance, labels) for _ in range(settings.scenes)]
    pictures = torch.stack(
        [((drawing.draw(scene) + 1) * 127.5).round().byte() for scene, _ in pairs]
    )
    return pictures, model.tokens([caption for _, caption in pairs])


def train_base(
    world: World,
    settings: BaseSettings,
    folder: Path,
    tell: Tell,
    *,
    every: int = 100,
) -> float:
    """Train to the last step, from a checkpoint in the folder if there is one; save averaged
    weights, return the seconds.
    """
    torch.manual_seed(settings.seed)
    model = world.new_model()
    parts = model.parts
    run = _Run(
        model,
        parts,
        copy.deepcopy(parts),
        torch.optim.AdamW(parts.parameters(), weight_decay=0.0, betas=(0.9, 0.99), fused=True),
    )
    run.chance.manual_seed(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(torch.load(checkpoint, weights_only=True))
    total = sum(phase.steps for phase in settings.phases)
    first = 0
    for number, phase in enumerate(settings.phases):
        if run.step < first + phase.steps:
            pictures, ids = training_data(settings, number, world.drawing, world.base_labels, model)
        while run.step < first + phase.steps:
            began = time.perf_counter()
            rows = torch.randint(len(pictures), (settings.batch,), generator=run.chance)
            rate = phase.learning_rate * rate_at(run.step - first, phase.steps)
            loss = run.train(
                to_latents(pictures[rows].float() / 127.5 - 1),
                ids[rows],
                rate,
                settings.dropped_captions,
            )
            run.seconds += time.perf_counter() - began
            if run.step % every == 0 or run.step == total:
                tell(run.step, total, loss)
                torch.save(run.state(), folder / "new.pt")
                (folder / "new.pt").replace(checkpoint)
        first += phase.steps
    finish(model, run.average, world.rare_tokens(model), folder)
    return run.seconds


def finish(model: Model, average: nn.Module, triggers: list[int], folder: Path) -> None:
    """Save the averaged weights, with words that were never read at the size of trained ones."""
    model.parts.load_state_dict(average.state_dict())
    table = model.parts["text_encoder"].get_input_embeddings().weight.data
    if triggers:
        table[triggers] *= trained_size(table) / table[triggers].norm(dim=1, keepdim=True)
    model.save(folder)


def trained_size(table: Tensor) -> Tensor:
    """Return the median size of the embeddings that have grown from where they began."""
    return table.norm(dim=1).sort().values[-60:].median()


@dataclass
class _Run:
    owner: Model
    model: nn.ModuleDict
    average: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    chance: torch.Generator = field(default_factory=torch.Generator)
    step: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        parts = {
            name: getattr(self, name).state_dict() for name in ("model", "average", "optimiser")
        }
        return {
            **parts,
            "chance": self.chance.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("model", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.chance.set_state(state["chance"])
        self.step = state["step"]
        self.seconds = state["seconds"]

    def train(self, clean: Tensor, tokens: Tensor, rate: float, dropped: float) -> float:
        """Make one step, and return the loss."""
        leave_out = torch.rand(len(clean), generator=self.chance) < dropped
        tokens = torch.where(leave_out[:, None], self.owner.tokens([""]), tokens)
        loss = self.owner.loss(clean, tokens, self.chance)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        _average(self.average, self.model, min(0.998, self.step / (self.step + 9)))
        return loss.item()


def rate_at(step: int, steps: int, warmup: int = 100) -> float:
    """Return the factor on the learning rate: a linear warmup, two thirds of half a cosine, and a
    last fifth falling to 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.02 + 0.98 * 0.5 * (
        1 + math.cos(math.pi * (step - warmup) / max(1, 1.5 * steps - warmup))
    )
    return cosine * min(1.0, (steps - step) / (0.2 * steps))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
