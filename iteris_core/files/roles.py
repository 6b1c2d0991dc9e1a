"""Roles of an adapter's tensors at a module, and checks of these: damaged ones, and those of
another model. Roles that are not named here have LyCORIS' names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError

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

# Role of a vector -> the module's parameter that it is added to.
VECTORS = {DIFF_B: "bias", B_NORM: "bias", W_NORM: "weight"}

Tensors = Mapping[str, Tensor]  # role -> tensor, of one module
Shape = tuple[int, int]  # (d_out, d_in) of a weight, with a convolution's kernel in d_in


class WrongShape(AdapterError):
    """Tensors for a weight of another shape. The reader of the file adds the likely cause."""


@contextlib.contextmanager
def told_of(place: str, cause: Callable[[], str] = str) -> Iterator[None]:
    """Put the place before errors, which begin with the predicate in what follows, and the likely
    cause after errors of a wrong shape.

    Raises:
        AdapterError: Such an error.
    """
    try:
        yield
    except WrongShape as error:
        raise AdapterError(f"{place} {error}. {cause()}") from error
    except AdapterError as error:
        raise AdapterError(f"{place} {error}") from error


def check_scales(tensors: Tensors, shape: Sequence[int]) -> None:
    """Refuse factors of rows or columns that make a weight of another shape than its tensor has.

    Raises:
        AdapterError: Names the factor.
    """
    for role in [role for role in (DORA_SCALE, "rescale") if role in tensors]:
        found = tuple(tensors[role].shape)
        sides = zip(reversed(found), reversed(shape), strict=False)
        if len(found) > len(shape) or any(side not in (1, most) for side, most in sides):
            raise AdapterError(
                f"has a {role} of {found}, which does not fit a weight of {tuple(shape)}; the "
                "file is damaged or for another model. Use another LoRA"
            )


def check_finite(*tensors: Tensor) -> None:
    """Refuse the weights of a broken training run.

    Raises:
        AdapterError: A number is infinite, or is not a number.
    """
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise AdapterError(
            "holds NaN or infinite weights; the training run broke. Use an earlier epoch of this "
            "LoRA"
        )


def check_delta(delta: LowRankDelta) -> None:
    """Refuse factors of a broken training run, or those whose product no number can hold.

    Raises:
        AdapterError: A number is infinite, or is not a number, or would be.
    """
    check_finite(delta.up, delta.down)
    largest = (delta.up.norm(dim=0) * delta.down.norm(dim=1)).sum()
    check_finite(largest)


def check_complete(tensors: Tensors, roles: Sequence[str]) -> None:
    missing = [role for role in roles if role not in tensors]
    if missing:
        raise AdapterError(
            f"has no {' and no '.join(missing)} factor; the file is incomplete. Download it again"
        )


def check_factors(up: Tensor, down: Tensor, shape: Shape, what: str) -> None:
    """Refuse factors (d_out, r) and (r, d_in) that do not fit each other or the weight."""
    if up.shape[1] != len(down):
        raise AdapterError(
            f"has {what}, which have different ranks; the file is damaged. Download it again"
        )
    check_shape((len(up), down.shape[1]), shape, what)


def check_shape(found: tuple[int, ...], expected: Shape, what: str) -> None:
    if found != tuple(expected):
        raise WrongShape(
            f"has {what}, but this model's weight there is {expected[0]} x {expected[1]}"
        )


def damaged(what: str, *tensors: Tensor, why: str) -> AdapterError:
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
    return AdapterError(f"has {what} {shapes}, which {why}; the file is damaged. Download it again")
