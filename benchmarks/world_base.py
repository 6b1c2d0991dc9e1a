"""The base model of benchmarks/world.py: a small Stable Diffusion (UNet, CLIP text model, DDPM),
trained from nothing.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from world_scenes import (
    MAX_TOKENS,
    TRIGGERS,
    Places,
    base_labels,
    draw,
    make_tokenizer,
    random_scene,
    to_latents,
)

Tell = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True)
class Phase:
    """A part of the training: how things lie, see `world_scenes.placed`, and the share of pictures
    with two things.
    """

    steps: int
    learning_rate: float
    places: Places
    pair_share: float = 0.65


@dataclass(frozen=True)
class BaseSettings:
    """How the base model is trained."""

    widths: tuple[int, int] = (64, 96)
    phases: tuple[Phase, ...] = (
        Phase(2000, 1e-3, "loose"),
        Phase(1000, 8e-4, "snapped"),
        Phase(800, 8e-4, "fixed"),
        Phase(1100, 8e-4, "fixed"),
        Phase(3000, 6e-4, "fixed", pair_share=0.85),
    )
    batch: int = 64
    scenes: int = 30_000
    dropped_captions: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class World:
    """A trained model in the parts of a `StableDiffusionPipeline`."""

    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    def tokens(self, captions: list[str]) -> Tensor:
        """Return token ids (captions, MAX_TOKENS)."""
        return self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids


def new_world(settings: BaseSettings) -> World:
    """Return the untrained model; SD1.5's classes and noise schedule, but the UNet predicts the
    clean sample.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=27,
        out_channels=27,
        block_out_channels=settings.widths,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=16,
        norm_num_groups=16,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
    )
    return World(unet, text, tokenizer, scheduler)


def training_data(settings: BaseSettings, phase: Phase, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return pictures as bytes (n, 3, 24, 24) and token ids (n, MAX_TOKENS)."""
    chance = random.Random(settings.seed)
    labels = base_labels()
    pairs = [
        random_scene(chance, labels, pair_share=phase.pair_share, places=phase.places)
        for _ in range(settings.scenes)
    ]
    pictures = torch.stack([((draw(scene) + 1) * 127.5).round().byte() for scene, _ in pairs])
    ids = tokenizer(
        [caption for _, caption in pairs],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return pictures, ids


def train_base(settings: BaseSettings, folder: Path, tell: Tell, *, every: int = 100) -> float:
    """Train to the last step, from a checkpoint in the folder if there is one; save averaged
    weights, return the seconds.
    """
    torch.manual_seed(settings.seed)
    world = new_world(settings)
    model = nn.ModuleDict({"unet": world.unet, "text_encoder": world.text_encoder})
    run = _Run(
        world,
        model,
        copy.deepcopy(model),
        torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.99)),
    )
    run.chance.manual_seed(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        run.restore(torch.load(checkpoint, weights_only=True))
    total = sum(phase.steps for phase in settings.phases)
    for phase in settings.phases:
        if run.step < first + phase.steps:
            pictures, ids = training_data(settings, phase, world.tokenizer)
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
    finish(world, run.average, folder)
    return run.seconds


@dataclass
class _Run:
    world: World
    model: nn.Module
    average: nn.Module
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
        tokens = torch.where(leave_out[:, None], self.world.tokens([""]), tokens)
        loss = denoising_loss(self.world, clean, tokens, self.chance)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        _average(self.average, self.model, min(0.998, self.step / (self.step + 9)))
        return loss.item()


def finish(world: World, average: nn.Module, folder: Path) -> None:
    """Save the averaged weights as a pipeline's parts, trigger words at the size of trained
    ones.
    """
    world.unet.load_state_dict(average["unet"].state_dict())
    world.text_encoder.load_state_dict(average["text_encoder"].state_dict())
    table = world.text_encoder.get_input_embeddings().weight.data
    triggers = world.tokenizer.convert_tokens_to_ids(list(TRIGGERS))
    words = [i for i in range(len(table)) if i not in triggers]
    table[triggers] *= table[words].norm(dim=1).median() / table[triggers].norm(dim=1, keepdim=True)
    for name in ("unet", "text_encoder", "tokenizer", "scheduler"):
        getattr(world, name).save_pretrained(folder / name)


def denoising_loss(
    world: World,
    clean: Tensor,
    tokens: Tensor,
    chance: torch.Generator,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of the predicted clean latents, at uniform timesteps."""
    steps = torch.randint(
        world.scheduler.config.num_train_timesteps, (len(clean),), generator=chance
    )
    noisy = world.scheduler.add_noise(clean, torch.randn(clean.shape, generator=chance), steps)
    context = world.text_encoder(tokens).last_hidden_state
    errors = (world.unet(noisy, steps, context).sample - clean).pow(2).flatten(1).mean(1)
    return errors.mean() if weights is None else (errors * weights).sum() / weights.sum()


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


def load_base(folder: Path) -> World:
    """Return a trained world from its folder."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

    world = World(
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        DDPMScheduler.from_pretrained(folder / "scheduler"),
    )
    for part in (world.unet, world.text_encoder):
        part.requires_grad_(False).eval()
    return world
