"""Adapters: what one LoRA file changes, as weight deltas per module.

Letters used throughout the package: d_in and d_out are a layer's widths, r is a rank, tokens are rows of an input matrix.
A weight is (d_out, d_in), as in torch; a k x k convolution counts as d_in = channels * k * k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankDelta:
    """A weight delta ``up @ down``; alpha / rank and the user's strength are folded into ``up``.

    Args:
        up: (d_out, r), LoRA's "B".
        down: (r, d_in), LoRA's "A".
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight that it changes."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """Return the delta as a (d_out, d_in) matrix."""
        return self.up @ self.down

    def squared_norm(self) -> Tensor:
        """Return the squared Frobenius norm, ``tr(up^T up down down^T)``, without forming the delta."""
        return ((self.up.T @ self.up) * (self.down @ self.down.T)).sum()

    def scaled(self, factor: float) -> LowRankDelta:
        return replace(self, up=self.up * factor)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LowRankDelta:
        return LowRankDelta(self.up.to(device=device, dtype=dtype), self.down.to(device=device, dtype=dtype))

    def balanced(self) -> LowRankDelta:
        """Return the same product with equal norms of each column of ``up`` and row of ``down``.

        Half precision keeps the most digits this way, and no factor over- or underflows.
        """
        up_norm, down_norm = self.up.norm(dim=0), self.down.norm(dim=1)
        used = (up_norm > 0) & (down_norm > 0)
        ratio = torch.where(used, (down_norm / up_norm).sqrt(), torch.ones_like(up_norm))
        return LowRankDelta(self.up * ratio, self.down / ratio[:, None])


def stack(deltas: Sequence[LowRankDelta], coefficients: Sequence[float]) -> LowRankDelta:
    """Return ``sum_k coefficients[k] * deltas[k]`` as one delta of rank ``sum r_k``."""
    up = torch.cat([delta.up * c for delta, c in zip(deltas, coefficients, strict=True)], dim=1)
    return LowRankDelta(up, torch.cat([delta.down for delta in deltas], dim=0))


@dataclass(frozen=True)
class Adapter:
    """One LoRA.

    Args:
        name: What to call it in reports and errors, usually the file's name.
        deltas: Module path in the model -> delta of that module's weight.
        unmatched: Keys of the file that belong to no module of the model; reported, never dropped silently.
        metadata: The file's own metadata.
    """

    name: str
    deltas: Mapping[str, LowRankDelta]
    unmatched: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def scaled(self, strength: float) -> Adapter:
        """Return the adapter at a strength; at strength 0 it changes nothing, so it has no deltas."""
        return self.with_deltas({path: delta.scaled(strength) for path, delta in self.deltas.items()} if strength else {})

    def with_deltas(self, deltas: Mapping[str, LowRankDelta]) -> Adapter:
        return replace(self, deltas=deltas)

    def select(self, wanted: Callable[[str], bool]) -> Adapter:
        """Return the part of the adapter whose module paths are wanted."""
        return self.with_deltas({path: delta for path, delta in self.deltas.items() if wanted(path)})

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Adapter:
        return self.with_deltas({path: delta.to(device=device, dtype=dtype) for path, delta in self.deltas.items()})


def target_layers(adapters: Sequence[Adapter]) -> list[str]:
    """Return the module paths that at least one adapter changes, in order of first appearance."""
    return list(dict.fromkeys(path for adapter in adapters for path in adapter.deltas))
