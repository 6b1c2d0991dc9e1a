"""The demo's checkpoint: a UNet in SD1.5's layout, a text encoder of a fixed seed, linear latents.

The UNet has three levels of 320 channels. Its blocks at the finest level, and some others, pass on
what they get (`PASSING`): they are not trained, and their weights are zeros.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..drawn import ACTIVE_LAYERS, text_encoder

CHANNELS = 320
WIDTH = 768  # of the text encoder
TOKENS = 77
UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": CHANNELS,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    # of the output blocks, the finest first
    "transformer_depth_output": [0, 0, 0, 1, 0, 1],
    "transformer_depth_middle": 1,
    "context_dim": WIDTH,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": torch.float32,
}
PASSING = (
    "input_blocks.1.0",
    "middle_block.2",
    "output_blocks.1.0",
    "output_blocks.3.0",
    "output_blocks.4.0",
    "output_blocks.5.0",
)
PATCH = 8
LATENTS = 4
STEPS = 1000


def import_comfyui(folder: Path) -> None:
    """Make ComfyUI's modules importable, with torch's own attention."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = True
    args.use_pytorch_cross_attention = True


def new_unet(seed: int) -> nn.Module:
    """Return ComfyUI's UNet, untrained; it passes its input on as the noise that it predicts."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import (  # type: ignore[import-not-found]
        UNetModel,
    )

    torch.manual_seed(seed)
    unet: nn.Module = UNetModel(**UNET)
    for name, module in unet.named_modules():
        _begin(name, module)
    _pass_the_input_on(unet)
    for name in PASSING:
        block = unet.get_submodule(name)
        for part in (block.in_layers, block.emb_layers, block.out_layers):
            for parameter in part.parameters():
                parameter.requires_grad_(False).zero_()
        # the host computes zeros here
        block.forward = lambda x, emb, block=block: block.skip_connection(x)
    return unet


def _begin(name: str, module: nn.Module) -> None:
    """Give a layer its first weights, which the host's layers have not: torch's own, but zeros at
    the end of each block.
    """
    if name.endswith(("out_layers.3", "proj_out")):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    elif isinstance(module, nn.Linear):
        nn.Linear.reset_parameters(module)
    elif isinstance(module, nn.Conv2d):
        nn.Conv2d.reset_parameters(module)
    elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def _pass_the_input_on(unet: Any) -> None:
    """Let channels in pairs carry the input with either sign through the skip connection to the
    output, where silu(x) - silu(-x) = x.
    """
    first = unet.input_blocks[0][0]
    last = unet.out[-1]
    mixing = unet.output_blocks[5][0].skip_connection
    group = CHANNELS // 32
    last.weight.mul_(0.02)
    last.bias.zero_()
    for latent in range(LATENTS):
        for i in range(group):
            channel = latent * group + i
            sign = 1.0 if i % 2 == 0 else -1.0
            first.weight[channel].zero_()
            first.bias[channel] = 0.0
            first.weight[channel, latent, 1, 1] = sign
            mixing.weight[channel].zero_()
            mixing.bias[channel] = 0.0
            mixing.weight[channel, CHANNELS + channel] = 1.0
            last.weight[:, channel] = 0.0
            last.weight[latent, channel, 1, 1] = sign / (group / 2)


class TextEncoder:
    """The text encoder, without its layers that pass on what they get."""

    def __init__(self, comfyui: Path) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer")
        config = CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_attention_heads=WIDTH // 64,
            num_hidden_layers=len(ACTIVE_LAYERS),
            bos_token_id=49406,
            eos_token_id=49407,
        )
        self.model = CLIPTextModel(config).eval().requires_grad_(False)
        numbers = {layer: i for i, layer in enumerate(ACTIVE_LAYERS)}
        state = {}
        for name, tensor in text_encoder().items():
            parts = name.split(".")
            if parts[0] == "encoder":
                if int(parts[2]) not in numbers:
                    continue
                parts[2] = str(numbers[int(parts[2])])
            state[".".join(parts)] = tensor.float()
        core = getattr(self.model, "text_model", self.model)
        missing, unexpected = core.load_state_dict(state, strict=False)
        assert not unexpected and all("position_ids" in name for name in missing), missing

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return contexts (captions, 77, 768)."""
        ids = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.model(ids).last_hidden_state


class Latents:
    """Latents (4, 16, 16) of pictures: the four main components of patches of 8 x 8 pixels."""

    def __init__(self, mean: Tensor, basis: Tensor) -> None:
        self.mean = mean  # (192,)
        self.basis = basis  # (192, 4), scaled to latents of variance 1

    @classmethod
    def of(cls, pictures: Tensor) -> Latents:
        patches = _patches(pictures)
        flat = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1]).double()
        mean = flat.mean(0)
        centred = flat - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
        basis = vectors[:, -LATENTS:] / values[-LATENTS:].sqrt()
        return cls(mean.float(), basis.float())

    def encode(self, pictures: Tensor) -> Tensor:
        """Return latents (n, 4, h / 8, w / 8) of pictures (n, 3, h, w) from 0 to 1."""
        patches = _patches(pictures) - self.mean.view(1, -1, 1, 1)
        return torch.einsum("nchw,cl->nlhw", patches, self.basis)


def _patches(pictures: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(pictures, PATCH)


def alphas_cumprod() -> Tensor:
    """Return SD1.5's noise schedule, (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def new_decoder() -> nn.Module:
    """Return TAESD's decoder, as the host has it, untrained: its blocks pass on what they get."""
    from comfy.taesd.taesd import Block, Decoder  # type: ignore[import-not-found]

    torch.manual_seed(0)
    decoder: nn.Module = Decoder(LATENTS)
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
    for module in decoder.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.conv[-1].weight)
            nn.init.zeros_(module.conv[-1].bias)
    return decoder


def trained_blocks(decoder: Any) -> Iterator[Any]:
    """Yield the decoder's blocks that are trained: the coarse levels' blocks, and one above."""
    from comfy.taesd.taesd import Block

    blocks = [module for module in decoder if isinstance(module, Block)]
    yield from blocks[:7]


def weighted_loss(
    unet: nn.Module, clean: Tensor, context: Tensor, chance: torch.Generator, kept: Tensor
) -> Tensor:
    """Return the mean squared error of the clean latents, weighted by 1 + SNR, at most 5."""
    steps = torch.randint(STEPS, (len(clean),), generator=chance)
    noise = torch.randn(clean.shape, generator=chance)
    a = kept[steps].view(-1, 1, 1, 1)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noisy, steps, context)
    errors = (predicted.float() - noise).square().flatten(1).mean(1)
    a = a.flatten()
    return (errors * (1 - a) / a * (1 / (1 - a)).clamp(max=5)).mean()
