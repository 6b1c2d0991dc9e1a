"""What the training leaves in ``demo/weights``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from iteris_core.files.groups import tensors_by_key
from iteris_core.files.roles import ALPHA, DOWN, UP

from .. import drawn
from .judge import LABELS
from .loras import NAMES, RANK
from .model import PASSING

_PASSING_PARTS = ("in_layers", "emb_layers", "out_layers")


def trained_of(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a UNet that are trained."""
    passing = tuple(f"{block}.{part}." for block in PASSING for part in _PASSING_PARTS)
    return {name: tensor for name, tensor in unet.items() if not name.startswith(passing)}


def as_shipped(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a UNet's weights as the shipped ones are read."""
    read = dict(drawn.from_8_bit(drawn.in_8_bit(trained_of(unet))))
    return {name: read[name].float() if name in read else unet[name] for name in unet}


def write_unet(unet: Mapping[str, Tensor], folder: Path) -> None:
    save_file(drawn.in_8_bit(trained_of(unet)), folder / "unet.safetensors")


def write_decoder(decoder: Mapping[str, Tensor], folder: Path) -> None:
    """Write the decoder's weights that are not zeros, by their names in the checkpoint."""
    kept = {
        f"taesd_decoder.{name}": tensor.half().contiguous()
        for name, tensor in decoder.items()
        if tensor.any()
    }
    save_file(kept, folder / "decoder.safetensors")


def write_recogniser(network: Mapping[str, Tensor], folder: Path) -> None:
    kept = {name: tensor.half().contiguous() for name, tensor in network.items()}
    save_file(kept, folder / "recogniser.safetensors", {"labels": "; ".join(LABELS)})


def write_lora(number: int, factors: Mapping[str, tuple[Tensor, Tensor]], folder: Path) -> None:
    """Write a LoRA as kohya's trainer does."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in factors.items():
        block = next(block for block in drawn.TRANSFORMERS if path.startswith(f"{block}."))
        name = drawn.TRANSFORMERS[block] + path.removeprefix(block)
        tensors |= tensors_by_key(
            "lora_unet_" + name.replace(".", "_"),
            {
                DOWN: down.half().contiguous(),
                UP: up.half().contiguous(),
                ALPHA: torch.tensor(float(RANK)),
            },
        )
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(float(RANK)),
        "ss_base_model_version": "sd_v1",
        "ss_tag_frequency": json.dumps({"1_drawn": {NAMES[number]: 64}}),
    }
    save_file(tensors, folder / drawn.LORAS[number], metadata)
