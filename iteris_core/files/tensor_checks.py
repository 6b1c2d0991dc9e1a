"""Checks of an adapter's tensors at a module: damaged ones, those of another model, and those made
to do harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError
from .limits import PRODUCT_NUMBERS, RANK
from .roles import DORA_SCALE, RESHAPE_WEIGHT, Shape, Tensors


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


# First factor of a Tucker form -> the core before which it is transposed.
_CORES = {"hada_w1_a": "hada_t1", "hada_w2_a": "hada_t2", "lokr_w2_a": "lokr_t2"}


def check_products(tensors: Tensors, shape: Shape | None) -> None:
    """Refuse tensors of a layer whose products may have more numbers than its weight has room for
    (without a shape: than `PRODUCT_NUMBERS`). No product of factors has more rows, columns and
    places of a kernel than the tensors that have most of them.

    Raises:
        AdapterError: Names the tensors.
    """
    d_out, d_in = shape or (0, 0)
    factors = {role: tensor for role, tensor in tensors.items() if role != "oft_blocks"}
    has_glora = any(role.startswith("glora_a") for role in factors)  # multiplied by the weight
    rows = {"weight": d_out if has_glora else 1}
    columns = {"weight": 1}
    for role, tensor in factors.items():
        sides = (*tensor.shape[:2], 1, 1)[:2]
        rows[role], columns[role] = sides[::-1] if _CORES.get(role) in tensors else sides
    high = max(rows, key=rows.__getitem__)
    wide = max(columns, key=columns.__getitem__)
    kernel = max((tensor.shape[2:].numel() for tensor in factors.values()), default=1)
    _check_room(f"{high} and {wide}", rows[high] * columns[wide] * kernel, d_out * d_in)
    _check_room("LoKr factors", _lokr_numbers(tensors, rows, columns), d_out * d_in)
    if "oft_blocks" in tensors:  # rotations of one side of the weight
        sides = tensors["oft_blocks"].shape
        made = sides[:-2].numel() * max(sides[-2:], default=1) ** 2
        _check_room("oft_blocks", made, max(d_out, d_in) ** 2)
    if RESHAPE_WEIGHT in tensors:
        new = tensors[RESHAPE_WEIGHT].double().abs().clamp_min(1).prod().item()
        _check_room(RESHAPE_WEIGHT, new, d_out * d_in)


def _check_room(what: str, numbers: float, room: int) -> None:
    if not numbers <= max(room, PRODUCT_NUMBERS):  # NaN is refused, too
        raise AdapterError(
            f"has {what} that make {numbers:g} numbers; the layer has room for "
            f"{room or 'an unknown number'}, and at most {PRODUCT_NUMBERS} are made. The file is "
            "damaged or for another model. Use another LoRA"
        )


def _lokr_numbers(tensors: Tensors, rows: Mapping[str, int], columns: Mapping[str, int]) -> int:
    made = 1
    for name, core in (("lokr_w1", ""), ("lokr_w2", "lokr_t2")):
        first, second = (name, name) if name in tensors else (f"{name}_a", f"{name}_b")
        own = (tensors[role] for role in (first, second, core) if role in tensors)
        kernel = max((tensor.shape[2:].numel() for tensor in own), default=1)
        made *= rows.get(first, 1) * columns.get(second, 1) * kernel
    return made


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


def check_factors(up: Tensor, down: Tensor, shape: Shape | None, what: str) -> None:
    """Refuse factors (d_out, r) and (r, d_in) that do not fit each other or the weight."""
    if up.shape[1] != len(down):
        raise AdapterError(
            f"has {what}, which have different ranks; the file is damaged. Download it again"
        )
    if len(down) > RANK:
        raise AdapterError(
            f"has factors of rank {len(down)}, but at most {RANK} is read; the file is damaged or "
            "made to do harm. Use another LoRA"
        )
    check_shape((len(up), down.shape[1]), shape, what)


def check_shape(found: tuple[int, ...], expected: Shape | None, what: str) -> None:
    if expected is not None and found != tuple(expected):
        raise WrongShape(
            f"has {what}, but this model's weight there is {expected[0]} x {expected[1]}"
        )


def damaged(what: str, *tensors: Tensor, why: str) -> AdapterError:
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
    return AdapterError(f"has {what} {shapes}, which {why}; the file is damaged. Download it again")
