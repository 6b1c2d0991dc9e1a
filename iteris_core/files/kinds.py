"""From the tensors that a file holds for one module to the delta of its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError

# (module path, its tensors by role) -> dense delta (d_out, d_in) of an adapter kind that needs the
# base weight, or that only the host knows; the host makes it.
DenseDelta = Callable[[str, Mapping[str, Tensor]], Tensor]

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_KINDS = (
    {
        "set_weight": "a replacement of the weight",
        "dora_scale": "a DoRA",
        "magnitude": "a DoRA",
        "reshape_weight": "a LoRA that reshapes the weight",
        "hada_t1": "a LoHa with a Tucker core",
        "oft_blocks": "an OFT",
        "rescale": "an OFT",
    }
    | {role: "a GLoRA" for role in ("glora_a1", "glora_a2", "glora_b1", "glora_b2")}
    | {
        role: "a LoKr"
        for role in (
            "lokr_w1",
            "lokr_w2",
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2_a",
            "lokr_w2_b",
            "lokr_t2",
        )
    }
)


def vectors_of_group(path: str, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameter path -> what is added to a bias or to a norm's weight."""
    vectors = {}
    for role, parameter in (
        ("diff_b", "bias"),
        ("b_norm", "bias"),
        ("w_norm", "weight"),
        ("diff", "weight"),
    ):
        if role in group and (role != "diff" or group[role].ndim == 1):
            vectors[f"{path}.{parameter}"] = group[role].float()
    return vectors


def kind_of_group(group: Mapping[str, Tensor]) -> str | None:
    """Return what a group is that is more than two factors or a difference, such as ``a LoKr``;
    None if it is not.
    """
    return next((kind for role, kind in _KINDS.items() if role in group), None)


def delta_of_group(
    name: str,
    base: str,
    path: str,
    group: Mapping[str, Tensor],
    shape: tuple[int, int] | None,
    dense_delta: DenseDelta | None,
) -> LowRankDelta | None:
    """Return the delta that a group of tensors describes, strengths folded into ``up``; None if it
    is about vectors only.

    Args:
        name: The file's name, for errors.
        base: The keys' base, for errors.
        path: The module.
        group: Role -> tensor; see `kohya`.
        shape: (d_out, d_in) of the module's weight; None: no layer that can be merged.
        dense_delta: See `DenseDelta`.

    Raises:
        AdapterError: An incomplete group, wrong shapes, weights that are not finite, a kind that
            nobody can read.
    """
    if all(
        role in ("alpha", "diff_b", "w_norm", "b_norm")
        or (role == "diff" and group[role].ndim == 1)
        for role in group
    ):
        return None
    if shape is None:
        raise AdapterError(
            f"{name}: {base!r} changes a layer that is neither Linear nor a convolution without "
            "groups"
        )
    kind = kind_of_group(group)
    if kind is not None:
        if dense_delta is None or "set_weight" in group:
            raise AdapterError(
                f"{name}: {base!r} is {kind}, which cannot be read here; use a plain LoRA, LoCon or "
                "LoHa"
            )
        weight = dense_delta(path, group)
        _check_shape(name, base, tuple(weight.shape), shape, f"{kind} of {tuple(weight.shape)}")
        delta = LowRankDelta.from_dense(_finite(name, base, weight))
    elif "hada_w1_a" in group:
        delta = _loha(name, base, group, shape)
    elif "diff" in group:
        weight = group["diff"].float().flatten(1)
        _check_shape(
            name, base, tuple(weight.shape), shape, f"a difference of {tuple(weight.shape)}"
        )
        delta = LowRankDelta.from_dense(_finite(name, base, weight))
    else:
        delta = _lora(name, base, group, shape)
    _finite(name, base, delta.up)
    _finite(name, base, delta.down)
    return delta


