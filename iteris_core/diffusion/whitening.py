"""Inputs of layers made alike: the square root of the Gram matrix of what a layer reads.

Gradient steps in whitened inputs, ``A = D G^(-1/2)``, have one size that suits all directions. G is
known from a random sketch (Nystroem, as in Frangella, Tropp and Udell 2023, arXiv:2110.02820).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..devices import exact_products
from ..layers import input_tokens
from ..network import Network
from ..rows.wearing import DeltaCache, layer_hooks, wearing
from ..svd import svd

_DIRECTIONS = 64  # of a layer's inputs that are whitened one by one
_DAMPING = 0.01  # added to the eigenvalues of a Gram matrix, whose mean is 1


@dataclass(frozen=True)
class Whitening:
    """The square root of a Gram matrix, ``U diag(s) U^T + rest (I - U U^T)``.

    Args:
        basis: U, its largest directions, (d_in, k), float32.
        sizes: s, (k,).
        rest: The size of all others.
    """

    basis: Tensor
    sizes: Tensor
    rest: float

    @classmethod
    def of(cls, probes: Tensor, products: Tensor, trace: float) -> Whitening:
        """Return the root of a Gram matrix G, whose mean eigenvalue is made 1.

        Args:
            probes: Orthonormal columns Q, (d_in, k).
            products: G Q.
            trace: Trace of G.
        """
        width, count = probes.shape
        products = products.double() * (width / trace)
        shift = 1e-7 * products.norm()
        products += shift * probes.double()
        core = torch.linalg.cholesky(probes.double().T @ products)
        half = torch.linalg.solve_triangular(core, products.T, upper=False).T
        basis, sizes, _ = svd(half)
        known = (sizes.square() - shift).clamp_min(0)
        rest = max(0.0, width - float(known.sum())) / max(1, width - count)
        return cls(basis.float(), (known + _DAMPING).sqrt().float(), math.sqrt(rest + _DAMPING))

    def to(self, device: torch.device) -> Whitening:
        return Whitening(self.basis.to(device), self.sizes.to(device), self.rest)

    def into(self, down: Tensor) -> Tensor:
        """Return ``A G^(1/2)`` of a factor A, (r, d_in)."""
        codes = down @ self.basis
        return self.rest * down + (codes * (self.sizes - self.rest)) @ self.basis.T

    def back(self, whitened: Tensor) -> Tensor:
        """Return ``D G^(-1/2)`` of a whitened factor D, (r, d_in)."""
        codes = whitened @ self.basis
        return whitened / self.rest + (codes * (1 / self.sizes - 1 / self.rest)) @ self.basis.T


@torch.no_grad()
def whitenings(
    network: Network, merged: Adapter, calls: Iterable[Sequence[Any]]
) -> dict[str, Whitening]:
    """Return the root of the Gram matrix of what each layer reads in the merged model; none for a
    layer that no call reaches.

    Args:
        network: The diffusion model.
        merged: The merged adapter, which all rows wear.
        calls: The rows of each forward call.
    """
    generator = torch.Generator().manual_seed(0)
    probes = {}
    products: dict[str, Tensor] = {}
    squares: dict[str, list[Tensor]] = {}  # of each call, since nothing is read before the last
    for path, delta in merged.deltas.items():
        width = delta.shape[1]
        shape = (width, min(_DIRECTIONS, width))
        probes[path] = torch.linalg.qr(torch.randn(shape, generator=generator)).Q

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        tokens = input_tokens(module, x).flatten(0, -2).float()
        probes[path] = probes[path].to(x.device)
        with exact_products(x.device):
            sketch = tokens.T @ (tokens @ probes[path])
        products[path] = products.get(path, 0) + sketch
        squares.setdefault(path, []).append(tokens.square().sum())
        return y

    modules = {path: network.modules[path] for path in merged.deltas}
    cache = DeltaCache(network.worn_bytes)
    for rows in calls:
        mixes: list[Mapping[int, float]] = [{0: 1.0}] * len(rows)
        with (
            wearing(network.modules, [merged], mixes, cache, network.folds_rows),
            layer_hooks(modules, hook),
        ):
            network.forward(rows)
    traces = {
        path: reduce(add, torch.stack(found).cpu().tolist()) for path, found in squares.items()
    }
    return {
        path: Whitening.of(probes[path].cpu(), products[path].cpu(), traces[path]).to(
            products[path].device
        )
        for path in merged.deltas
        if traces.get(path)
    }
