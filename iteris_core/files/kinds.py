"""Kinds of adapters: the tensors of each for a module, and the delta that these describe.

All code that distinguishes kinds or tensors derives from `KINDS` and `ENDINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError
from .limits import PRODUCT_NUMBERS, RANK, spend
from .parts import WeightPart

# A weight is (d_out, d_in, height, width) for convolutions.
UP = "up"  # (d_out, rank)
DOWN = "down"  # (rank, d_in, height, width)
MID = "mid"  # the core of LoCon's Tucker form, (rank, rank, height, width)
ALPHA = "alpha"  # one number: the delta is multiplied by alpha / rank
DORA_SCALE = "dora_scale"  # magnitudes of a DoRA by LyCORIS
MAGNITUDE = "magnitude"  # magnitudes of a DoRA by PEFT, (d_out,)
RESHAPE_WEIGHT = "reshape_weight"  # the shape that the weight takes on
DIFF = "diff"  # the delta itself
SET_WEIGHT = "set_weight"  # what takes the place of the weight
DIFF_B = "diff_b"  # what is added to the bias
B_NORM = "b_norm"  # what is added to a norm's bias
W_NORM = "w_norm"  # what is added to a norm's weight

# Role of a vector -> the module's parameter to which it is added.
VECTORS = {DIFF_B: "bias", B_NORM: "bias", W_NORM: "weight"}


# Role of a Tucker form's core -> roles of its two factors.
_TUCKER = {
    "lokr_t2": ("lokr_w2_a", "lokr_w2_b"),
    "hada_t1": ("hada_w1_a", "hada_w1_b"),
    "hada_t2": ("hada_w2_a", "hada_w2_b"),
}
_PAIRS = (
    *_TUCKER.values(),
    ("glora_b1", "glora_b2"),
    ("glora_b2", "glora_b1"),
)


def check_core(tensors: Mapping[str, Tensor], shape: tuple[int, int] | None) -> None:
    """Refuse a LoCon whose core and factor make more numbers than the layer has room for.

    Args:
        tensors: Role -> tensor of one layer.
        shape: Shape of the layer's weight; None: there is no model.

    Raises:
        AdapterError: Begins with the predicate.
    """
    d_out, d_in = shape or (0, 0)
    if MID in tensors and DOWN in tensors:
        _check("a core and a factor", _core(tensors), d_out * d_in)


def check_products(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    """Refuse tensors of which more would be made than the layer has room for.

    Args:
        tensors: Role -> tensor of one layer, of a kind without exact factors.
        shape: Shape of the layer's weight.

    Raises:
        AdapterError: Begins with the predicate.
    """
    d_out, d_in = shape
    check_core(tensors, shape)
    for what, numbers in (*_of_factors(tensors), *_of_lokr(tensors), *_of_glora(tensors, d_out)):
        _check(what, numbers, d_out * d_in)
    if "oft_blocks" in tensors:
        sides = tensors["oft_blocks"].shape
        made = sides[:-2].numel() * max(sides[-2:], default=1) ** 2
        _check("oft_blocks", made, max(d_out, d_in) ** 2)
    if RESHAPE_WEIGHT in tensors:
        new = tensors[RESHAPE_WEIGHT].double().abs().clamp_min(1).prod().item()
        _check(RESHAPE_WEIGHT, new, d_out * d_in)


def check_scales(tensors: Mapping[str, Tensor], shape: Sequence[int]) -> None:
    """Refuse factors of rows or columns that make a weight of another shape.

    Args:
        tensors: Role -> tensor of one layer.
        shape: Shape of the layer's weight as its tensor has it.

    Raises:
        AdapterError: Begins with the predicate.
    """
    for role in (DORA_SCALE, "rescale"):
        if role not in tensors:
            continue
        found = tuple(tensors[role].shape)
        sides = zip(reversed(found), reversed(shape), strict=False)
        if len(found) > len(shape) or any(side not in (1, most) for side, most in sides):
            raise AdapterError(
                f"has a {role} of {found}, which does not go with a weight of {tuple(shape)}; the "
                "file is damaged or for another model. Use another LoRA"
            )


def _check(what: str, numbers: float, room: int) -> None:
    if not numbers <= max(room, PRODUCT_NUMBERS):  # neither where it is NaN
        raise AdapterError(
            f"has {what} that make {numbers:g} numbers, where the weight has {room or 'unknown'} "
            f"and {PRODUCT_NUMBERS} are made at most; the file is damaged or for another model. "
            "Use another LoRA"
        )


def _of_factors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    """Yield what pairs of factors and Tucker forms are called, and how many numbers they make."""
    for core, (first, second) in _TUCKER.items():
        if {core, first, second} <= set(tensors):
            inner = tensors[core].shape
            across = _columns(tensors[second]) * inner[2:].numel()
            yield f"{core} and {second}", inner[:1].numel() * across
            yield f"{core} and {first}", _columns(tensors[first]) * across
    for first, second in _PAIRS:
        if first in tensors and second in tensors:
            yield f"{first} and {second}", _product(tensors, first, second)
    if {UP, DOWN} <= set(tensors) and not {DORA_SCALE, RESHAPE_WEIGHT}.isdisjoint(tensors):
        kernel = tensors[MID].shape[2:].numel() if MID in tensors else 1
        yield "factors", _product(tensors, UP, DOWN) * kernel


def _of_lokr(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    made = 1
    for name in ("lokr_w1", "lokr_w2"):
        if name in tensors:
            made *= tensors[name].numel()
        elif f"{name}_a" in tensors and f"{name}_b" in tensors:
            core = tensors.get("lokr_t2") if name == "lokr_w2" else None
            rows = _rows if core is None else _columns
            kernel = 1 if core is None else core.shape[2:].numel()
            made *= rows(tensors[f"{name}_a"]) * _columns(tensors[f"{name}_b"]) * kernel
    yield "LoKr factors", made


def _of_glora(tensors: Mapping[str, Tensor], d_out: int) -> Iterator[tuple[str, int]]:
    for role in ("glora_a1", "glora_a2"):
        if role in tensors:
            yield role, d_out * _columns(tensors[role])


def _core(tensors: Mapping[str, Tensor]) -> int:
    core = tensors[MID]
    return _rows(core) * _columns(tensors[DOWN]) * core.shape[2:].numel()


def _product(tensors: Mapping[str, Tensor], first: str, second: str) -> int:
    return _rows(tensors[first]) * _columns(tensors[second])


def _rows(tensor: Tensor) -> int:
    return tensor.shape[:1].numel()


def _columns(tensor: Tensor) -> int:
    return tensor.shape[1:].numel()


Tensors = Mapping[str, Tensor]  # role -> tensor, of one module
Shape = tuple[int, int]  # (d_out, d_in) of a weight, with a convolution's kernel in d_in
# (weight or part of one, its tensors) -> its dense delta (d_out, d_in), of the kinds that have no
# `read`. Rows of a part are in the order of the files.
DenseDelta = Callable[[WeightPart, Tensors], Tensor]


_SMALL_RANK = 16  # of a LoHa whose Khatri-Rao factors are hardly larger than its own


class NotMergeable(AdapterError):
    """Tensors for a layer that cannot be merged. The reader of the file adds why."""


class WrongShape(AdapterError):
    """Tensors for a weight of another shape. The reader of the file adds the likely cause."""


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter.

    Args:
        name: Name of the kind, as its users say it.
        phrase: Name inside a sentence, with its article.
        roles: Roles of the tensors that it may have, in ComfyUI's order.
        marks: Roles of which a single one identifies the kind.
        needs_weight: Whether the delta depends on the base model's weight.
        read: Function (tensors, shape) -> delta as exact factors; None: it has no exact factors.
        read_dense: Function (tensors, base weight or None) -> dense delta; None: only ComfyUI's
            code makes it, or none does.
        measure: Function tensors -> rank and squared norm of the delta; None: they are not known
            without the base model.
    """

    name: str
    phrase: str
    roles: tuple[str, ...]
    marks: tuple[str, ...]
    needs_weight: bool = False
    read: Callable[[Tensors, Shape], LowRankDelta] | None = None
    read_dense: Callable[[Tensors, Tensor | None], Tensor] | None = None
    measure: Callable[[Tensors], tuple[int, float]] | None = None


