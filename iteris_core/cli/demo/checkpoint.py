"""A small checkpoint in the layout of Stable Diffusion 1.5, and LoRAs that fit it, both from fixed
seeds.

The network is SD1.5 with one resolution level in place of four: the host detects it as SD1.5 and
runs every kind of layer that a LoRA can change, in 26 instead of 860 million parameters. The text
encoder has its full size, because the host allows no other. Everything is random: the pictures are
noise, but finite, repeatable and different per prompt.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...files.groups import tensors_by_key
from ...files.kinds import ALPHA, DOWN, UP

CHANNELS = 320  # width of the UNet
TIME = 1280  # width of its time embedding
CONTEXT = 768  # width of the text encoder
TEXT_LAYERS = 12
VOCABULARY = 49408
MAX_TOKENS = 77
VERSION = 1  # part of the cached files' names: raise it when their content changes

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

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """Write the checkpoint (about 308 MB, fp16) that CheckpointLoaderSimple loads as SD1.5.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        seed: Seed of all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _initial(name, shape, generator).half() for name, shape in checkpoint_shapes()}
    # The picture is the decoder's last layer as it is: mid-grey on average, so that little of it is
    # clipped.
    tensors["first_stage_model.taesd_decoder.19.bias"].fill_(0.5)
    tensors["first_stage_model.taesd_decoder.19.weight"].mul_(0.2)
    tensors["first_stage_model.vae_scale"] = torch.tensor(0.18215).half()
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0).half()
    _save(path, tensors, {"format": "pt"})


def write_lora(path: Path, seed: int, rank: int = 8, scale: float = 0.3) -> None:
    """Write a LoRA with kohya keys for all 48 UNet and 72 text encoder modules of the small
    checkpoint.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        seed: Seed of all factors.
        rank: Rank of the LoRA at every module.
        scale: Frobenius norm of each module's delta over that of its weight, at strength 1.
    """
    generator = torch.Generator().manual_seed(seed)
    alpha = rank / 2  # not the rank, so that a reader that forgets alpha is found out
    tensors: dict[str, Tensor] = {}
    for module, shape in lora_modules():
        d_out, d_in, *kernel = shape
        down = torch.randn((rank, d_in, *kernel), generator=generator) / math.sqrt(d_in)
        up = torch.randn((d_out, rank, *kernel), generator=generator) * (
            scale * rank / alpha / math.sqrt(rank)
        )
        tensors |= tensors_by_key(
            module, {DOWN: down.half(), UP: up.half(), ALPHA: torch.tensor(alpha)}
        )
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": "sd_v1",
        "ss_tag_frequency": json.dumps({"1_demo": {f"demo{seed}": 10}}),
    }
    _save(path, tensors, metadata)


def checkpoint_shapes() -> Shapes:
    """Yield name and shape of every weight and bias of the checkpoint."""
    parts = {
        "model.diffusion_model.": _unet(),
        "cond_stage_model.transformer.text_model.": _text_encoder(),
        "first_stage_model.": _taesd(),
    }
    for prefix, shapes in parts.items():
        for name, shape in shapes:
            yield prefix + name, shape


def lora_modules() -> Shapes:
    """Yield kohya's name and the weight's shape of every module that a LoRA of the small checkpoint
    changes.
    """
    for diffusers_name in _TRANSFORMERS.values():
        for name, shape in _transformer(diffusers_name):
            if name.endswith(".weight") and len(shape) > 1:
                yield "lora_unet_" + _flat(name), shape
    for name, shape in _text_encoder():
        if name.startswith("encoder.") and name.endswith(".weight") and len(shape) > 1:
            yield "lora_te_text_model_" + _flat(name), shape


def _flat(name: str) -> str:
    return name.removesuffix(".weight").replace(".", "_")


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _unet() -> Shapes:
    yield from _layer("time_embed.0", TIME, CHANNELS)
    yield from _layer("time_embed.2", TIME, TIME)
    yield from _layer("input_blocks.0.0", CHANNELS, 4, 3, 3)
    for name, d_in in _RESNETS.items():
        yield from _resnet(name, d_in)
    for name in _TRANSFORMERS:
        yield from _transformer(name)
    yield from _layer("out.0", CHANNELS)
    yield from _layer("out.2", 4, CHANNELS, 3, 3)


def _resnet(name: str, d_in: int) -> Shapes:
    yield from _layer(f"{name}.in_layers.0", d_in)
    yield from _layer(f"{name}.in_layers.2", CHANNELS, d_in, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", CHANNELS, TIME)
    yield from _layer(f"{name}.out_layers.0", CHANNELS)
    yield from _layer(f"{name}.out_layers.3", CHANNELS, CHANNELS, 3, 3)
    if d_in != CHANNELS:
        yield from _layer(f"{name}.skip_connection", CHANNELS, d_in, 1, 1)


def _transformer(name: str) -> Shapes:
    yield from _layer(f"{name}.norm", CHANNELS)
    yield from _layer(f"{name}.proj_in", CHANNELS, CHANNELS, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, d_context in (("attn1", CHANNELS), ("attn2", CONTEXT)):
        yield from _layer(f"{block}.{attention}.to_q", CHANNELS, CHANNELS, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", CHANNELS, d_context, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", CHANNELS, d_context, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", CHANNELS, CHANNELS)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * CHANNELS, CHANNELS)
    yield from _layer(f"{block}.ff.net.2", CHANNELS, 4 * CHANNELS)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _layer(f"{block}.{norm}", CHANNELS)
    yield from _layer(f"{name}.proj_out", CHANNELS, CHANNELS, 1, 1)


def _text_encoder() -> Shapes:
    yield from _layer("embeddings.token_embedding", VOCABULARY, CONTEXT, bias=False)
    yield from _layer("embeddings.position_embedding", MAX_TOKENS, CONTEXT, bias=False)
    for index in range(TEXT_LAYERS):
        name = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{name}.self_attn.{projection}", CONTEXT, CONTEXT)
        yield from _layer(f"{name}.mlp.fc1", 4 * CONTEXT, CONTEXT)
        yield from _layer(f"{name}.mlp.fc2", CONTEXT, 4 * CONTEXT)
        for norm in ("layer_norm1", "layer_norm2"):
            yield from _layer(f"{name}.{norm}", CONTEXT)
    yield from _layer("final_layer_norm", CONTEXT)


def _taesd() -> Shapes:
    """Layers of the tiny VAE: `b` is a residual block, `s` a convolution without bias, `.` a layer
    without weights.
    """
    plans = {"taesd_encoder": (3, "bsbbbsbbbsbbb", 4), "taesd_decoder": (4, ".bbb.sbbb.sbbb.sb", 3)}
    for name, (d_in, plan, d_out) in plans.items():
        first = 0 if name == "taesd_encoder" else 1  # the decoder starts with a clamp
        yield from _layer(f"{name}.{first}", 64, d_in, 3, 3)
        for index, kind in enumerate(plan, start=first + 1):
            if kind == "s":
                yield from _layer(f"{name}.{index}", 64, 64, 3, 3, bias=False)
            elif kind == "b":
                for conv in (0, 2, 4):
                    yield from _layer(f"{name}.{index}.conv.{conv}", 64, 64, 3, 3)
        yield from _layer(f"{name}.{first + 1 + len(plan)}", d_out, 64, 3, 3)


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return ones for norms, zeros for biases and normal numbers of std 1/sqrt(inputs) for
    everything else.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file under a temporary name and move it into place, so that an interrupted run leaves
    no half file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        save_file(tensors, part, metadata=metadata)
        os.replace(part, path)
