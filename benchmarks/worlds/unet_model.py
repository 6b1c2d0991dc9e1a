"""A small Stable Diffusion: a UNet and a CLIP text model, as the world "words" trains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from iteris_core.diffusion.pipeline import DiffusersModel
from iteris_core.network import Network

UNET_LAYERS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "feed_forward": ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
    "convolution": ["conv1", "conv2"],
}
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class UnetModel:
    """A model in the parts of a `StableDiffusionPipeline`."""

    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    @property
    def parts(self) -> nn.ModuleDict:
        """Return what is trained."""
        return nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})

    def tokens(self, captions: list[str]) -> Tensor:
        """Return token ids (captions, length)."""
        return self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def loss(
        self, clean: Tensor, tokens: Tensor, chance: torch.Generator, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error of the clean latents, at uniform timesteps."""
        steps = torch.randint(
            self.scheduler.config.num_train_timesteps, (len(clean),), generator=chance
        )
        noisy = self.scheduler.add_noise(clean, torch.randn(clean.shape, generator=chance), steps)
        context = self.text_encoder(tokens).last_hidden_state
        output = self.unet(noisy, steps, context).sample
        errors = (output - clean).pow(2).flatten(1).mean(1)
        return errors.mean() if weights is None else (errors * weights).sum() / weights.sum()

    def save(self, folder: Path) -> None:
        for name in ("unet", "text_encoder", "tokenizer", "scheduler"):
            getattr(self, name).save_pretrained(folder / name)

    def lora_layers(self, kinds: Sequence[str], *, text: bool) -> dict[str, list[str]]:
        """Return part -> names of its layers of these kinds."""
        layers = {"unet": [name for kind in kinds for name in UNET_LAYERS[kind]]}
        return layers | ({"text_encoder": TEXT_LAYERS} if text else {})

    def save_loras(self, folder: Path, name: str) -> None:
        """Save the LoRAs that PEFT has put into the parts."""
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        has_text = hasattr(self.text_encoder, "peft_config")
        text = get_peft_model_state_dict(self.text_encoder) if has_text else None
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(self.unet),
            text_encoder_lora_layers=text,
            weight_name=name,
        )


def new_unet_model(
    tokenizer: Any,
    *,
    length: int,
    widths: tuple[int, int] = (64, 96),
    **unet: Any,
) -> UnetModel:
    """Return an untrained model; SD1.5's classes and noise schedule."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=length,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=27,
        out_channels=27,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=16,
        norm_num_groups=16,
        **unet,
    )
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type="sample", clip_sample=False)
    return UnetModel(model, text, tokenizer, scheduler)


def load_unet_model(folder: Path, tokenizer: Any) -> UnetModel:
    """Return a trained model from its folder."""
    from transformers import CLIPTextModel

    model = UnetModel(
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer,
        DDPMScheduler.from_pretrained(folder / "scheduler"),
    )
    model.parts.requires_grad_(False).eval()
    return model


class RememberingModel(DiffusersModel):
    """Keeps the teachers' sampling runs, which do not depend on how is merged."""

    memory: dict[str, Any]

    @contextmanager
    def denoiser(self) -> Iterator[Network]:
        with super().denoiser() as network:
            yield replace(network, memory=self.memory)


def remembering(model: UnetModel, memory: dict[str, Any]) -> RememberingModel:
    """Return a model as the product sees it, which keeps sampling runs in a memory."""
    seen = RememberingModel(model.unet, model.text_encoder, model.tokenizer, model.scheduler)
    seen.memory = memory
    return seen


def trailing_sigmas(model: DiffusersModel, steps: int) -> Tensor:
    """Return noise levels of a sampling run, (steps + 1,), evenly spaced from the last timestep."""
    count = len(model.training_sigmas)
    timesteps = [round(count - i * count / steps) - 1 for i in range(steps)]
    return torch.cat([model.training_sigmas[timesteps], torch.zeros(1)]).float()
