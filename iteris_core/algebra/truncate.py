"""A cut of a layer's answer to a lower rank, which keeps most of its effect on the measured inputs.

With S the layer's system and S = L L^T, a delta W that is not the optimum W* costs ``||(W - W*)
L||_F^2``. So the best W of rank r is ``[W* L]_r L^-1``, the truncated SVD in that metric: the
optimum of the merge's own objective under a rank constraint (Eckart-Young). Columns here are
transposed: half = L^-1 B = (W* L)^T, (d_in, d_out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..devices import to_cpu
from ..svd import random_columns, svd

_OVERSAMPLING = 16
_POWER_STEPS = 4
_SHIFT = 1e-14  # of products of columns, relative to their squared norms
_TINY = 1e-290  # of squared norms, so that even a zero matrix has a shift


@dataclass(frozen=True)
class Spectrum:
    """Leading singular triplets of ``half``: left (d_in, n), values (n,) falling, right (d_out, n),
    and ``||half||_F^2``. Values and total may be on the CPU.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    total: Tensor

    def kept(self) -> Tensor:
        """Return the share of the total that a cut to rank 1, 2, ... keeps, (n,)."""
        return self.values.square().cumsum(0) / self.total.clamp_min(
            torch.finfo(torch.float64).tiny
        )


def factored_spectrum(half: Tensor, up: Tensor) -> Spectrum:
    """Return the whole spectrum of ``half @ up^T`` through QR of the thin factors and an SVD of a
    small core.

    Args:
        half: (d_in, R).
        up: (d_out, R).
    """
    left, left_core = torch.linalg.qr(half)
    right, right_core = torch.linalg.qr(up)
    u, values, vh = svd(left_core @ right_core.T)
    return Spectrum(left @ u, values, right @ vh.T, values.square().sum())


def leading_spectrum(half: Tensor, count: int) -> Spectrum:
    """Return the first singular triplets of a dense (d_in, d_out) matrix of any precision, float64.

    By a randomised SVD (Halko, Martinsson, Tropp 2011, algorithm 4.4) where that is cheaper than a
    whole one. Its core is small: the CPU decomposes the symmetric matrix whose eigenvalues are the
    squared singular values. That costs digits only of values below 1e-8 of the first.
    """
    norm = torch.linalg.vector_norm(half, dtype=torch.float64)
    smaller = min(half.shape)
    if count + _OVERSAMPLING > smaller // 3:
        u, values, vh = (part.double() for part in svd(half))
        return Spectrum(u[:, :count], values[:count], vh[:count].T, norm.square())
    columns = count + _OVERSAMPLING
    probes = random_columns(half.shape[1], columns, half.dtype, half.device)
    unit = torch.eye(columns, dtype=torch.float64, device=half.device)
    shift = unit * norm.square().clamp_min(_TINY)
    basis = _orthonormal(_times(half, probes), shift, columns)
    for _ in range(_POWER_STEPS):
        basis = _orthonormal(_times(half, _orthonormal(_times(half.T, basis), shift)), shift)
    basis = _orthonormal(basis, unit, columns)
    core = (basis.T @ half).double()
    products, norm = to_cpu(core @ core.T, norm)
    u, squares, _ = svd(products)
    values = squares[:count].sqrt()
    turn = torch.cat([u[:, :count], values[None]]).to(half.device)
    right = core.T @ turn[:-1] / turn[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return Spectrum(basis.double() @ turn[:-1], values, right, norm.square())


def _orthonormal(columns: Tensor, shift: Tensor, times: int = 1) -> Tensor:
    """Return orthonormal columns of the same span, by a Cholesky factor of their products, which a
    GPU finds many times faster than reflections.

    One pass leaves an error of the square of their condition, a second one none. A shift keeps the
    products positive definite, so that directions below 1e-7 of the longest stay short (Fukaya et
    al. 2020, arXiv:1809.11085).

    Args:
        shift: About the largest sum of the columns' squared norms, on a diagonal.
        times: Multiple of the shift.
    """
    exact = columns.double()
    products = torch.addmm(shift, exact.T, exact, beta=times * _SHIFT)
    factor, _ = torch.linalg.cholesky_ex(products)
    found: Tensor = torch.linalg.solve_triangular(factor.T, exact, upper=True, left=False)
    return found.to(columns.dtype)


def _times(matrix: Tensor, few: Tensor) -> Tensor:
    """Return ``matrix @ few``, up to ten times as fast on a CPU: `qr` leaves its few columns in an
    order that suits the transposed product.
    """
    return (few.T @ matrix.T).T


def rank_for_energy(spectrum: Spectrum, kept_energy: float) -> int:
    """Return the smallest rank, at least 1, that keeps this share of the effect."""
    return max(1, min(int((spectrum.kept() < kept_energy - 1e-12).sum()) + 1, len(spectrum.values)))


def delta_of_rank(
    spectrum: Spectrum, rank: int, solve_transposed: Callable[[Tensor], Tensor]
) -> LowRankDelta:
    """Return the best delta of a rank.

    Args:
        spectrum: Leading singular triplets of ``half``, at least `rank` of them.
        solve_transposed: ``Y -> L^-T Y``.
    """
    root = spectrum.values[:rank].sqrt().to(spectrum.left.device)
    return LowRankDelta(
        spectrum.right[:, :rank] * root, (solve_transposed(spectrum.left[:, :rank]) * root).T
    )
