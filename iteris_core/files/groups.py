"""Groups of a file's tensors that describe the same module.

The key of a tensor is a base, which names the module, and an ending, which names the tensor's role
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import AdapterError
from .budget import spend
from .kinds import ENDINGS, PEFT_ENDINGS
from .roles import DIFF, VECTORS, W_NORM

_ROLE_OF_ENDING = {ending: role for role, endings in ENDINGS.items() for ending in endings}


@dataclass
class Group:
    """The tensors that describe one module.

    Args:
        base: Common beginning of their keys.
        tensors: Role -> tensor.
        keys: Role -> the tensor's key.
        doubled: Roles of which there is a second tensor.
    """

    base: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)

    def check_single(self) -> None:
        """Refuse a group with two tensors for one role.

        Raises:
            AdapterError: Begins with the predicate.
        """
        if self.doubled:
            raise AdapterError(
                f"has two tensors for {self.doubled[0]!r}; the file mixes two formats and is "
                "damaged"
            )

    def check_vectors(self) -> None:
        """Refuse differences of a bias or of a norm that are not finite.

        Raises:
            AdapterError: Begins with the predicate.
        """
        for role in VECTORS:
            if role in self.tensors and not torch.isfinite(self.tensors[role].float()).all():
                raise AdapterError(
                    f"holds NaN or infinite numbers in {self.keys[role]!r}; the training run "
                    "broke. Use an earlier epoch of this LoRA"
                )


def split_key(key: str) -> tuple[str, str] | None:
    """Return (base, role) of a key; None if no tensor of an adapter has such an ending."""
    for ending, role in _ROLE_OF_ENDING.items():
        if key.endswith(ending):
            return key.removesuffix(ending), role
    return None


def grouped(
    tensors: Mapping[str, Tensor], is_base: Callable[[str], bool] = lambda base: True
) -> tuple[dict[str, Group], list[str]]:
    """Return base -> group, and the keys that belong to none.

    Args:
        tensors: Key -> tensor.
        is_base: Whether a base is one of a group; else its keys belong to none.
    """
    groups: dict[str, Group] = {}
    others = []
    for key, tensor in tensors.items():
        spend()
        parts = split_key(key)
        if parts is None or not is_base(parts[0]):
            others.append(key)
            continue
        base, role = parts
        if role == DIFF and tensor.ndim == 1:  # trainers write a norm's difference like a matrix's
            role = W_NORM
        group = groups.setdefault(base, Group(base))
        if role in group.tensors:
            group.doubled.append(role)
        group.tensors[role] = tensor
        group.keys[role] = key
    return groups, others


def tensors_by_key(base: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a module's tensors, role -> tensor, under the keys that kohya's and LyCORIS' trainers
    give them.
    """
    return {key_of(base, role): tensor for role, tensor in tensors.items()}


def key_of(base: str, role: str) -> str:
    """Return the key that kohya's and LyCORIS' trainers give a tensor."""
    return base + ENDINGS[role][0]


def peft_key_of(base: str, role: str) -> str:
    """Return the key under which PEFT saves a tensor."""
    return base + PEFT_ENDINGS[role]
