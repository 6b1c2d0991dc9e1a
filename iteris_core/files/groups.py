"""Keys of an adapter's tensors, each a base, which names a module, and an ending, which names the
tensor's role; and groups of the tensors that have one base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError
from .adapter_kinds import GLORA, KINDS
from .roles import DIFF, DOWN, MAGNITUDE, MID, UP, VECTORS, W_NORM, Tensors

# Role -> how the keys of factors end that PEFT and kohya's trainers save.
PEFT_ENDINGS = {UP: ".lora_B.weight", DOWN: ".lora_A.weight"}
KOHYA_ENDINGS = {UP: ".lora_up.weight", DOWN: ".lora_down.weight"}
# Role -> how the keys of its tensors end, kohya's and LyCORIS' ending first.
ENDINGS: dict[str, tuple[str, ...]] = {
    role: (f".{role}",) for kind in KINDS for role in kind.roles
} | {
    UP: (
        KOHYA_ENDINGS[UP],
        ".lora_B.default.weight",
        PEFT_ENDINGS[UP],
        ".lora_B",
        ".lora.up.weight",
        "_lora.up.weight",
        ".lora_linear_layer.up.weight",
    ),
    DOWN: (
        KOHYA_ENDINGS[DOWN],
        ".lora_A.default.weight",
        PEFT_ENDINGS[DOWN],
        ".lora_A",
        ".lora.down.weight",
        "_lora.down.weight",
        ".lora_linear_layer.down.weight",
    ),
    MID: (".lora_mid.weight",),
    MAGNITUDE: (
        ".lora_magnitude_vector.default.weight",
        ".lora_magnitude_vector.weight",
        ".lora_magnitude_vector",
    ),
    **{role: (f".{role.removeprefix('glora_')}.weight",) for role in GLORA.marks},
}
_ROLE_OF_ENDING = {ending: role for role, endings in ENDINGS.items() for ending in endings}


@dataclass
class Group:
    """The tensors that describe one module: the common beginning of their keys, role -> tensor,
    role -> its key, and the roles that have a second tensor.
    """

    base: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse two tensors for one role, and vectors that are not finite.

        Raises:
            AdapterError: Names the role or the key.
        """
        if self.doubled:
            raise AdapterError(
                f"has two tensors for {self.doubled[0]!r}; the file mixes two formats and is "
                "damaged. Download it again"
            )
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
    """Return base -> group of tensors (key -> tensor), and the keys that belong to none, such as
    those whose base is none.
    """
    groups: dict[str, Group] = {}
    others = []
    for key, tensor in tensors.items():
        base, role = split_key(key) or (key, "")
        if not role or not is_base(base):
            others.append(key)
            continue
        if role == DIFF and tensor.ndim == 1:  # trainers write a norm's difference like a matrix's
            role = W_NORM
        group = groups.setdefault(base, Group(base))
        if role in group.tensors:
            group.doubled.append(role)
        group.tensors[role] = tensor
        group.keys[role] = key
    return groups, others


def tensors_by_key(base: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return a module's tensors by their `key_of`."""
    return {key_of(base, role): tensor for role, tensor in tensors.items()}


def key_of(base: str, role: str) -> str:
    """Return the key that kohya's and LyCORIS' trainers give a tensor."""
    return base + ENDINGS[role][0]


def factors_by_key(
    base: str, delta: LowRankDelta, kernel: Sequence[int], endings: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the factors of a layer under its keys; with the (height, width) of a convolution's
    kernel they have four dimensions.
    """
    return {
        base + endings[UP]: delta.up.reshape(*delta.up.shape, *(1 for _ in kernel)).contiguous(),
        base + endings[DOWN]: delta.down.reshape(delta.rank, -1, *kernel).contiguous(),
    }
