"""Kinds of adapters: the tensors of each for a module, and the delta that these describe.

All code that distinguishes kinds or tensors derives from `KINDS`, and from `groups.ENDINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError
from .model_keys import WeightPart
from .roles import (
    ALPHA,
    B_NORM,
    DIFF,
    DIFF_B,
    DORA_SCALE,
    DOWN,
    MAGNITUDE,
    MID,
    RESHAPE_WEIGHT,
    SET_WEIGHT,
    UP,
    W_NORM,
    Shape,
    Tensors,
    WrongShape,
    check_complete,
    check_delta,
    check_factors,
    check_finite,
    check_shape,
    damaged,
)

# (weight or part of one, its tensors) -> its dense delta (d_out, d_in), of the kinds that have no
# `read`. Rows of a part are in the order of the files.
DenseDelta = Callable[[WeightPart, Tensors], Tensor]


def delta_of(
    tensors: Tensors, shape: Shape, dense_delta: Callable[[Tensors], Tensor] | None = None
) -> LowRankDelta:
    """Return the delta that a module's tensors describe, with alpha folded into ``up``.

    Args:
        shape: Shape of the module's weight, or of the part of it.
        dense_delta: Makes deltas that have no exact factors; None: these are refused.

    Raises:
        AdapterError: The tensors are incomplete, have wrong shapes or are not finite, or are of a
            kind that cannot be read.
    """
    kind = kind_of(tensors)
    if kind.read is not None:
        delta = kind.read(tensors, shape)
        check_delta(delta)
        return delta
    if dense_delta is None or kind is REPLACEMENT:
        raise AdapterError(
            f"is {kind.phrase}, which cannot be read here; use a plain LoRA, LoCon or LoHa"
        )
    return low_rank(dense_delta(tensors), shape, kind.phrase)


def own_dense_delta(weight_at: Callable[[str], Tensor]) -> DenseDelta:
    """Return a function that makes dense deltas without ComfyUI, and refuses kinds that only
    ComfyUI's code applies.

    Args:
        weight_at: Module path -> the base model's weight, (d_out, ...), on the CPU.
    """

    def made(part: WeightPart, tensors: Tensors) -> Tensor:
        kind = kind_of(tensors)
        if kind is PEFT_DORA:
            return peft_dora(tensors, weight_at(part.path)[part.rows])
        raise AdapterError(
            f"is {kind.phrase}, which only ComfyUI's own code applies; merge it there, or use a "
            "plain LoRA, LoCon or LoHa"
        )

    return made


def lora_factors(tensors: Tensors, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return the factors of a LoRA or LoCon in float32, (d_out, r) and (r, d_in), without its
    scale.

    Raises:
        AdapterError: A factor is missing, or the factors do not fit together.
        WrongShape: They do not fit the weight.
    """
    check_complete(tensors, (UP, DOWN))
    up = tensors[UP].float()
    down = tensors[DOWN].float()
    if up.ndim < 2 or down.ndim < 2 or not up.numel() or not down.numel():
        raise damaged("factors", up, down, why="are not matrices")
    what = f"factors {tuple(up.shape)} and {tuple(down.shape)}"
    if MID in tensors:
        mid = tensors[MID].float()
        if mid.ndim != 4 or mid.shape[:2] != (up.shape[1], len(down)):
            raise damaged("factors and a core", up, down, mid, why="do not fit together")
        # before a product is made, which may be too large for the memory
        check_shape((len(up), down[0].numel() * mid[0, 0].numel()), shape, what)
        down = torch.einsum("mrhw,rc->mchw", mid, down.flatten(1))
    up = up.flatten(1)
    down = down.flatten(1)
    check_factors(up, down, shape, what)
    return up, down


def low_rank(weight: Tensor, shape: Shape, what: str) -> LowRankDelta:
    """Return a dense delta (d_out, d_in), whose name in errors is `what`, as factors.

    Raises:
        AdapterError: Numbers that are not finite.
        WrongShape: The delta does not fit the weight.
    """
    found = tuple(weight.shape)
    check_shape(found, shape, f"{what} of {found}")
    # singular values are up to the norm, which may be more than float32 can hold
    check_finite(weight, weight.norm(dtype=torch.float64).float())
    delta = LowRankDelta.from_dense(weight)
    check_finite(delta.up, delta.down)
    return delta


