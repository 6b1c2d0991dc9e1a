"""A small checkpoint in the layout of Stable Diffusion 1.5, and LoRAs that fit it, both from fixed
seeds.

The network is SD1.5 with one resolution level in place of four: the host detects it as SD1.5 and
runs every kind of layer that a LoRA can change, in 26 instead of 860 million parameters. The text
encoder has its full size, because the host allows no other. Everything is random: the pictures are
noise, but finite, repeatable and different per prompt.
"""

from __future__ import annotations

from pathlib import Path

import torch

from demo.parts import (
    CHANNELS,
    CLIP_L,
    CLIP_L_LAYERS,
    TIME,
    Shapes,
    clip,
    clip_layers,
    finish_vae,
    initial,
    kohya_modules,
    layer,
    prefixed,
    resnet,
    save,
    taesd,
    transformer,
    write_kohya_lora,
)

# Block of the UNet -> the name that kohya's trainer takes from diffusers.
_TRANSFORMERS = {
    "input_blocks.1.1": "down_blocks.0.attentions.0",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
}
_RESNETS = {  # block -> input channels; the output blocks also take the skip connection
    "input_blocks.1.0": CHANNELS,
    "middle_block.0": CHANNELS,
    "middle_block.2": CHANNELS,
    "output_blocks.0.0": 2 * CHANNELS,
    "output_blocks.1.0": 2 * CHANNELS,
}


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """Write the checkpoint (about 308 MB, fp16) that CheckpointLoaderSimple loads as SD1.5."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: initial(name, shape, generator).half() for name, shape in checkpoint_shapes()}
    finish_vae(tensors, scale=0.18215)
    save(path, tensors, {"format": "pt"})


def write_lora(path: Path, seed: int, rank: int = 8, scale: float = 0.3) -> None:
    """Write a LoRA for all 48 UNet and 72 text modules; `scale`: a delta's norm over its weight's."""
    base = {"ss_base_model_version": "sd_v1"}
    write_kohya_lora(path, lora_modules(), base, seed=seed, rank=rank, scale=scale)


def checkpoint_shapes() -> Shapes:
    """Yield name and shape of every weight and bias of the checkpoint."""
    return prefixed(
        {
            "model.diffusion_model.": _unet(),
            "cond_stage_model.transformer.text_model.": clip(CLIP_L, CLIP_L_LAYERS),
            "first_stage_model.": taesd(4),
        }
    )


def lora_modules() -> Shapes:
    """Yield kohya's name and the shape of every module that a LoRA of it changes."""
    for name in _TRANSFORMERS.values():
        yield from kohya_modules("lora_unet_", transformer(name))
    yield from kohya_modules("lora_te_text_model_", clip_layers(CLIP_L, CLIP_L_LAYERS))


def _unet() -> Shapes:
    yield from layer("time_embed.0", TIME, CHANNELS)
    yield from layer("time_embed.2", TIME, TIME)
    yield from layer("input_blocks.0.0", CHANNELS, 4, 3, 3)
    for name, d_in in _RESNETS.items():
        yield from resnet(name, d_in)
    for name in _TRANSFORMERS:
        yield from transformer(name)
    yield from layer("out.0", CHANNELS)
    yield from layer("out.2", 4, CHANNELS, 3, 3)
