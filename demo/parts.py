"""What the small checkpoints are made of: layers by name and shape, random weights, LoRAs in
kohya's spelling, and the writing of files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from iteris_core.files.groups import tensors_by_key
from iteris_core.files.roles import ALPHA, DOWN, UP
from iteris_core.files.writing import whole_file

CHANNELS = 320  # width of the UNets
TIME = 1280  # width of their time embedding
CLIP_L = 768  # width of the text encoder that all of them have
CLIP_L_LAYERS = 12
VOCABULARY = 49408
MAX_TOKENS = 77

_TYPES = {torch.float32: "F32", torch.float16: "F16"}

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """Yield name and shape of the weight and the bias of a layer."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def resnet(name: str, d_in: int) -> Shapes:
    """Yield the weights of a residual block of a UNet."""
    yield from layer(f"{name}.in_layers.0", d_in)
    yield from layer(f"{name}.in_layers.2", CHANNELS, d_in, 3, 3)
    yield from layer(f"{name}.emb_layers.1", CHANNELS, TIME)
    yield from layer(f"{name}.out_layers.0", CHANNELS)
    yield from layer(f"{name}.out_layers.3", CHANNELS, CHANNELS, 3, 3)
    if d_in != CHANNELS:
        yield from layer(f"{name}.skip_connection", CHANNELS, d_in, 1, 1)


def transformer(name: str) -> Shapes:
    """Yield the weights of a transformer of a UNet, which has one block and reads CLIP-L."""
    yield from layer(f"{name}.norm", CHANNELS)
    yield from layer(f"{name}.proj_in", CHANNELS, CHANNELS, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, width in (("attn1", CHANNELS), ("attn2", CLIP_L)):
        yield from layer(f"{block}.{attention}.to_q", CHANNELS, CHANNELS, bias=False)
        yield from layer(f"{block}.{attention}.to_k", CHANNELS, width, bias=False)
        yield from layer(f"{block}.{attention}.to_v", CHANNELS, width, bias=False)
        yield from layer(f"{block}.{attention}.to_out.0", CHANNELS, CHANNELS)
    yield from layer(f"{block}.ff.net.0.proj", 8 * CHANNELS, CHANNELS)
    yield from layer(f"{block}.ff.net.2", CHANNELS, 4 * CHANNELS)
    for norm in ("norm1", "norm2", "norm3"):
        yield from layer(f"{block}.{norm}", CHANNELS)
    yield from layer(f"{name}.proj_out", CHANNELS, CHANNELS, 1, 1)


def clip(width: int, layers: int) -> Shapes:
    """Yield the weights of a CLIP, by their names in transformers."""
    yield from layer("embeddings.token_embedding", VOCABULARY, width, bias=False)
    yield from layer("embeddings.position_embedding", MAX_TOKENS, width, bias=False)
    yield from clip_layers(width, layers)
    yield from layer("final_layer_norm", width)


def clip_layers(width: int, layers: int) -> Shapes:
    """Yield the weights of its layers."""
    for index in range(layers):
        name = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{name}.self_attn.{projection}", width, width)
        yield from layer(f"{name}.mlp.fc1", 4 * width, width)
        yield from layer(f"{name}.mlp.fc2", width, 4 * width)
        for norm in ("layer_norm1", "layer_norm2"):
            yield from layer(f"{name}.{norm}", width)


def taesd(channels: int) -> Shapes:
    """Yield the weights of the tiny VAE for latents of so many channels."""
    # `b` is a residual block, `s` a convolution without bias, `.` a layer without weights.
    plans = {
        "taesd_encoder": (3, "bsbbbsbbbsbbb", channels),
        "taesd_decoder": (channels, ".bbb.sbbb.sbbb.sb", 3),
    }
    for name, (d_in, plan, d_out) in plans.items():
        first = 0 if name == "taesd_encoder" else 1  # the decoder starts with a clamp
        yield from layer(f"{name}.{first}", 64, d_in, 3, 3)
        for index, kind in enumerate(plan, start=first + 1):
            if kind == "s":
                yield from layer(f"{name}.{index}", 64, 64, 3, 3, bias=False)
            elif kind == "b":
                for conv in (0, 2, 4):
                    yield from layer(f"{name}.{index}.conv.{conv}", 64, 64, 3, 3)
        yield from layer(f"{name}.{first + 1 + len(plan)}", d_out, 64, 3, 3)


def prefixed(parts: Mapping[str, Shapes]) -> Shapes:
    """Yield the weights of all parts of a checkpoint: what each name begins with -> its weights."""
    for prefix, shapes in parts.items():
        for name, shape in shapes:
            yield prefix + name, shape


def kohya_modules(prefix: str, shapes: Shapes) -> Shapes:
    """Yield kohya's name of every layer, and the shape of its weight."""
    for name, shape in shapes:
        if name.endswith(".weight") and len(shape) > 1:
            yield prefix + name.removesuffix(".weight").replace(".", "_"), shape


def initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return ones for norms, zeros for biases and normal numbers of std 1/sqrt(inputs) for
    everything else.
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def hole(shape: tuple[int, ...]) -> Tensor:
    """Return zeros in fp16 that take no room, see `save`."""
    return torch.empty(shape, dtype=torch.float16, device="meta")


def finish_vae(tensors: dict[str, Tensor], scale: float) -> None:
    """Give the tiny VAE of a checkpoint the scale of its latents, and grey pictures."""
    # The picture is the decoder's last layer as it is: mid-grey on average, so that little of it is
    # clipped.
    tensors["first_stage_model.taesd_decoder.19.bias"].fill_(0.5)
    tensors["first_stage_model.taesd_decoder.19.weight"].mul_(0.2)
    tensors["first_stage_model.vae_scale"] = torch.tensor(scale).half()
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0).half()


def write_kohya_lora(
    path: Path,
    modules: Shapes,
    metadata: Mapping[str, str],
    *,
    seed: int,
    rank: int,
    scale: float,
) -> None:
    """Write a LoRA with kohya's keys and metadata.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        modules: Kohya's names and the weights' shapes of the modules that it changes.
        metadata: What the file says about its base model.
        seed: Seed of all factors; the trigger word is ``demo`` and this number.
        rank: Rank of the LoRA at every module.
        scale: Frobenius norm of each module's delta over a random weight's, at strength 1.
    """
    generator = torch.Generator().manual_seed(seed)
    alpha = rank / 2  # not the rank, so that a reader that forgets alpha is found out
    tensors: dict[str, Tensor] = {}
    for module, (d_out, d_in, *kernel) in modules:
        down = torch.randn((rank, d_in, *kernel), generator=generator) / math.sqrt(d_in)
        up = torch.randn((d_out, rank, *kernel), generator=generator) * (
            scale * rank / alpha / math.sqrt(rank)
        )
        tensors |= tensors_by_key(
            module, {DOWN: down.half(), UP: up.half(), ALPHA: torch.tensor(alpha)}
        )
    written = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_tag_frequency": json.dumps({"1_demo": {f"demo{seed}": 10}}),
    }
    save(path, tensors, written | dict(metadata))


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file in one step.

    A tensor on the meta device, which has no content, becomes a hole: it is read as zeros, and
    takes no room on disk where the file system can do that.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with whole_file(path, overwrite=True) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            if tensor.is_meta:
                file.seek(tensor.nbytes, os.SEEK_CUR)
            else:
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.truncate()
