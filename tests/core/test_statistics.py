"""Sums over many tokens keep their digits."""

import pytest
import torch

from iteris_core.algebra.statistics import (
    BLOCK,
    TOKENS_PER_PRODUCT,
    InputMoments,
    add_product,
    add_square,
    joint_product,
    mirror,
    product_dtype,
)


def test_long_float32_sums_stay_as_exact_as_short_ones():
    a = torch.rand(
        300 * TOKENS_PER_PRODUCT + 7, 3
    )  # all above 0: the rounding of one long float32 sum would add up
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


@pytest.mark.parametrize("width", [1, BLOCK, BLOCK + 1, 2 * BLOCK + 37])
def test_half_of_a_symmetric_product_is_as_good_as_the_whole(width):
    rows = torch.randn(TOKENS_PER_PRODUCT + 5, width)
    total = torch.zeros(width, width, dtype=torch.float64)
    add_square(total, rows[:100])
    mirror(total)
    add_square(total, rows[100:])  # more rows after the matrix was completed once
    mirror(total)
    assert torch.equal(total, total.T)
    exact = rows.double().T @ rows.double()
    assert (total - exact).norm() < 2e-7 * exact.norm()


def test_a_joint_product_of_kept_rows_is_made_once_for_all_layers_that_read_them():
    first = InputMoments(6, torch.device("cpu"), keep_rows=3)
    second = InputMoments(6, torch.device("cpu"), keep_rows=2)
    rows = torch.randn(5, 6).double()
    first.add(rows[:3], rows[:3])
    second.add(rows[3:], rows[3:])
    product = joint_product([first, second])
    torch.testing.assert_close(product, rows @ rows.T)
    assert joint_product([first, second]) is product
    torch.testing.assert_close(
        joint_product([first]), rows[:3] @ rows[:3].T
    )  # other tasks count: another product
