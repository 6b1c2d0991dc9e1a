"""The base model family of an adapter, detected from its keys, shapes and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .groups import split_key
from .kinds import DOWN

# Family of base models -> a pattern that only keys of its adapters have; the first that is found
# counts, because some Flux and SD3 files have the text encoders of SDXL.
_FAMILIES = {
    "Flux": r"double_blocks|single_transformer_blocks|single_blocks",
    "SD3": r"joint_blocks",
    "SDXL": r"^lora_te2_|^text_encoder_2\.|\d[._]transformer_blocks[._]9[._]",
    "SD2.x": r"text_model_encoder_layers_22_",
    "a video model": r"temporal|motion_modules",
    "T5": r"EncDecAttention|DenseReluDense|encoder\.block\.\d+\.layer\.0\.SelfAttention",
    "BLIP": r"text_decoder\.bert\.",
    "BART": r"model\.decoder\.layers\.\d+\.encoder_attn",
}
# Width of the contexts that the cross-attention of a Stable Diffusion reads -> family.
_CONTEXT_WIDTHS = {768: "SD1.x", 1024: "SD2.x", 2048: "SDXL"}
_READS_CONTEXTS = re.compile(r"attn2.*to_[kv]")


def family_of_keys(keys: Iterable[str]) -> str | None:
    """Return the family of base models whose adapters have such keys; None if no key is
    distinctive.
    """
    keys = list(keys)
    return next(
        (
            family
            for family, pattern in _FAMILIES.items()
            if any(re.search(pattern, key) for key in keys)
        ),
        None,
    )


def base_family(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the base model family of an adapter, with the statement of its file in brackets.

    Args:
        tensors: Key -> tensor, of which only the shape is read.
        metadata: The metadata of the file.
        settings: PEFT's settings of the adapter; None: it is no PEFT adapter.
    """
    family = family_of_keys(tensors) or _family_of_width(tensors)
    named = [
        (settings or {}).get("base_model_name_or_path"),
        metadata.get("modelspec.architecture"),
        metadata.get("ss_base_model_version"),
    ]
    name = next((name for name in named if name), None)
    return f"{family} ({name})" if family and name else family or name or "unknown"


def _family_of_width(tensors: Mapping[str, Tensor]) -> str | None:
    widths = set()
    for key, tensor in tensors.items():
        base, role = split_key(key) or ("", "")
        if role == DOWN and tensor.ndim > 1 and _READS_CONTEXTS.search(base):
            widths.add(tensor.shape[1])
    return next((family for width, family in _CONTEXT_WIDTHS.items() if width in widths), None)
