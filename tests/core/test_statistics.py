"""Sums over many tokens keep their digits."""

import pytest
import torch

from iteris_core.statistics import TOKENS_PER_PRODUCT, add_product, product_dtype


def test_long_float32_sums_stay_as_exact_as_short_ones():
    a = torch.rand(300 * TOKENS_PER_PRODUCT + 7, 3)  # all above 0: the rounding of one long float32 sum would add up
    total = torch.ones(3, 3, dtype=torch.float64)
    add_product(total, a, a)
    expected = a.double().T @ a.double() + 1
    assert ((total - expected).norm() / expected.norm()) < 1e-7
    assert total.dtype == torch.float64


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_products_are_never_computed_in_half_precision(given_dtype, expected):
    assert product_dtype(torch.zeros(1, dtype=given_dtype)) == expected