def kind_of(tensors: Tensors) -> AdapterKind:
    """Return the kind to which a module's tensors belong. Without an identifying tensor, it is an
    incomplete LoRA.
    """
    kind = next((kind for kind in KINDS if any(role in tensors for role in kind.marks)), LORA)
    if kind is LORA and DOWN in tensors and tensors[DOWN].shape[2:].numel() > 1:
        return LOCON
    return kind


def delta_of(
    tensors: Tensors,
    shape: Shape | None,
    dense_delta: Callable[[Tensors], Tensor] | None = None,
) -> LowRankDelta | None:
    """Return the delta that a module's tensors describe, with alpha folded into ``up``; None if
    they describe vectors only.

    Args:
        tensors: Role -> tensor of the module.
        shape: Shape of the module's weight, or of the part of it; None: the layer cannot be merged.
        dense_delta: Function that makes deltas without exact factors; None: these are refused.

    Raises:
        AdapterError: The tensors are incomplete, have wrong shapes or are not finite, or are of a
            kind that cannot be read; begins with the predicate, so that the caller can put the
            place before it.
        NotMergeable: There is no shape.
    """
    if set(tensors) <= {*VECTORS, ALPHA}:
        return None
    if shape is None:
        raise NotMergeable(
            "changes a layer that is neither Linear nor a convolution without groups"
        )
    kind = kind_of(tensors)
    if kind.read is not None:
        delta = kind.read(tensors, shape)
        check_delta(delta)
        return delta
    if dense_delta is None or kind is REPLACEMENT:
        raise AdapterError(
            f"is {kind.phrase}, which cannot be read here; use a plain LoRA, LoCon or LoHa"
        )
    check_products(tensors, shape)
    return low_rank(dense_delta(tensors), shape, kind.phrase)


