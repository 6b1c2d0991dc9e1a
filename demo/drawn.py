"""The trained checkpoint of the demo, in the layout of Stable Diffusion 1.5, and its LoRAs.

What is trained is in ``demo/weights`` of the checkout: a UNet in 8 bit, a decoder, LoRAs. The text
encoder has its full size, because the host allows no other, and comes from a fixed seed; the UNet
was trained to read it. `demo/train` trains all of it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .parts import (
    CHANNELS,
    CLIP_L,
    CLIP_L_LAYERS,
    TIME,
    Shapes,
    clip,
    hole,
    layer,
    resnet,
    save,
    taesd,
    transformer,
)

MEGABYTES = 170  # of the checkpoint on disk, without its holes
VERSION = 2  # part of the cached file's name: raise it when its content changes
SIDE = 128  # of a picture, in pixels
CFG = 4.0
SEED = 1
PROMPT = "a sks robot and a zwx owl"
WANTED = ("a sks robot", "a zwx owl")  # as the recogniser calls them
LORAS = ("sks_robot.safetensors", "zwx_owl.safetensors", "qpr_blueprint.safetensors")
NAMED = 2  # of them, which the prompt names
WEAKER = {f"all stacked at {strength:g}": strength for strength in (0.8, 0.6, 0.4)}
ROWS = """\
<lora:sks_robot> subject called="a sks robot" | a sks robot | a photo of a sks robot
<lora:zwx_owl> subject called="a zwx owl" | a zwx owl | a photo of a zwx owl
<lora:qpr_blueprint> style called="in qpr blueprint style" | a black cat in qpr blueprint style | \
a wooden table and a bicycle in qpr blueprint style"""

ACTIVE_LAYERS = (0, CLIP_L_LAYERS - 1)  # the others are zeros, which pass on what they get
SCALE = ".scale"  # of a weight in 8 bit, one number for each of its rows
_SIZES = {  # of random numbers, relative to 1 over the square root of the inputs
    "token_embedding": math.sqrt(CLIP_L),
    "position_embedding": 0.5 * math.sqrt(CLIP_L),
    "out_proj": 0.7,
    "fc2": 0.7,
}


def stacks(loras: Sequence[str]) -> Iterator[tuple[str, Sequence[str], float]]:
    """Yield each stack that the merge is compared with: its name, its LoRAs, their strength.

    Args:
        loras: Names of all LoRAs in the host's list.
    """
    yield "the two it names, at 0.8", loras[:NAMED], 0.8
    yield "all stacked at 1", loras, 1.0
    for name, strength in WEAKER.items():
        yield name, loras, strength


def text_encoder(seed: int = 0) -> dict[str, Tensor]:
    """Return CLIP-L's weights by their names in transformers, in fp16; what is zero is on the meta
    device.

    Words differ most by their own embedding, then by their place, then by the words before them.
    """
    chance = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in clip(CLIP_L, CLIP_L_LAYERS):
        if len(shape) == 1:
            weights[name] = (torch.zeros if name.endswith("bias") else torch.ones)(shape).half()
        elif name.startswith("encoder") and int(name.split(".")[2]) not in ACTIVE_LAYERS:
            weights[name] = hole(shape)
        else:
            size = _SIZES.get(name.split(".")[-2], 1.0) / math.sqrt(shape[1])
            weights[name] = (torch.randn(shape, generator=chance) * size).half()
    return weights


def unet_shapes() -> Shapes:
    """Yield name and shape of every weight of the UNet: three levels, a block each."""
    yield from layer("time_embed.0", TIME, CHANNELS)
    yield from layer("time_embed.2", TIME, TIME)
    yield from layer("input_blocks.0.0", CHANNELS, 4, 3, 3)
    for block in (1, 3, 5):
        yield from resnet(f"input_blocks.{block}.0", CHANNELS)
    for block in (2, 4):
        yield from layer(f"input_blocks.{block}.0.op", CHANNELS, CHANNELS, 3, 3)
    for block in (0, 2):
        yield from resnet(f"middle_block.{block}", CHANNELS)
    for block in range(6):
        yield from resnet(f"output_blocks.{block}.0", 2 * CHANNELS)
    for block in (1, 3):
        yield from layer(f"output_blocks.{block}.1.conv", CHANNELS, CHANNELS, 3, 3)
    for name in TRANSFORMERS:
        yield from transformer(name)
    yield from layer("out.0", CHANNELS)
    yield from layer("out.2", 4, CHANNELS, 3, 3)


# Block of the UNet -> the name that kohya's trainer takes from diffusers.
TRANSFORMERS = {
    "input_blocks.3.1": "down_blocks.1.attentions.0",
    "input_blocks.5.1": "down_blocks.2.attentions.0",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.2.1": "up_blocks.1.attentions.0",
}


def in_8_bit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they are shipped: matrices and kernels in 8 bit, one scale a row."""
    packed = {}
    for name, tensor in weights.items():
        if tensor.ndim < 2:
            packed[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp_min(1e-12)
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        packed[name + SCALE] = scale
    return packed


def from_8_bit(packed: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of `in_8_bit`, in fp16."""
    for name, tensor in packed.items():
        if name + SCALE in packed:
            scale = packed[name + SCALE].view(-1, *[1] * (tensor.ndim - 1))
            yield name, (tensor.float() * scale).half()
        elif not name.endswith(SCALE):
            yield name, tensor.half()


def unet(folder: Path) -> dict[str, Tensor]:
    """Return the UNet's weights in fp16; those that are not shipped are zeros, on the meta device.

    Args:
        folder: Folder of the trained weights.
    """
    from safetensors.torch import load_file

    trained = dict(from_8_bit(load_file(folder / "unet.safetensors")))
    return {name: trained.get(name, hole(shape)) for name, shape in unet_shapes()}


def write_checkpoint(path: Path, folder: Path) -> None:
    """Write the checkpoint that CheckpointLoaderSimple loads as SD1.5.

    Args:
        path: The .safetensors file; it appears only once it is complete.
        folder: Folder of the trained weights.
    """
    from safetensors.torch import load_file

    decoder = load_file(folder / "decoder.safetensors")
    vae = {name: decoder.get(name, hole(shape)) for name, shape in taesd(4)}
    scales = {
        "vae_scale": torch.tensor(0.18215).half(),
        "vae_shift": torch.tensor(0.0).half(),
    }
    parts = {
        "model.diffusion_model.": unet(folder),
        "cond_stage_model.transformer.text_model.": text_encoder(),
        "first_stage_model.": vae | scales,
    }
    tensors = {
        prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()
    }
    save(path, tensors, {"format": "pt"})
