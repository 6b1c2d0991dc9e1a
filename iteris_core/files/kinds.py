"""Kinds of adapters: the tensors of each for a module, and the delta that these describe.

All code that distinguishes kinds or tensors derives from `KINDS` and `ENDINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError
from .parts import WeightPart

# Roles: what a tensor is for its module. A weight is (d_out, d_in, height, width) for convolutions.
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

Tensors = Mapping[str, Tensor]  # role -> tensor, of one module
Shape = tuple[int, int]  # (d_out, d_in) of a weight, with a convolution's kernel in d_in
# (weight or part of one, its tensors) -> its dense delta (d_out, d_in), of the kinds that have no
# `read`. Rows of a part are in the order of the files.
DenseDelta = Callable[[WeightPart, Tensors], Tensor]


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
    """

    name: str
    phrase: str
    roles: tuple[str, ...]
    marks: tuple[str, ...]
    needs_weight: bool = False
    read: Callable[[Tensors, Shape], LowRankDelta] | None = None
    read_dense: Callable[[Tensors, Tensor | None], Tensor] | None = None


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
        check_finite(delta.up, delta.down)
        return delta
    if dense_delta is None or kind is REPLACEMENT:
        raise AdapterError(
            f"is {kind.phrase}, which cannot be read here; use a plain LoRA, LoCon or LoHa"
        )
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


def lora_factors(tensors: Tensors, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return the factors of a LoRA or LoCon in float32, (d_out, r) and (r, d_in), without its
    scale.

    Raises:
        AdapterError: A factor is missing, or the factors do not fit together.
        WrongShape: They do not fit the weight.
    """
    _check_complete(tensors, (UP, DOWN))
    up = tensors[UP].float()
    down = tensors[DOWN].float()
    factors = f"factors {tuple(up.shape)} and {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2 or not down.shape[0]:
        raise AdapterError(f"has {factors}, which are no matrices; the file is damaged")
    if MID in tensors:
        mid = tensors[MID].float()
        if mid.ndim != 4 or mid.shape[1] != down.shape[0]:
            raise AdapterError(
                f"has {factors}, which do not fit its core {tuple(mid.shape)}; it is damaged"
            )
        down = torch.einsum("mrhw,rc->mchw", mid, down.flatten(1))
    up = up.flatten(1)
    down = down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise AdapterError(f"has {factors}, which have different ranks; the file is damaged")
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
    check_finite(weight)
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


def lokr(tensors: Tensors) -> Tensor:
    """Return the delta of a LoKr, ``kron(w1, w2) alpha / rank``: each of the two matrices is there
    whole or as two factors, as LyCORIS writes them.

    Raises:
        AdapterError: Factors are missing or do not fit together.
    """
    matrices = []
    rank = None
    for name in ("lokr_w1", "lokr_w2"):
        if name in tensors:
            matrices.append(tensors[name].float())
            continue
        _check_complete(tensors, (f"{name}_a", f"{name}_b"))
        up = tensors[f"{name}_a"].float()
        down = tensors[f"{name}_b"].float()
        rank = down.shape[0]
        try:
            if name == "lokr_w2" and "lokr_t2" in tensors:
                core = tensors["lokr_t2"].float()
                matrices.append(torch.einsum("ijkl,jr,ip->prkl", core, down, up))
            else:
                matrices.append(up @ down.flatten(1))
        except RuntimeError as error:
            raise AdapterError(
                f"has LoKr factors {tuple(up.shape)} and {tuple(down.shape)}, which do not fit "
                "together; it is damaged"
            ) from error
    first, second = matrices
    if second.ndim == 4:
        first = first[:, :, None, None]
    scale = 1.0 if rank is None else _scale(tensors, rank)
    return torch.kron(first, second.contiguous()).flatten(1) * scale


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
    return magnitude * adapted / norms - weight


def _lora(tensors: Tensors, shape: Shape) -> LowRankDelta:
    up, down = lora_factors(tensors, shape)
    return LowRankDelta(up * _scale(tensors, down.shape[0]), down)


def _loha(tensors: Tensors, shape: Shape) -> LowRankDelta:
    """Return ``(w1_a w1_b) * (w2_a w2_b)``, which is a LoRA of rank r1 r2: its factors are
    Khatri-Rao products.
    """
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    _check_complete(tensors, roles)
    factors = "LoHa factors " + ", ".join(str(tuple(tensors[role].shape)) for role in roles)
    if any(tensors[role].ndim != 2 or not tensors[role].numel() for role in roles):
        raise AdapterError(f"has {factors}, which are no matrices; the file is damaged")
    up_1, down_1, up_2, down_2 = (tensors[role].float() for role in roles)
    for up, down in ((up_1, down_1), (up_2, down_2)):
        _check_shape((up.shape[0], down.shape[1]), shape, factors)
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1) * _scale(tensors, down_1.shape[0])
    delta = LowRankDelta(up, (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1))
    return LowRankDelta.from_dense(delta.dense()) if delta.is_oversized else delta


def _difference(tensors: Tensors, shape: Shape) -> LowRankDelta:
    weight = tensors[DIFF].float()
    if weight.ndim < 2:
        raise AdapterError(
            f"has a difference of {tuple(weight.shape)}, which is no matrix; the file is damaged"
        )
    return low_rank(weight.flatten(1), shape, "a difference")


def _scale(tensors: Tensors, rank: int) -> float:
    if ALPHA not in tensors:
        return 1.0
    numbers = tensors[ALPHA].numel()
    if numbers != 1:
        raise AdapterError(f"has an alpha of {numbers} numbers, not one; the file is damaged")
    return tensors[ALPHA].item() / rank


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
    "LoHa", "a LoHa", roles=_LOHA_ROLES, marks=_all_but_alpha(_LOHA_ROLES), read=_loha
)
DIFFERENCE = AdapterKind(
    "full difference", "a difference", roles=(DIFF,), marks=(DIFF,), read=_difference
)
LOCON = AdapterKind("LoCon", "a LoCon", roles=_LORA_ROLES, marks=(MID,), read=_lora)
LORA = AdapterKind("LoRA", "a LoRA", roles=(UP, DOWN, ALPHA), marks=(UP, DOWN), read=_lora)
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
