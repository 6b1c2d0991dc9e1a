"""Singular values where LAPACK returns NaN for a finite matrix."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iteris_core.errors import SolveError
from iteris_core.svd import svd

# From a merge of two T5 LoRAs: values from 0.8 to 1e-6, and half of them rounding. MKL's gesdd, in
# torch 2.13 for the CPU, returns a vector of NaN for it.
HARD = Path(__file__).parents[1] / "data" / "svd_nan.safetensors"


def assert_is_svd_of(found, matrix):
    u, values, vh = found
    same = torch.eye(len(values), dtype=matrix.dtype)
    torch.testing.assert_close((u * values) @ vh, matrix, rtol=0, atol=1e-13)
    torch.testing.assert_close(u.T @ u, same, rtol=0, atol=1e-13)
    torch.testing.assert_close(vh @ vh.T, same, rtol=0, atol=1e-13)
    assert (values.diff() <= 0).all()


def test_a_matrix_for_which_lapack_returns_nan():
    matrix = load_file(HARD)["matrix"]
    found = svd(matrix)
    assert_is_svd_of(found, matrix)
    assert found[1][15].item() == pytest.approx(9.18116534e-07, rel=1e-6), "by LAPACK's gesvd"


@pytest.mark.parametrize(
    ("shape", "failures", "loud"),
    [((7, 4), 1, True), ((4, 7), 1, False), ((5, 5), 2, True), ((7, 4), 2, False)],
)
def test_it_is_tried_once_more_and_then_refused(monkeypatch, shape, failures, loud):
    library = torch.linalg.svd
    calls = []

    def failing(matrix, full_matrices):
        calls.append(matrix)
        u, values, vh = library(matrix, full_matrices=full_matrices)
        if len(calls) <= failures:
            if loud:
                raise torch.linalg.LinAlgError("it did not converge")
            u[:, -1] = vh[-1] = float("nan")
        return u, values, vh

    monkeypatch.setattr(torch.linalg, "svd", failing)
    matrix = torch.randn(shape, dtype=torch.float64)
    if failures == 2:
        with pytest.raises(SolveError, match=f"{shape[0]} x {shape[1]}.*library failed"):
            svd(matrix)
    else:
        assert_is_svd_of(svd(matrix), matrix)
        assert len(calls) == 1 + failures


def test_a_matrix_that_is_not_finite_is_refused_as_such():
    with pytest.raises(SolveError, match="it holds NaN or infinite numbers"):
        svd(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