def own_dense_delta(weight_at: Callable[[str], Tensor]) -> DenseDelta:
    """Return a function that makes dense deltas without ComfyUI.

    Args:
        weight_at: Module path -> the base model's weight, (d_out, ...), on the CPU.

    Raises:
        AdapterError: When called, for a kind that only ComfyUI's code applies.
    """

    def made(part: WeightPart, tensors: Tensors) -> Tensor:
        kind = kind_of(tensors)
        if kind.read_dense is None:
            raise AdapterError(
                f"is {kind.phrase}, which only ComfyUI's own code applies; merge it there, or use "
                "a plain LoRA, LoCon or LoHa"
            )
        weight = weight_at(part.path)[part.rows] if kind.needs_weight else None
        return kind.read_dense(tensors, weight)

    return made


def lora_factors(tensors: Tensors, shape: Shape | None) -> tuple[Tensor, Tensor]:
    """Return the factors of a LoRA or LoCon in float32, (d_out, r) and (r, d_in), without its
    scale.

    Args:
        tensors: Role -> tensor.
        shape: The shape of the module's weight; None: there is no model.

    Raises:
        AdapterError: A factor is missing, or the factors do not fit together.
        WrongShape: They do not fit the weight.
    """
    _check_complete(tensors, (UP, DOWN))
    up = tensors[UP].float()
    down = tensors[DOWN].float()
    factors = f"factors {tuple(up.shape)} and {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2 or not up.numel() or not down.numel():
        raise AdapterError(f"has {factors}, which are not matrices; the file is damaged")
    _check_rank(down.shape[0])
    if MID in tensors:
        mid = tensors[MID].float()
        check_core(tensors, shape)
        if mid.ndim != 4 or mid.shape[1] != down.shape[0]:
            raise AdapterError(
                f"has {factors}, which do not fit its core {tuple(mid.shape)}; it is damaged"
            )
        down = torch.einsum("mrhw,rc->mchw", mid, down.flatten(1))
    up = up.flatten(1)
    down = down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise AdapterError(f"has {factors}, which have different ranks; the file is damaged")
    if shape is not None:
        _check_shape((up.shape[0], down.shape[1]), shape, factors)
    return up, down


def low_rank(weight: Tensor, shape: Shape, what: str) -> LowRankDelta:
    """Return a dense delta as factors.

    Args:
        weight: The delta, (d_out, d_in).
        shape: The shape of the module's weight.
        what: Name of the delta in errors, such as ``a LoKr``.

    Raises:
        AdapterError: Numbers that are not finite.
        WrongShape: The delta does not fit the weight.
    """
    found = tuple(weight.shape)
    _check_shape(found, shape, f"{what} of {found}")
    # singular values are up to the norm, which may be more than float32 can hold
    check_finite(weight, weight.norm(dtype=torch.float64).float())
    delta = LowRankDelta.from_dense(weight)
    check_finite(delta.up, delta.down)
    return delta


def check_finite(*tensors: Tensor) -> None:
    """Refuse the weights of a broken training run.

    Raises:
        AdapterError: A number is infinite, or none.
    """
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise AdapterError(
            "holds NaN or infinite weights; the training run broke. Use an earlier epoch of this "
            "LoRA"
        )


