"""Sums over many tokens keep their digits."""

import pytest
import torch

from iteris_core.algebra.moments import KeptRows, Sums
from iteris_core.algebra.products import BLOCK, TOKENS_PER_PRODUCT, add_product
from iteris_core.algebra.statistics import TaskSums
from iteris_core.devices import product_dtype


def test_long_float32_sums_stay_as_exact_as_short_ones():
    a = torch.rand(
        300 * TOKENS_PER_PRODUCT + 7, 3
    )  # all above 0: the rounding of one long float32 sum would add up
    total = torch.ones(3, 3, dtype=torch.float64)
    for half in (torch.float16, torch.bfloat16):
        assert product_dtype(a.to(half)) == torch.float32
    add_product(total, a, a)
    expected = a.double().T @ a.double() + 1
    assert ((total - expected).norm() / expected.norm()) < 1e-7
    assert total.dtype == torch.float64


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, BLOCK + 2), (torch.float64, 6)])
def test_kept_rows_tell_what_sums_tell(dtype, width):
    teacher, student = torch.randn(2, 5, width, dtype=dtype)
    codes = torch.randn(5, 2, dtype=dtype)
    down = torch.randn(3, width, dtype=torch.float64)
    both = []
    cpu = torch.device("cpu")
    for moments in (Sums(width, cpu), KeptRows(width, cpu, capacity=5)):
        task = TaskSums(moments, 2)
        for part in (slice(0, 2), slice(2, 5)):
            moments.add(teacher[part], student[part])
            task.add(student[part], codes[part])
        task.finish()
        moments.finish()
        told = (moments.gram, moments.size, moments.energy, task.cross, task.codes)
        both.append((moments.tokens, *told, moments.form(down)))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
