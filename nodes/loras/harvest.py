"""LoRAs that a model already carries, taken off it again as the files that they were loaded
from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch import Tensor

from ...iteris_core import IterisError
from ...iteris_core.files import kohya

# What the host keeps of an adapter, by position; see `weights` in its comfy/weight_adapter.
_ROLES = {
    "lora": ("up", "down", "alpha", "mid", "dora_scale", "reshape_weight"),
    "loha": (
        "hada_w1_a",
        "hada_w1_b",
        "alpha",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
        "dora_scale",
    ),
    "lokr": (
        "lokr_w1",
        "lokr_w2",
        "alpha",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t2",
        "dora_scale",
    ),
    "glora": ("glora_a1", "glora_a2", "glora_b1", "glora_b2", "alpha", "dora_scale"),
    "oft": ("oft_blocks", "rescale", "alpha", "dora_scale"),
}

# Strength, patch, strength of the weight itself, part of the weight, function: as ComfyUI keeps a
# patch.
Patch = tuple[float, Any, float, Any, Any]


@dataclass
class CarriedLora:
    """One LoRA on a model.

    Args:
        keys: The file's keys that the host used; one set object for everything that was loaded
            together.
        tensors: Under the model's own key names.
        strengths: Those at which its parts were applied: UNet, text encoder; None: it has no such
            part.
    """

    keys: frozenset[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    strengths: dict[bool, float] = field(default_factory=dict)


def take_off(
    patches: Mapping[str, Sequence[Patch]],
    is_text: Callable[[str], bool],
    bases_of: Callable[[str], Sequence[str]],
) -> tuple[list[CarriedLora], dict[str, list[Patch]]]:
    """Tell the LoRAs on a model from one another and from everything else that patches it.

    The host applies a file with one set of used keys that all of its adapters share, so that set
    tells files apart, the same file loaded twice included. Differences, norms and biases carry no
    such mark: they belong to the one file that names them.

    Args:
        patches: Weight -> patches in the order of their application, UNet and text encoder.
        is_text: Whether a weight is the text encoder's.
        bases_of: Weight's module path -> key bases under which files name it; the first is the
            model's own.

    Returns:
        The LoRAs in the order of their application, and the patches that are none: they stay on the
            base model.

    Raises:
        IterisError: A LoRA was scaled by what came after it, was applied at two strengths, or its
            parts cannot be told apart.
    """
    loras = _marked(patches)
    rest: dict[str, list[Patch]] = {}
    for weight, on_weight in patches.items():
        for i, patch in enumerate(on_weight):
            strength, value, _, offset, function = patch
            lora = _owner(weight, value, loras, bases_of)
            if lora is None:
                rest.setdefault(weight, []).append(patch)
                continue
            if (
                offset is not None
                or function is not None
                or any(later[2] != 1 for later in on_weight[i:])
            ):
                raise IterisError(
                    "a LoRA on this model was scaled or cut by another node after it was loaded "
                    f"(at {weight!r}), so it is no longer what its file says. Load LoRAs after the "
                    "nodes that merge or scale models, or use 'LoRA to merge'"
                )
            if lora.strengths.setdefault(is_text(weight), strength) != strength:
                raise IterisError(
                    f"one LoRA on this model has the strengths {lora.strengths[is_text(weight)]:g} "
                    f"and {strength:g} (at {weight!r}), as block-weight loaders do; merge the file "
                    "itself with 'LoRA to merge'"
                )
            lora.tensors |= _tensors(weight, value, bases_of)
    return list(loras.values()), rest


def count_loras(patches: Mapping[str, Sequence[Patch]]) -> int:
    """Return how many LoRAs are on a model."""
    values = (value for on_weight in patches.values() for _, value, *_ in on_weight)
    return len({id(value.loaded_keys) for value in values if _is_adapter(value)})


def _is_adapter(value: Any) -> bool:
    return getattr(value, "name", None) in _ROLES and bool(getattr(value, "loaded_keys", None))


def _marked(patches: Mapping[str, Sequence[Patch]]) -> dict[int, CarriedLora]:
    """Return a LoRA per set of used keys, in the order of application: a later one stands behind
    the earlier ones in a list.
    """
    loras: dict[int, CarriedLora] = {}
    before: dict[int, set[int]] = {}
    for on_weight in patches.values():
        seen: list[int] = []
        for _, value, *_ in on_weight:
            if _is_adapter(value):
                keys = value.loaded_keys
                loras.setdefault(id(keys), CarriedLora(frozenset(keys)))
                before.setdefault(id(keys), set()).update(seen)
                seen.append(id(keys))
    order = TopologicalSorter(
        {mark: earlier - {mark} for mark, earlier in before.items()}
    ).static_order()
    return {mark: loras[mark] for mark in order}


def _owner(
    weight: str,
    value: Any,
    loras: Mapping[int, CarriedLora],
    bases_of: Callable[[str], Sequence[str]],
) -> CarriedLora | None:
    """Return the LoRA to which a patch belongs; None: it is part of no LoRA.

    Raises:
        IterisError: It may belong to several.
    """
    if _is_adapter(value):
        return loras[id(value.loaded_keys)]
    if not (isinstance(value, tuple) and value[0] == "diff"):
        return None
    path, _, parameter = weight.rpartition(".")
    endings = (".diff", ".w_norm") if parameter == "weight" else (".diff_b", ".b_norm")
    wanted = {base + ending for base in bases_of(path) for ending in endings}
    owners = [lora for lora in loras.values() if not wanted.isdisjoint(lora.keys)]
    if len(owners) > 1:
        raise IterisError(
            f"{len(owners)} LoRAs on this model change {weight!r} by a difference, and the model "
            "does not tell whose is whose. Merge the files themselves with 'LoRA to merge'"
        )
    return owners[0] if owners else None


def _tensors(
    weight: str, value: Any, bases_of: Callable[[str], Sequence[str]]
) -> dict[str, Tensor]:
    path, _, parameter = weight.rpartition(".")
    if isinstance(value, tuple):
        return {f"{bases_of(path)[0]}.{'diff' if parameter == 'weight' else 'diff_b'}": value[1][0]}
    parts = zip(_ROLES[value.name], value.weights, strict=True)
    group = {role: torch.as_tensor(part) for role, part in parts if part is not None}
    return kohya.tensors_of_group(bases_of(path)[0], group)