def check_delta(delta: LowRankDelta) -> None:
    """Refuse factors of a broken training run, or those whose product no number can hold.

    Raises:
        AdapterError: A number is infinite, or none, or would be.
    """
    check_finite(delta.up, delta.down)
    largest = (delta.up.norm(dim=0) * delta.down.norm(dim=1)).sum()
    check_finite(largest)


def lokr(tensors: Tensors) -> Tensor:
    """Return the delta of a LoKr, ``kron(w1, w2) alpha / rank``: each of the two matrices is there
    whole or as two factors, as LyCORIS writes them.

    Raises:
        AdapterError: Factors are missing or do not fit together.
    """
    first = _lokr_matrix(tensors, "lokr_w1")
    second = _lokr_matrix(tensors, "lokr_w2")
    if first.ndim != 2 or second.ndim not in (2, 4):
        raise AdapterError(
            f"has LoKr matrices {tuple(first.shape)} and {tuple(second.shape)}, which cannot be "
            "multiplied; it is damaged"
        )
    if second.ndim == 4:
        first = first[:, :, None, None]
    factored = [name for name in ("lokr_w2", "lokr_w1") if name not in tensors]
    scale = _scale(tensors, len(tensors[f"{factored[0]}_b"])) if factored else 1.0
    return torch.kron(first, second.contiguous()).flatten(1) * scale


def _lokr_matrix(tensors: Tensors, name: str) -> Tensor:
    """Return one of the two matrices of a LoKr.

    Raises:
        AdapterError: Factors are missing or do not fit together.
    """
    if name in tensors:
        return tensors[name].float()
    _check_complete(tensors, (f"{name}_a", f"{name}_b"))
    up = tensors[f"{name}_a"].float()
    down = tensors[f"{name}_b"].float()
    core = tensors["lokr_t2"].float() if name == "lokr_w2" and "lokr_t2" in tensors else None
    if up.ndim < 2 or down.ndim < 2 or not down.numel():
        raise AdapterError(
            f"has LoKr factors {tuple(up.shape)} and {tuple(down.shape)}, which are not matrices; "
            "the file is damaged"
        )
    try:
        if core is not None:
            return torch.einsum("ijkl,jr,ip->prkl", core, down, up)
        return up @ down.flatten(1)
    except RuntimeError as error:
        raise AdapterError(
            f"has LoKr factors {tuple(up.shape)} and {tuple(down.shape)}, which do not fit "
            "together; it is damaged"
        ) from error


