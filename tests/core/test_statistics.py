"""Sums over many tokens keep their digits."""

import pytest
import torch

from iteris_core.algebra import statistics
from iteris_core.algebra.products import BLOCK, TOKENS_PER_PRODUCT, add_product, add_square, mirror
from iteris_core.algebra.statistics import KeptRows, Sums, TaskSums
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


@pytest.mark.parametrize("width", [1, BLOCK, 2 * BLOCK + 37])
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
        form = moments.form(down)  # before anything asks for the Gram matrix
        size = moments.size()
        told = (form, size, moments.gram, moments.energy, task.cross, task.codes)
        both.append((moments.tokens, *told, moments.form(down), moments.size()))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [7, TOKENS_PER_PRODUCT // 2, 3 * TOKENS_PER_PRODUCT + 1])
def test_few_rows_wait_for_others_and_all_are_summed(tokens, monkeypatch):
    passes = []
    monkeypatch.setattr(
        statistics, "add_square", lambda *args: passes.append(args) or add_square(*args)
    )
    moments = Sums(4, torch.device("cpu"))
    task = TaskSums(moments, 2, drift_width=3)
    student, codes, drift = (torch.randn(5 * tokens, width) for width in (4, 2, 3))
    for start in range(0, 5 * tokens, tokens):
        rows = slice(start, start + tokens)
        chunk = [part[rows].clone() for part in (student, codes, drift)]
        moments.add(chunk[0], chunk[0])
        task.add(chunk[0], chunk[1], drift=chunk[2])
        for part in chunk:
            part.zero_()  # as a forward call may that goes on with them
    expected = student.double()
    torch.testing.assert_close(moments.gram, expected.T @ expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(task.cross, expected.T @ codes.double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(task.drift, expected.T @ drift.double(), rtol=1e-5, atol=1e-3)
    size = (expected.T @ expected).norm()
    torch.testing.assert_close(moments.size(), size, rtol=1e-5, atol=1e-4)
    at_once = max(1, TOKENS_PER_PRODUCT // tokens)
    assert len(passes) == -(-5 // at_once)
    moments.add(student[:3], student[:3])  # after they were asked for
    assert moments.tokens == 5 * tokens + 3
    both = torch.cat([student, student[:3]]).double()
    assert (moments.size() - size).abs() > 1e-3
    torch.testing.assert_close(moments.size(), (both.T @ both).norm(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.gram, both.T @ both, rtol=1e-5, atol=1e-4)
