"""The drift of a layer's outputs: how it is measured where numbers are coarse."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..devices import exact_products, product_dtype
from ..layers import base_weight_and_bias, codes_of, output_tokens
from ..processes import Processes

# How far, relative to its outputs, a layer in half precision may be from the product with the
# weight that was read. Rounding makes 0.01 at most; a layer that does more than a product, 0.1 and
# more.
_SAME = 0.05
_PROBE = 64.0  # see `base_weight_and_bias`; far from an overflow of half precision


@dataclass(frozen=True)
class Drifting:
    """The drift of a layer's outputs, ``Y - Y~ = (X - X~) W0^T``.

    In half precision, the difference of two outputs contains their rounding. Where the inputs are
    small compared with the bias, or hardly differ, that is many times the drift. So the drift is
    then computed from the difference of the inputs.

    Args:
        weight: W0, (d_out, d_in), in the precision of the products; None: the difference of the
            outputs is taken.
        is_rounded: Whether that difference is rounded, since the weight could not be read.
    """

    weight: Tensor | None
    is_rounded: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        x: Tensor,
        y: Tensor,
        processes: Processes,
        *,
        by_weight: bool = False,
    ) -> Drifting:
        """Choose how to compute a layer's drift, by an input and its output. All processes choose
        alike, since their sums are added up.

        Args:
            by_weight: Whether to use the weight in full precision, too.
        """
        dtype = product_dtype(x)
        is_half = y.dtype.itemsize < dtype.itemsize
        if not (is_half or by_weight):
            return cls(None)
        if by_weight and type(module) is nn.Linear and "forward" not in vars(module):
            return cls(module.weight.detach().to(x.device, dtype))
        weight, bias = (
            part.to(dtype) for part in base_weight_and_bias(module, x.device, x.dtype, _PROBE)
        )
        outputs = output_tokens(module, y[:1]).to(dtype)
        with exact_products(x.device):
            products = codes_of(module, x[:1], weight) + bias
        # false for what is not finite, too, which the solve explains
        is_same = processes.agree((products - outputs).norm() <= _SAME * outputs.norm())
        return cls(weight if is_same else None, is_rounded=is_half and not is_same)
