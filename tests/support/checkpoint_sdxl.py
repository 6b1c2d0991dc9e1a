"""A small checkpoint in the layout of SDXL, and LoRAs that fit it, both from fixed seeds.

ComfyUI knows an SDXL by the depths of its transformers (0, 0, 2, 2, 10 and 10 blocks), their linear
projections, and the widths of its contexts and of its ADM vector. All depths and both text encoders
are therefore those of SDXL, most of them zeros (`parts.compact`). The UNet has one width in place
of three, and few transformers behind its middle.
"""

from __future__ import annotations

from pathlib import Path

import torch

from demo.parts import (
    CHANNELS,
    CLIP_L,
    CLIP_L_LAYERS,
    MAX_TOKENS,
    TIME,
    VOCABULARY,
    Shapes,
    clip_l,
    clip_layers,
    compact,
    finish_vae,
    kohya_modules,
    layer,
    prefixed,
    resnet,
    save,
    taesd,
    transformer,
    write_kohya_lora,
)

VERSION = 1  # part of the cached files' names: raise it when their content changes

CLIP_G = 1280  # width of the second text encoder
CLIP_G_LAYERS = 32
CONTEXT = CLIP_L + CLIP_G
ADM = 2816  # the pooled text, and six embeddings of sizes and crops
# Pattern of kohya's names of modules whose weights are random, for a LoRA of few layers.
RANDOM = r"transformer_blocks_[09]_|te1_.*layers_(0|10)_|te2_.*layers_(0|30|31)_"
_TRANSFORMERS = {  # name -> number of blocks
    "input_blocks.4.1": 2,
    "input_blocks.5.1": 2,
    "input_blocks.7.1": 10,
    "input_blocks.8.1": 10,
    "middle_block.1": 1,
    "output_blocks.2.1": 1,
    "output_blocks.5.1": 1,
}
_RESNETS = {
    **{f"input_blocks.{block}.0": CHANNELS for block in (1, 2, 4, 5, 7, 8)},
    **{f"middle_block.{part}": CHANNELS for part in (0, 2)},
    **{f"output_blocks.{block}.0": 2 * CHANNELS for block in range(9)},
}
_RESIZERS = {
    **{f"input_blocks.{block}.0.op": CHANNELS for block in (3, 6)},
    **{f"output_blocks.{block}.2.conv": CHANNELS for block in (2, 5)},
}


def write_checkpoint(path: Path, seed: int = 0, *, v_prediction: bool = False) -> None:
    """Write the checkpoint (1.1 GB, of which 370 MB are on disk) that CheckpointLoaderSimple loads
    as SDXL.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        seed: Seed of all weights.
        v_prediction: Whether the file says that it predicts v, and that its noise schedule has zero
            terminal SNR, as NoobAI-XL V-Pred does.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: compact(name, shape, generator) for name, shape in checkpoint_shapes()}
    finish_vae(tensors, scale=0.13025)
    if v_prediction:
        tensors |= {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save(path, tensors, {"format": "pt"})


def write_lora(path: Path, seed: int, rank: int = 8, scale: float = 0.3, *, only: str = "") -> None:
    """Write a LoRA as kohya's trainer does for SDXL.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        seed: Seed of all factors.
        rank: Rank of the LoRA at every module.
        scale: Frobenius norm of each module's delta over that of a random weight, at strength 1.
        only: Pattern of kohya's names of the modules that it changes; empty: all.
    """
    base = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "1024x1024",
    }
    write_kohya_lora(path, lora_modules(), base, seed=seed, rank=rank, scale=scale, only=only)


def checkpoint_shapes() -> Shapes:
    """Yield name and shape of every weight and bias of the checkpoint."""
    return prefixed(
        {
            "model.diffusion_model.": _unet(),
            "conditioner.embedders.0.transformer.text_model.": clip_l(),
            "conditioner.embedders.1.model.": _open_clip(),
            "first_stage_model.": taesd(4),
        }
    )


def lora_modules() -> Shapes:
    """Yield kohya's name and the weight's shape of every module that a LoRA of the small checkpoint
    can change.
    """
    for name, depth in _TRANSFORMERS.items():
        yield from kohya_modules("lora_unet_", transformer(name, CONTEXT, depth, linear=True))
    yield from kohya_modules("lora_te1_text_model_", clip_layers(CLIP_L, CLIP_L_LAYERS))
    yield from kohya_modules("lora_te2_text_model_", clip_layers(CLIP_G, CLIP_G_LAYERS))


def _unet() -> Shapes:
    yield from layer("time_embed.0", TIME, CHANNELS)
    yield from layer("time_embed.2", TIME, TIME)
    yield from layer("label_emb.0.0", TIME, ADM)
    yield from layer("label_emb.0.2", TIME, TIME)
    yield from layer("input_blocks.0.0", CHANNELS, 4, 3, 3)
    for name, d_in in _RESNETS.items():
        yield from resnet(name, d_in)
    for name, depth in _TRANSFORMERS.items():
        yield from transformer(name, CONTEXT, depth, linear=True)
    for name in _RESIZERS:
        yield from layer(name, CHANNELS, CHANNELS, 3, 3)
    yield from layer("out.0", CHANNELS)
    yield from layer("out.2", 4, CHANNELS, 3, 3)


def _open_clip() -> Shapes:
    """bigG by OpenCLIP's names, with q, k and v in one matrix."""
    yield "positional_embedding", (MAX_TOKENS, CLIP_G)
    yield "text_projection", (CLIP_G, CLIP_G)
    yield from layer("token_embedding", VOCABULARY, CLIP_G, bias=False)
    for index in range(CLIP_G_LAYERS):
        name = f"transformer.resblocks.{index}"
        yield f"{name}.attn.in_proj_weight", (3 * CLIP_G, CLIP_G)
        yield f"{name}.attn.in_proj_bias", (3 * CLIP_G,)
        yield from layer(f"{name}.attn.out_proj", CLIP_G, CLIP_G)
        yield from layer(f"{name}.mlp.c_fc", 4 * CLIP_G, CLIP_G)
        yield from layer(f"{name}.mlp.c_proj", CLIP_G, 4 * CLIP_G)
        for norm in ("ln_1", "ln_2"):
            yield from layer(f"{name}.{norm}", CLIP_G)
    yield from layer("ln_final", CLIP_G)