def peft_dora(tensors: Tensors, weight: Tensor | None) -> Tensor:
    """Return the delta of a DoRA as PEFT defines it, ``m (W + up down) / ||W + up down|| - W``,
    with one norm per output.

    LyCORIS means the same by its ``dora_scale``, but the host divides by the norms of ``W`` alone.

    Args:
        tensors: Factors of a LoRA, and d_out magnitudes.
        weight: The base model's weight, (d_out, ...); None: there is no base model.

    Raises:
        AdapterError: There is no base model, or the factors cannot be read.
        WrongShape: Factors or magnitudes do not fit the weight.
    """
    if weight is None:
        raise AdapterError(
            "is a DoRA, whose delta depends on the base model's weights; give `weight_at`, which "
            "returns them"
        )
    weight = weight.float().flatten(1)
    adapted = weight + _lora(tensors, (weight.shape[0], weight.shape[1])).dense()
    magnitude = tensors[MAGNITUDE].float().reshape(-1, 1)
    if len(magnitude) != len(weight):
        raise WrongShape(
            f"has {len(magnitude)} magnitudes, but this model's weight there has {len(weight)} "
            "outputs"
        )
    norms = adapted.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    delta: Tensor = magnitude * adapted / norms - weight
    return delta


def _lora(tensors: Tensors, shape: Shape) -> LowRankDelta:
    up, down = lora_factors(tensors, shape)
    return LowRankDelta(up * _scale(tensors, len(down)), down)


def _loha(tensors: Tensors, shape: Shape) -> LowRankDelta:
    """Return ``(w1_a w1_b) * (w2_a w2_b)``, which is a LoRA of rank r1 r2: its factors are
    Khatri-Rao products.
    """
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    check_complete(tensors, roles)
    factors = [tensors[role].float() for role in roles]
    if any(factor.ndim != 2 or not factor.numel() for factor in factors):
        raise damaged("LoHa factors", *factors, why="are not matrices")
    what = "LoHa factors " + ", ".join(str(tuple(factor.shape)) for factor in factors)
    up_1, down_1, up_2, down_2 = factors
    check_factors(up_1, down_1, shape, what)
    check_factors(up_2, down_2, shape, what)
    scale = _scale(tensors, len(down_1))
    d_out, d_in = shape
    if len(down_1) * len(down_2) * (d_out + d_in) >= d_out * d_in:
        return low_rank((up_1 @ down_1) * (up_2 @ down_2) * scale, shape, "a LoHa")
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1) * scale
    return LowRankDelta(up, (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1))


def _lokr(tensors: Tensors, shape: Shape) -> LowRankDelta:
    """Return ``kron(w1, w2) alpha / rank``: each of the two matrices is there whole or as two
    factors, as LyCORIS writes them. Factors of the product are products of their factors.
    """
    (d_out_1, d_in_1), (d_out_2, d_in_2) = (_lokr_shape(tensors, f"lokr_w{i}") for i in (1, 2))
    found = (d_out_1 * d_out_2, d_in_1 * d_in_2)
    # before a product is made, which may be too large for the memory
    check_shape(found, shape, f"a LoKr of {found}")
    first = _lokr_matrix(tensors, "lokr_w1")
    second = _lokr_matrix(tensors, "lokr_w2")
    if first.ndim != 2 or second.ndim not in (2, 4):
        raise damaged("LoKr matrices", first, second, why="cannot be multiplied")
    factored = [name for name in ("lokr_w2", "lokr_w1") if name not in tensors]
    scale = _scale(tensors, len(tensors[f"{factored[0]}_b"])) if factored else 1.0
    second = second.flatten(1)
    a = low_rank(first, (len(first), first.shape[1]), "a LoKr matrix")
    b = low_rank(second, (len(second), second.shape[1]), "a LoKr matrix")
    return LowRankDelta(_kron(a.up, b.up) * scale, _kron(a.down, b.down))


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Return the Kronecker product of matrices; torch's takes none without columns."""
    sides = (len(a) * len(b), a.shape[1] * b.shape[1])
    return (a[:, None, :, None] * b[None, :, None, :]).reshape(sides)


