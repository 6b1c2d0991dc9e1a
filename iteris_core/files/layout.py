"""The bytes of a safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a safetensors file with these tensors and no metadata."""
    return hashlib.sha256(save(storable(tensors))).hexdigest()


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors as safetensors needs them: on the CPU, contiguous, and none a view
    of another.
    """
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