def peft_dora(tensors: Tensors, weight: Tensor | None) -> Tensor:
    """Return the delta of a DoRA as PEFT defines it, ``m (W + up down) / ||W + up down|| - W``,
    with one norm per output.

    LyCORIS means the same by its ``dora_scale``, but the host divides by the norms of ``W`` alone.
    PEFT's files have never been loaded by it, so theirs keep the meaning with which they were
    trained.

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
    return LowRankDelta(up * _scale(tensors, down.shape[0]), down)


def _loha(tensors: Tensors, shape: Shape) -> LowRankDelta:
    """Return ``(w1_a w1_b) * (w2_a w2_b)``, which is a LoRA of rank r1 r2: its factors are
    Khatri-Rao products.
    """
    up_1, down_1, up_2, down_2 = _loha_factors(tensors, shape)
    scale = _scale(tensors, down_1.shape[0])
    d_out, d_in = shape
    if len(down_1) * len(down_2) * (d_out + d_in) >= d_out * d_in:
        return low_rank((up_1 @ down_1) * (up_2 @ down_2) * scale, shape, "a LoHa")
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1) * scale
    return LowRankDelta(up, (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1))


def _loha_factors(tensors: Tensors, shape: Shape | None) -> list[Tensor]:
    """Return the factors of a LoHa in float32: (d_out, r1), (r1, d_in), (d_out, r2), (r2, d_in).

    Raises:
        AdapterError: A factor is missing, or the factors do not fit together.
        WrongShape: They do not fit the weight, if there is one.
    """
    roles = LOHA.roles[:2] + LOHA.roles[3:5]
    _check_complete(tensors, roles)
    factors = "LoHa factors " + ", ".join(str(tuple(tensors[role].shape)) for role in roles)
    if any(tensors[role].ndim != 2 or not tensors[role].numel() for role in roles):
        raise AdapterError(f"has {factors}, which are not matrices; the file is damaged")
    read = [tensors[role].float() for role in roles]
    own = (len(read[0]), read[1].shape[1])
    for up, down in (read[:2], read[2:]):
        if up.shape[1] != len(down):
            raise AdapterError(f"has {factors}, which have different ranks; the file is damaged")
        _check_shape((len(up), down.shape[1]), shape or own, factors)
        _check_rank(len(down))
    return read


def _difference(tensors: Tensors, shape: Shape) -> LowRankDelta:
    return low_rank(_matrix(tensors[DIFF]).float(), shape, "a difference")


def _matrix(difference: Tensor) -> Tensor:
    if difference.ndim < 2 or not difference.numel():
        raise AdapterError(
            f"has a difference of {tuple(difference.shape)}, which is not a matrix; the file is "
            "damaged"
        )
    return difference.flatten(1)


def _measured_lora(tensors: Tensors) -> tuple[int, float]:
    up, down = lora_factors(tensors, None)
    delta = LowRankDelta(up * _scale(tensors, down.shape[0]), down)
    check_delta(delta)
    return delta.rank, delta.squared_norm().item()


def _measured_loha(tensors: Tensors) -> tuple[int, float]:
    """Measure a LoHa without forming it: its Khatri-Rao factors where they are small, else the
    delta, a few rows at a time.
    """
    factors = _loha_factors(tensors, None)
    check_finite(*factors)
    up_1, down_1, up_2, down_2 = factors
    scale = _scale(tensors, len(down_1))
    rank = len(down_1) * len(down_2)
    shape = (len(up_1), down_1.shape[1])
    if rank <= _SMALL_RANK:
        delta = _loha(tensors, shape)
        return rank, delta.squared_norm().item()
    rows = max(1, PRODUCT_NUMBERS // shape[1])
    total = 0.0
    for start in range(0, len(up_1), rows):
        spend()
        some = slice(start, start + rows)
        total += ((up_1[some] @ down_1) * (up_2[some] @ down_2)).square().sum().item()
    return min(rank, *shape), total * scale**2


def _measured_difference(tensors: Tensors) -> tuple[int, float]:
    weight = _matrix(tensors[DIFF])
    total = 0.0
    numbers = weight.flatten()
    for start in range(0, len(numbers), PRODUCT_NUMBERS):
        part = numbers[start : start + PRODUCT_NUMBERS].float()
        check_finite(part)
        total += part.square().sum().item()
    return min(weight.shape), total


def _scale(tensors: Tensors, rank: int) -> float:
    if ALPHA not in tensors:
        return 1.0
    numbers = tensors[ALPHA].numel()
    if numbers != 1:
        raise AdapterError(f"has an alpha of {numbers} numbers, not one; the file is damaged")
    return tensors[ALPHA].item() / rank


def _check_rank(rank: int) -> None:
    if rank > RANK:
        raise AdapterError(
            f"has factors of rank {rank}, but at most {RANK} is read; the file is damaged or "
            "made to do harm. Use another LoRA"
        )


def _check_complete(tensors: Tensors, roles: tuple[str, ...]) -> None:
    missing = [role for role in roles if role not in tensors]
    if missing:
        raise AdapterError(
            f"has no {' and no '.join(missing)} factor; the file is incomplete. Download it again"
        )


def _check_shape(found: tuple[int, ...], expected: Shape, what: str) -> None:
    if found != tuple(expected):
        raise WrongShape(
            f"has {what}, but this model's weight there is {expected[0]} x {expected[1]}"
        )


_LORA_ROLES = (UP, DOWN, ALPHA, MID)
_LOHA_ROLES = (
    "hada_w1_a",
    "hada_w1_b",
    ALPHA,
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
)
_LOKR_ROLES = (
    "lokr_w1",
    "lokr_w2",
    ALPHA,
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
)
_GLORA_ROLES = ("glora_a1", "glora_a2", "glora_b1", "glora_b2", ALPHA)
_OFT_ROLES = ("oft_blocks", "rescale", ALPHA)


def _all_but_alpha(roles: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(role for role in roles if role != ALPHA)


REPLACEMENT = AdapterKind(
    "replaced weight",
    "a replacement of the weight",
    roles=(SET_WEIGHT,),
    marks=(SET_WEIGHT,),
    needs_weight=True,
)
DORA = AdapterKind(
    "DoRA", "a DoRA", roles=(*_LORA_ROLES, DORA_SCALE), marks=(DORA_SCALE,), needs_weight=True
)
PEFT_DORA = AdapterKind(
    "DoRA",
    "a DoRA",
    roles=(*_LORA_ROLES, MAGNITUDE),
    marks=(MAGNITUDE,),
    needs_weight=True,
    read_dense=peft_dora,
)
RESHAPING = AdapterKind(
    "LoRA",
    "a LoRA that reshapes the weight",
    roles=(*_LORA_ROLES, DORA_SCALE, RESHAPE_WEIGHT),
    marks=(RESHAPE_WEIGHT,),
    needs_weight=True,
)
TUCKER_LOHA = AdapterKind(
    "LoHa", "a LoHa with a Tucker core", roles=_LOHA_ROLES, marks=("hada_t1",)
)
OFT = AdapterKind(
    "OFT", "an OFT", roles=_OFT_ROLES, marks=_all_but_alpha(_OFT_ROLES), needs_weight=True
)
GLORA = AdapterKind(
    "GLoRA", "a GLoRA", roles=_GLORA_ROLES, marks=_all_but_alpha(_GLORA_ROLES), needs_weight=True
)
LOKR = AdapterKind(
    "LoKr",
    "a LoKr",
    roles=_LOKR_ROLES,
    marks=_all_but_alpha(_LOKR_ROLES),
    read_dense=lambda tensors, weight: lokr(tensors),
)
LOHA = AdapterKind(
    "LoHa",
    "a LoHa",
    roles=_LOHA_ROLES,
    marks=_all_but_alpha(_LOHA_ROLES),
    read=_loha,
    measure=_measured_loha,
)
DIFFERENCE = AdapterKind(
    "full difference",
    "a difference",
    roles=(DIFF,),
    marks=(DIFF,),
    read=_difference,
    measure=_measured_difference,
)
LOCON = AdapterKind(
    "LoCon", "a LoCon", roles=_LORA_ROLES, marks=(MID,), read=_lora, measure=_measured_lora
)
LORA = AdapterKind(
    "LoRA", "a LoRA", roles=(UP, DOWN, ALPHA), marks=(UP, DOWN), read=_lora, measure=_measured_lora
)
BIAS = AdapterKind("bias", "a bias", roles=(DIFF_B,), marks=(DIFF_B,))
NORM = AdapterKind("norm", "a norm", roles=(W_NORM, B_NORM), marks=(W_NORM, B_NORM))

# A module's tensors are of the first kind of which they have a mark.
KINDS = (
    REPLACEMENT,
    DORA,
    PEFT_DORA,
    RESHAPING,
    TUCKER_LOHA,
    OFT,
    GLORA,
    LOKR,
    LOHA,
    DIFFERENCE,
    LOCON,
    LORA,
    BIAS,
    NORM,
)

# How keys end that no LoRA has -> the kind of adapter, which no loader of ComfyUI's applies.
FOREIGN_ENDINGS = {
    ".on_input": "an IA3, which scales what flows through a layer",
    ".ia3_l": "an IA3, which scales what flows through a layer",
}


def foreign_kind(keys: Iterable[str]) -> str | None:
    """Return what an adapter is that no reader knows, with the key that shows it; None: nothing
    shows it.
    """
    for key in keys:
        for ending, phrase in FOREIGN_ENDINGS.items():
            if key.endswith((ending, f"{ending}.weight")):
                return f"it is {phrase} ({key!r}), and cannot be merged; use a plain LoRA"
    return None


# Role -> how the keys that PEFT saves end.
PEFT_ENDINGS = {UP: ".lora_B.weight", DOWN: ".lora_A.weight"}
# Role -> how the keys of its tensors end, that of kohya's and LyCORIS' trainers first.
ENDINGS: dict[str, tuple[str, ...]] = {
    role: (f".{role}",) for kind in KINDS for role in kind.roles
} | {
    UP: (
        ".lora_up.weight",
        ".lora_B.default.weight",
        PEFT_ENDINGS[UP],
        ".lora_B",
        ".lora.up.weight",
        "_lora.up.weight",
        ".lora_linear_layer.up.weight",
    ),
    DOWN: (
        ".lora_down.weight",
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
    "glora_a1": (".a1.weight",),
    "glora_a2": (".a2.weight",),
    "glora_b1": (".b1.weight",),
    "glora_b2": (".b2.weight",),
}


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
