"""LoRAs that a model already carries, taken off it as the tensors of their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch import Tensor

from ...iteris_core import IterisError
from ...iteris_core.files.adapter_kinds import GLORA, LOHA, LOKR, OFT, RESHAPING
from ...iteris_core.files.groups import key_of, tensors_by_key
from ...iteris_core.files.roles import B_NORM, DIFF, DIFF_B, DORA_SCALE, DOWN, W_NORM

# Name of the host's class -> the roles of the tensors that it keeps, by position; see `weights` in
# its comfy/weight_adapter.
_ROLES = {
    "lora": RESHAPING.roles,
    "loha": (*LOHA.roles, DORA_SCALE),
    "lokr": (*LOKR.roles, DORA_SCALE),
    "glora": (*GLORA.roles, DORA_SCALE),
    "oft": (*OFT.roles, DORA_SCALE),
}
# Parameter -> the roles of what may be added to it as it is.
_DIFFERENCES = {"weight": (DIFF, W_NORM), "bias": (DIFF_B, B_NORM)}

# Strength, patch, strength of the weight itself, part of the weight, function: as ComfyUI keeps a
# patch.
Patch = tuple[float, Any, float, Any, Any]
# (module path, part of its weight, function) -> bases of keys; see `HostKeys.bases_of`.
BasesOf = Callable[[str, Any, Any], Sequence[str]]


@dataclass
class CarriedLora:
    """One LoRA on a model.

    Args:
        keys: The keys of its file that the host used.
        tensors: The model's own key -> tensor.
        strengths: Whether a part is the text encoder's -> the strength that it was applied at; a
            part that the LoRA does not have is absent.
    """

    keys: frozenset[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    strengths: dict[bool, float] = field(default_factory=dict)


def take_off(
    patches: Mapping[str, Sequence[Patch]],
    is_text: Callable[[str], bool],
    bases_of: BasesOf,
) -> tuple[list[CarriedLora], dict[str, list[Patch]]]:
    """Separate the LoRAs on a model from each other and from all other patches.

    All adapters of one file share one set object with the keys that the host used. So that object
    tells files apart, even the same file loaded twice. Differences, norms and biases carry no such
    mark: they belong to the one file that names them.

    Args:
        patches: Weight -> its patches in the order of their application, diffusion model and
            text encoders.
        is_text: Whether a weight is the text encoder's.
        bases_of: Module path, and which part of its weight -> the bases of keys that mean it; the
            first is the model's own.

    Returns:
        The LoRAs in the order of their application, and the patches of no LoRA. Those stay on
        the base model.

    Raises:
        IterisError: A LoRA was scaled by a later patch, was applied at two strengths, or its parts
            cannot be separated.
    """
    loras = _marked(patches)
    rest: dict[str, list[Patch]] = {}
    for weight, on_weight in patches.items():
        for i, patch in enumerate(on_weight):
            strength, value, _, *place = patch
            path, roles = _differences(weight)
            bases = bases_of(path, *place)
            lora = _owner(weight, value, loras, {key_of(b, role) for b in bases for role in roles})
            if lora is None:
                rest.setdefault(weight, []).append(patch)
                continue
            if not bases or any(later[2] != 1 for later in on_weight[i:]):
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
            lora.tensors |= _tensors(bases[0], value, roles[0])
    return list(loras.values()), rest


def count_loras(patches: Mapping[str, Sequence[Patch]]) -> int:
    """Return the number of LoRAs on a model."""
    values = (value for on_weight in patches.values() for _, value, *_ in on_weight)
    return len({id(value.loaded_keys) for value in values if _is_adapter(value)})


def lora_factors(on_weight: Sequence[Any]) -> Iterator[tuple[int, Tensor]]:
    """Yield the marks of the LoRAs that patch a whole weight by plain factors, each with the factor
    that reads the inputs.
    """
    for _, value, _, part, _ in on_weight:
        if part is None and _is_adapter(value) and value.name == "lora":
            yield id(value.loaded_keys), value.weights[_ROLES["lora"].index(DOWN)]


def _is_adapter(value: Any) -> bool:
    return getattr(value, "name", None) in _ROLES and bool(getattr(value, "loaded_keys", None))


def _marked(patches: Mapping[str, Sequence[Patch]]) -> dict[int, CarriedLora]:
    """Return id of a set of used keys -> LoRA, in the order of application.

    In the list of every weight, a later LoRA comes after the earlier ones.
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
    weight: str, value: Any, loras: Mapping[int, CarriedLora], names: set[str]
) -> CarriedLora | None:
    """Return the LoRA that a patch belongs to; None if it is part of no LoRA.

    Args:
        weight: The weight that is patched.
        value: What the patch does.
        loras: See `_marked`.
        names: The keys under which files have a difference of this weight.

    Raises:
        IterisError: It may belong to several.
    """
    if _is_adapter(value):
        return loras[id(value.loaded_keys)]
    if not (isinstance(value, tuple) and value[0] == "diff"):
        return None
    owners = [lora for lora in loras.values() if not names.isdisjoint(lora.keys)]
    if len(owners) > 1:
        raise IterisError(
            f"{len(owners)} LoRAs on this model change {weight!r} by a difference, and the model "
            "does not tell which is whose. Merge the files themselves with 'LoRA to merge'"
        )
    return owners[0] if owners else None


def _tensors(base: str, value: Any, difference: str) -> dict[str, Tensor]:
    """Return a patch as tensors of a file.

    Args:
        base: The base of their keys.
        value: What the patch does.
        difference: The role of what is added as it is.
    """
    if isinstance(value, tuple):
        return {key_of(base, difference): value[1][0]}
    parts = zip(_ROLES[value.name], value.weights, strict=True)
    tensors = {role: torch.as_tensor(part) for role, part in parts if part is not None}
    return tensors_by_key(base, tensors)


def _differences(weight: str) -> tuple[str, tuple[str, str]]:
    """Return the module of a weight or a bias, and the roles of the differences that may be added
    to it.
    """
    path, _, parameter = weight.rpartition(".")
    return path, _DIFFERENCES["weight" if parameter == "weight" else "bias"]
