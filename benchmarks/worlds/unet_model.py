"""Small UNets of the worlds of `words`: the classes of SD1.5 and SDXL, and their schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from iteris_core.diffusion.diffusers_model import DiffusersModel

from .model import CELLS, CHANNELS, WorldModel, new_text_encoder


@dataclass(frozen=True)
class UnetModel(WorldModel):
    """A UNet that predicts the clean sample."""

    prediction: ClassVar[str] = "sample"
    part = "unet"
    denoiser_class = "UNet2DConditionModel"
    pipeline_class = "StableDiffusionPipeline"
    lora_names: ClassVar = {
        "attention": ["to_q", "to_k", "to_v", "to_out.0"],
        "feed_forward": ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
        "convolution": ["conv1", "conv2"],
    }
    text_lora_names = ("q_proj", "k_proj", "v_proj", "out_proj")

    @cached_property
    def scheduler(self) -> Any:
        return DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=self.prediction,
            clip_sample=False,
        )

    @classmethod
    def new(cls, tokenizer: Any, *, widths: tuple[int, int] = (64, 96)) -> UnetModel:
        text_encoder = new_text_encoder(tokenizer)
        unet = UNet2DConditionModel(
            sample_size=CELLS,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=widths,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=16,
            norm_num_groups=16,
        )
        return cls(unet, text_encoder, tokenizer)

    def loss(self, clean: Tensor, tokens: Tensor, chance: torch.Generator) -> Tensor:
        """Return the mean squared error of what is predicted, at uniform timesteps."""
        count = self.scheduler.config.num_train_timesteps
        steps = torch.randint(count, (len(clean),), generator=chance)
        noise = torch.randn(clean.shape, generator=chance)
        noisy = self.scheduler.add_noise(clean, noise, steps)
        output = self.denoiser(noisy, steps, **self.read(tokens)).sample
        return self.errors(output, clean, noise, steps).flatten(1).mean(1).mean()

    def errors(self, output: Tensor, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return the squared errors of outputs."""
        return (output - clean).pow(2)

    def read(self, tokens: Tensor) -> dict[str, Any]:
        """Return what the UNet reads of captions."""
        return {"encoder_hidden_states": self.text_encoder(tokens).last_hidden_state}

    def product(self) -> ProbedModel:
        tokenizers = {
            name.replace("text_encoder", "tokenizer"): self.tokenizer for name in self.text_encoders
        }
        parts = {**self.text_encoders, **tokenizers}
        return ProbedModel(self.denoiser, scheduler=self.scheduler, **parts)


@dataclass(frozen=True)
class EpsilonModel(UnetModel):
    """A UNet that predicts the noise."""

    prediction = "epsilon"

    def errors(self, output: Tensor, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return squared errors that count more where much noise hides what is drawn."""
        alphas = self.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
        return ((1 - alphas) / alphas).clamp(1, 25) * (output - noise).pow(2)


@dataclass(frozen=True)
class XlModel(UnetModel):
    """SDXL's build: two text encoders, no attention at the full size, deeper transformers below.

    Args:
        text_encoder_2: `CLIPTextModelWithProjection`.
    """

    text_encoder_2: Any = None

    pipeline_class = "StableDiffusionXLPipeline"

    @classmethod
    def new(cls, tokenizer: Any, *, widths: tuple[int, int, int] = (64, 96, 128)) -> XlModel:
        unet = UNet2DConditionModel(
            sample_size=CELLS,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            cross_attention_dim=128,
            attention_head_dim=tuple(width // 16 for width in widths),
            use_linear_projection=True,
            norm_num_groups=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=64 + 6 * 16,
        )
        first = new_text_encoder(tokenizer, layers=3)
        second = new_text_encoder(tokenizer, layers=3, projected=True)
        return cls(unet, first, tokenizer, second)

    @property
    def text_encoders(self) -> dict[str, Any]:
        return {**super().text_encoders, "text_encoder_2": self.text_encoder_2}

    @classmethod
    def load_text(cls, folder: Path) -> dict[str, Any]:
        from transformers import CLIPTextModelWithProjection

        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        return {**super().load_text(folder), "text_encoder_2": second}

    def read(self, tokens: Tensor) -> dict[str, Any]:
        written = [
            encoder(tokens, output_hidden_states=True) for encoder in self.text_encoders.values()
        ]
        side = 8 * CELLS
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(tokens))
        return {
            "encoder_hidden_states": torch.cat([text.hidden_states[-2] for text in written], -1),
            "added_cond_kwargs": {"text_embeds": written[-1].text_embeds, "time_ids": sizes},
        }


class ProbedModel(DiffusersModel):
    """The model with the noise levels of the probes' sampling."""

    def probe_sigmas(self, steps: int) -> Tensor:
        """Return noise levels of a sampling run, (steps + 1,), evenly from the last timestep."""
        count = len(self.training_sigmas)
        timesteps = [round(count - i * count / steps) - 1 for i in range(steps)]
        return torch.cat([self.training_sigmas[timesteps], torch.zeros(1)]).float()