def peft_dora(name: str, base: str, group: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """Return ``m (W + up down) / ||W + up down|| - W``, with one norm per output: a DoRA as PEFT
    defines it.

    Kohya's ``dora_scale`` means the same in LyCORIS, but the host divides by the norms of ``W``
    alone; PEFT's files have never been loaded by it, so theirs keep the meaning with which they
    were trained.

    Args:
        name: The file's name, for errors.
        base: The keys' base, for errors.
        group: Role -> tensor; ``magnitude`` holds d_out numbers.
        weight: The base weight, (d_out, ...).

    Raises:
        AdapterError: As many magnitudes as needed are not there, or what a plain LoRA's factors
            raise.
    """
    weight = weight.float().flatten(1)
    adapted = weight + _lora(name, base, group, tuple(weight.shape)).dense()
    magnitude = group["magnitude"].float().reshape(-1, 1)
    if len(magnitude) != len(weight):
        raise AdapterError(
            f"{name}: {base!r} has {len(magnitude)} magnitudes, but this model's weight there has "
            f"{len(weight)} outputs. The LoRA was trained for another model; use one for SD1.5"
        )
    return (
        magnitude
        * adapted
        / adapted.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        - weight
    )


def lokr(name: str, base: str, group: Mapping[str, Tensor]) -> Tensor:
    """Return the delta of a LoKr, the Kronecker product of two matrices, each whole or as two
    factors; as LyCORIS has it.

    Args:
        name: The file's name, for errors.
        base: The keys' base, for errors.
        group: Role -> tensor.

    Raises:
        AdapterError: Factors are missing or do not fit together.
    """
    parts = []
    rank = None
    for part in ("lokr_w1", "lokr_w2"):
        if part in group:
            parts.append(group[part].float())
            continue
        _check_complete(name, base, group, (f"{part}_a", f"{part}_b"))
        up = group[f"{part}_a"].float()
        down = group[f"{part}_b"].float()
        rank = down.shape[0]
        try:
            if part == "lokr_w2" and "lokr_t2" in group:
                parts.append(torch.einsum("ijkl,jr,ip->prkl", group["lokr_t2"].float(), down, up))
            else:
                parts.append(up @ down.flatten(1))
        except RuntimeError as error:
            found = f"{tuple(up.shape)} and {tuple(down.shape)}"
            raise AdapterError(
                f"{name}: {base!r} has LoKr factors {found}, which do not fit together; it is "
                "damaged"
            ) from error
    first, second = parts
    if second.ndim == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()).flatten(1) * (
        1.0 if rank is None else _scale(name, base, group, rank)
    )


def _lora(
    name: str, base: str, group: Mapping[str, Tensor], shape: tuple[int, int]
) -> LowRankDelta:
    _check_complete(name, base, group, ("up", "down"))
    up = group["up"].float()
    down = group["down"].float()
    found = f"factors {tuple(up.shape)} and {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2 or not down.shape[0]:
        raise AdapterError(
            f"{name}: {base!r} has {found}, which are no matrices; the file is damaged"
        )
    if "mid" in group:  # LoCon's Tucker form: (r, r, height, width) between the two
        mid = group["mid"].float()
        if mid.ndim != 4 or mid.shape[1] != down.shape[0]:
            raise AdapterError(
                f"{name}: {base!r} has {found}, which do not fit its core {tuple(mid.shape)}; it is "
                "damaged"
            )
        down = torch.einsum("mrhw,rc->mchw", mid, down.flatten(1))
    up = up.flatten(1)
    down = down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise AdapterError(
            f"{name}: {base!r} has {found}, which have different ranks; the file is damaged"
        )
    _check_shape(name, base, (up.shape[0], down.shape[1]), shape, found)
    return LowRankDelta(up * _scale(name, base, group, down.shape[0]), down)


def _loha(
    name: str, base: str, group: Mapping[str, Tensor], shape: tuple[int, int]
) -> LowRankDelta:
    """Return ``(w1_a w1_b) * (w2_a w2_b)``, an exact LoRA of rank r1 r2 by the Khatri-Rao product
    of the factors.
    """
    _check_complete(name, base, group, _LOHA)
    found = "LoHa factors " + ", ".join(str(tuple(group[role].shape)) for role in _LOHA)
    if any(group[role].ndim != 2 or not group[role].numel() for role in _LOHA):
        raise AdapterError(
            f"{name}: {base!r} has {found}, which are no matrices; the file is damaged"
        )
    up_1, down_1, up_2, down_2 = (group[role].float() for role in _LOHA)
    for up, down in ((up_1, down_1), (up_2, down_2)):
        _check_shape(name, base, (up.shape[0], down.shape[1]), shape, found)
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1) * _scale(
        name, base, group, down_1.shape[0]
    )
    delta = LowRankDelta(up, (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1))
    return LowRankDelta.from_dense(delta.dense()) if delta.is_oversized else delta


def _scale(name: str, base: str, group: Mapping[str, Tensor], rank: int) -> float:
    if "alpha" not in group:
        return 1.0
    if group["alpha"].numel() != 1:
        raise AdapterError(
            f"{name}: {base!r} has an alpha of {group['alpha'].numel()} numbers, not one; the file "
            "is damaged"
        )
    return group["alpha"].item() / rank


def _check_complete(
    name: str, base: str, group: Mapping[str, Tensor], roles: tuple[str, ...]
) -> None:
    missing = [role for role in roles if role not in group]
    if missing:
        raise AdapterError(
            f"{name}: {base!r} has no {' and no '.join(missing)} factor; the file is incomplete"
        )


def _check_shape(
    name: str, base: str, found: tuple[int, ...], expected: tuple[int, int], words: str
) -> None:
    if tuple(found) != tuple(expected):
        raise AdapterError(
            f"{name}: {base!r} has {words}, but this model's weight there is {expected[0]} x "
            f"{expected[1]}. The LoRA was trained for another model; use one for SD1.5"
        )


def _finite(name: str, base: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise AdapterError(
            f"{name}: {base!r} holds NaN or infinite weights; the training run broke. Use an "
            "earlier epoch of this LoRA"
        )
    return tensor
