"""LoRA files of Flux.1 in the names of XLabs' trainer, which only its own loader knows."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# What XLabs calls a module in a block -> the model's own name. 1 is the picture's stream, 2 the
# text's.
_MODULES = {
    "qkv_lora1": "img_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": "linear1_qkv",
    "proj_lora": "linear2",
}
_KEY = re.compile(
    r"((?:double|single)_blocks\.\d+)\.processor\.((?:qkv|proj)_lora[12]?)\.(up|down)\.weight"
)


def in_own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors with XLabs' keys in the model's own names; all others as they are.

    >>> list(in_own_names({"double_blocks.0.processor.proj_lora2.up.weight": Tensor()}))
    ['diffusion_model.double_blocks.0.txt_attn.proj.lora_up.weight']
    """
    return {_KEY.sub(_own_name, key): tensor for key, tensor in tensors.items()}


def _own_name(found: re.Match[str]) -> str:
    block, module, factor = found.groups()
    return f"diffusion_model.{block}.{_MODULES[module]}.lora_{factor}.weight"