def _lokr_shape(tensors: Tensors, name: str) -> Shape:
    """Return the shape that `_lokr_matrix` will have, with a convolution's kernel in d_in."""
    roles = (name, name) if name in tensors else (f"{name}_a", f"{name}_b")
    check_complete(tensors, roles)
    up, down = (tensors[role] for role in roles)
    if up.ndim < 2 or down.ndim < 2 or not down.numel():
        raise damaged("LoKr factors", up, down, why="are not matrices")
    if name == "lokr_w2" and name not in tensors and "lokr_t2" in tensors:
        return up.shape[1], down.shape[1] * tensors["lokr_t2"].shape[2:].numel()
    return len(up), down.shape[1:].numel()


def _lokr_matrix(tensors: Tensors, name: str) -> Tensor:
    if name in tensors:
        return tensors[name].float()
    up = tensors[f"{name}_a"].float()
    down = tensors[f"{name}_b"].float()
    try:
        if name == "lokr_w2" and "lokr_t2" in tensors:
            return torch.einsum("ijkl,jr,ip->prkl", tensors["lokr_t2"].float(), down, up)
        return up @ down.flatten(1)
    except RuntimeError as error:
        raise damaged("LoKr factors", up, down, why="do not fit together") from error


def _difference(tensors: Tensors, shape: Shape) -> LowRankDelta:
    difference = tensors[DIFF]
    if difference.ndim < 2 or not difference.numel():
        raise damaged("a difference of", difference, why="is not a matrix")
    return low_rank(difference.flatten(1).float(), shape, "a difference")


def _scale(tensors: Tensors, rank: int) -> float:
    if ALPHA not in tensors:
        return 1.0
    numbers = tensors[ALPHA].numel()
    if numbers != 1:
        raise AdapterError(
            f"has an alpha of {numbers} numbers, not one; the file is damaged. Download it again"
        )
    return tensors[ALPHA].item() / rank


# --- the kinds ---


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter.

    Args:
        phrase: Name inside a sentence, with its article.
        roles: Roles of the tensors that it may have, in ComfyUI's order.
        marks: Roles that each identify the kind.
        read: (tensors, shape) -> delta as exact factors; None: it has no exact factors.
    """

    phrase: str
    roles: tuple[str, ...]
    marks: tuple[str, ...]
    read: Callable[[Tensors, Shape], LowRankDelta] | None = None


_LORA = (UP, DOWN, ALPHA, MID)
_LOHA = ("hada_w1_a", "hada_w1_b", ALPHA, "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR_PARTS = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_LOKR = ("lokr_w1", "lokr_w2", ALPHA, *_LOKR_PARTS)
_GLORA = ("glora_a1", "glora_a2", "glora_b1", "glora_b2")
_OFT = ("oft_blocks", "rescale")

REPLACEMENT = AdapterKind("a replacement of the weight", (SET_WEIGHT,), (SET_WEIGHT,))
PEFT_DORA = AdapterKind("a DoRA", (*_LORA, MAGNITUDE), (MAGNITUDE,))
GLORA = AdapterKind("a GLoRA", (*_GLORA, ALPHA), _GLORA)
LORA = AdapterKind("a LoRA", _LORA, (MID, UP, DOWN), _lora)
# A module's tensors are of the first kind that they have a mark of.
KINDS = (
    REPLACEMENT,
    AdapterKind("a DoRA", (*_LORA, DORA_SCALE), (DORA_SCALE,)),
    PEFT_DORA,
    AdapterKind(
        "a LoRA that reshapes the weight", (*_LORA, DORA_SCALE, RESHAPE_WEIGHT), (RESHAPE_WEIGHT,)
    ),
    AdapterKind("a LoHa with a Tucker core", _LOHA, ("hada_t1",)),
    AdapterKind("an OFT", (*_OFT, ALPHA), _OFT),
    GLORA,
    AdapterKind("a LoKr", _LOKR, ("lokr_w1", "lokr_w2", *_LOKR_PARTS), _lokr),
    AdapterKind("a LoHa", _LOHA, (*_LOHA[:2], *_LOHA[3:]), _loha),
    AdapterKind("a difference", (DIFF,), (DIFF,), _difference),
    LORA,
    AdapterKind("a bias", (DIFF_B,), (DIFF_B,)),
    AdapterKind("a norm", (W_NORM, B_NORM), (W_NORM, B_NORM)),
)


def kind_of(tensors: Tensors) -> AdapterKind:
    """Return the kind of a module's tensors. Without an identifying tensor, it is an incomplete
    LoRA.
    """
    return next((kind for kind in KINDS if any(role in tensors for role in kind.marks)), LORA)
