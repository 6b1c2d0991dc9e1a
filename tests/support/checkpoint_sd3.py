"""A small checkpoint in the layout of Stable Diffusion 3, and LoRAs that fit it, both from fixed
seeds.

The width of an SD3 is 64 times its depth, so a shallow one is small: three blocks here, the last
without text behind it. Of the three text encoders it has CLIP-L alone, which the host allows.
"""

from __future__ import annotations

from pathlib import Path

import torch

from demo.parts import (
    CLIP_L,
    CLIP_L_LAYERS,
    Shapes,
    clip_l,
    clip_layers,
    compact,
    finish_vae,
    kohya_modules,
    layer,
    prefixed,
    save,
    taesd,
    write_kohya_lora,
)

DEPTH = 3
WIDTH = 64 * DEPTH
CONTEXT = 4096  # width of T5, to which CLIP's tokens are padded
POOLED = 2048  # of CLIP-L and bigG together
CHANNELS = 16  # of the latents
PATCH = 2
MAX_PATCHES = 32  # along one side: pictures up to 512 pixels


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """Write the checkpoint (140 MB, 75 of them on disk) that CheckpointLoaderSimple loads as SD3.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        seed: Seed of all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: compact(name, shape, generator) for name, shape in checkpoint_shapes()}
    finish_vae(tensors, scale=1.5305, shift=0.0609)
    save(path, tensors, {"format": "pt"})


def write_lora(path: Path, seed: int, rank: int = 4, scale: float = 0.3, *, only: str = "") -> None:
    """Write a LoRA as kohya's trainer does for SD3, with fused queries, keys and values.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        seed: Seed of all factors.
        rank: Rank of the LoRA at every module.
        scale: Frobenius norm of each module's delta over that of its weight, at strength 1.
        only: Pattern of kohya's names of the modules that it changes; empty: all.
    """
    base = {"ss_base_model_version": "3-medium", "ss_network_module": "networks.lora_sd3"}
    write_kohya_lora(path, lora_modules(), base, seed=seed, rank=rank, scale=scale, only=only)


def checkpoint_shapes() -> Shapes:
    """Yield name and shape of every weight and bias of the checkpoint."""
    return prefixed(
        {
            "model.diffusion_model.": _transformer(),
            "text_encoders.clip_l.transformer.text_model.": clip_l(),
            "first_stage_model.": taesd(CHANNELS),
        }
    )


def lora_modules() -> Shapes:
    """Yield kohya's name and the weight's shape of every module that a LoRA of the small checkpoint
    can change.
    """
    yield from kohya_modules("lora_unet_", _blocks())
    yield from kohya_modules("lora_te1_text_model_", clip_layers(CLIP_L, CLIP_L_LAYERS))


def _transformer() -> Shapes:
    yield "pos_embed", (1, MAX_PATCHES**2, WIDTH)
    yield from layer("x_embedder.proj", WIDTH, CHANNELS, PATCH, PATCH)
    for name, d_in in (("t_embedder", 256), ("y_embedder", POOLED)):
        yield from layer(f"{name}.mlp.0", WIDTH, d_in)
        yield from layer(f"{name}.mlp.2", WIDTH, WIDTH)
    yield from layer("context_embedder", WIDTH, CONTEXT)
    yield from _blocks()
    yield from layer("final_layer.linear", PATCH**2 * CHANNELS, WIDTH)
    yield from layer("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)


def _blocks() -> Shapes:
    for index in range(DEPTH):
        for stream in ("context_block", "x_block"):
            name = f"joint_blocks.{index}.{stream}"
            ends_here = stream == "context_block" and index == DEPTH - 1
            yield from layer(f"{name}.attn.qkv", 3 * WIDTH, WIDTH)
            yield from layer(f"{name}.adaLN_modulation.1", (2 if ends_here else 6) * WIDTH, WIDTH)
            if not ends_here:
                yield from layer(f"{name}.attn.proj", WIDTH, WIDTH)
                yield from layer(f"{name}.mlp.fc1", 4 * WIDTH, WIDTH)
                yield from layer(f"{name}.mlp.fc2", WIDTH, 4 * WIDTH)
