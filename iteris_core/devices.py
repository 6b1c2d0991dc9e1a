"""How devices compute products and sums: exactly enough, and fast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .memory import is_out_of_memory

logger = logging.getLogger("iteris")


def moved(
    tensor: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a tensor on a device and in a dtype, cast where fewer bytes are copied: so a device
    without float64 never has any.
    """
    if dtype is not None and dtype.itemsize < tensor.dtype.itemsize:
        return tensor.to(dtype=dtype).to(device=device)
    return tensor.to(device=device).to(dtype=dtype)


def to_cpu(*parts: Tensor) -> list[Tensor]:
    """Return tensors on the CPU, which waits for their device once."""
    away = [part for part in parts if part.device.type != "cpu"]
    if not away:
        return list(parts)
    whole = torch.cat([part.flatten().double() for part in away]).cpu()
    pieces = iter(torch.split(whole, [part.numel() for part in away]))
    return [
        part if part.device.type == "cpu" else next(pieces).reshape(part.shape).to(part.dtype)
        for part in parts
    ]


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model runs on and its inputs go to, even if accelerate keeps its
    weights elsewhere until a layer is called.
    """
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):  # several hooks in a row, or one
            device = getattr(part, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(model.parameters()).device


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the precision that makes products on x's device exact enough, inside of
    `exact_products`.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_half(dtype: torch.dtype) -> bool:
    """Whether a precision is one that `half_product` multiplies."""
    return dtype in (torch.float16, torch.bfloat16)


def half_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` of matrices in one half precision, whose products are added up in
    float32; only where `multiplies_halves` says so.
    """
    return torch.mm(a, b, out_dtype=torch.float32)


# Numbers in a sum of the probe; how far it may be off, relative to its size. Tensor cores round
# towards zero, which makes 1e-5; sums or results in half precision are off by 1e-3 and more.
_PROBED = 2048
_FARTHEST = 1e-4


@cache
def multiplies_halves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies a half precision as `half_product` says, by a small product; to
    be asked inside of `exact_products`. Where it does not, the log says so once.
    """
    if not is_half(dtype):
        return False
    chance = torch.Generator().manual_seed(0)
    sizes = torch.tensor([2.0**-20, 1.0, 200.0])[:, None]  # sums from subnormal to above 65504
    rows = (torch.rand(3, _PROBED, generator=chance) * sizes).to(device, dtype)
    try:
        found = half_product(rows, rows[1:].T)
    except (RuntimeError, TypeError) as error:  # not made for this device, or this torch
        if is_out_of_memory(error):
            raise  # which says nothing about the device, and is not to be remembered
        why = str(error).partition("\n")[0]
    else:
        exact = moved(rows, "cpu", torch.float64) @ moved(rows[1:].T, "cpu", torch.float64)
        if ((moved(found, "cpu", torch.float64) - exact).abs() <= _FARTHEST * exact).all():
            return True
        why = "its sums are rounded"
    if device.type == "cuda":
        logger.info("%s has no products of %s with float32 sums (%s)", device, dtype, why)
    return False


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Let products have the precision of their factors, and sums float32 at least.

    Under autocast, which a model may switch on in its forward and a user around a merge, products
    of float32 are rounded to half precision; and to TF32, or bfloat16 on a CPU, where anything in
    the process has allowed that; and sums to float16, which ComfyUI's ``--fast`` allows. All are as
    before afterwards.
    """
    cuda = torch.backends.cuda.matmul
    with (
        torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext(),
        _switched(
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
            (cuda, getattr(torch.backends.mkldnn, "matmul", None)),
        ),
        _switched(
            lambda: getattr(cuda, "allow_fp16_accumulation", False),  # torch 2.7 has it
            lambda allowed: setattr(cuda, "allow_fp16_accumulation", allowed),
            False,
        ),
    ):
        yield


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is switched on for a device."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


@contextmanager
def _switched(
    read: Callable[[], Any], write: Callable[[Any], None], to: Any, backends: Sequence[Any] = ()
) -> Iterator[None]:
    """Have one of torch's older switches at the value that rounds nothing.

    Args:
        backends: Those whose newer switches it sets, too, where this torch has them.
    """
    newer = [each for each in backends if hasattr(each, "fp32_precision")]
    before = [each.fp32_precision for each in newer]
    try:
        was = read()
    except RuntimeError:
        was = None  # the newer ones were set, which this question does not cover
    if was == to:
        yield
        return
    write(to)
    for backend in newer:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if was is not None:
            write(was)
        for backend, precision in zip(newer, before, strict=True):
            backend.fp32_precision = precision


# Compute capabilities of NVIDIA's cards whose float64 is half as fast as their float32; on all
# others is 32 times slower, or more (NVIDIA's CUDA C++ Programming Guide, "Arithmetic
# Instructions"). AMD's cards of major 9 are for computing centres.
_FAST_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
_FAST_MAJOR_OF_AMD = 9


def has_slow_float64(device: torch.device) -> bool:
    """Whether a device computes float64 many times slower than float32, as cards for games do."""
    if device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None:
        return capability[0] != _FAST_MAJOR_OF_AMD
    return capability not in _FAST_FLOAT64


# From this width on, a layer's solve on a CPU is faster by a fifth to a third in float32; below,
# little is gained.
_WIDE_ON_CPU = 512


def in_float32(device: torch.device, width: int) -> bool:
    """Whether a layer is factorised in float32: where float64 is slow, or the layer wide and on a
    CPU.
    """
    return width >= _WIDE_ON_CPU if device.type == "cpu" else has_slow_float64(device)


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return the precision of sums as large as a layer: float32 where float64 is slow, since the
    products that are added up there are no more exact.
    """
    return torch.float32 if has_slow_float64(device) else torch.float64


def statistics_device(device: torch.device) -> torch.device:
    """Return the device of float64 sums of a device's activations: the same, or the CPU if it has
    no float64.
    """
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


@dataclass(frozen=True)
class Workplace:
    """The device of one layer's rows, and the precisions of their products and sums.

    Args:
        kept: Precision of rows whose numbers are the model's own: half precision where the device
            multiplies it exactly, see `multiplies_halves`.
        worn: Precision of the deltas that rows wear: that of products, or the model's own half
            precision, as LoRA loaders have it. To cast inputs and outputs of every layer would take
            a GPU longer than the model's own products; a CPU is slow in half precision.
    """

    device: torch.device
    dtype: torch.dtype
    sums: torch.device
    kept: torch.dtype
    worn: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Workplace:
        dtype = product_dtype(x)
        with exact_products(x.device):
            kept = x.dtype if multiplies_halves(x.device, x.dtype) else dtype
        worn = x.dtype if is_half(x.dtype) and x.device.type != "cpu" else dtype
        return cls(x.device, dtype, statistics_device(x.device), kept, worn)
