"""Adapters: what one LoRA file changes, as weight deltas per module.

Letters used throughout the package: d_in and d_out are a layer's widths, r is a rank, tokens are
rows of an input matrix. A weight is (d_out, d_in), as in torch; a k x k convolution counts as d_in
= channels * k * k.
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

    @property
    def is_oversized(self) -> bool:
        """Whether the factors together are no smaller than the weight that they describe."""
        d_out, d_in = self.shape
        return self.rank * (d_out + d_in) >= d_out * d_in

    @classmethod
    def from_dense(cls, weight: Tensor, tolerance: float = 1e-6) -> LowRankDelta:
        """Return a (d_out, d_in) matrix as factors of its numerical rank.

        Singular values up to ``tolerance`` times the first are left out.
        """
        u, values, vh = torch.linalg.svd(weight, full_matrices=False)
        rank = max(1, int((values > tolerance * values[0]).sum()))
        root = values[:rank].sqrt()
        return cls(u[:, :rank] * root, root[:, None] * vh[:rank])

    def dense(self) -> Tensor:
        """Return the delta as a (d_out, d_in) matrix."""
        return self.up @ self.down

    def squared_norm(self) -> Tensor:
        """Return the squared Frobenius norm, ``tr(up^T up down down^T)``, without forming the
        delta.
        """
        return ((self.up.T @ self.up) * (self.down @ self.down.T)).sum()

    def scaled(self, factor: float) -> LowRankDelta:
        return replace(self, up=self.up * factor)

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LowRankDelta:
        return LowRankDelta(moved(self.up, device, dtype), moved(self.down, device, dtype))

    def balanced(self) -> LowRankDelta:
        """Return the same product with equal norms of each column of ``up`` and row of ``down``.

        Half precision keeps the most digits this way, and no factor over- or underflows.
        """
        up_norm = self.up.norm(dim=0)
        down_norm = self.down.norm(dim=1)
        used = (up_norm > 0) & (down_norm > 0)
        ratio = torch.where(used, (down_norm / up_norm).sqrt(), torch.ones_like(up_norm))
        return LowRankDelta(self.up * ratio, self.down / ratio[:, None])


def moved(
    tensor: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a tensor on a device and in a dtype, cast on the CPU's side: not every device has
    float64.
    """
    if tensor.device.type == "cpu":
        return tensor.to(dtype=dtype).to(device=device)
    return tensor.to(device=device).to(dtype=dtype)


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
        unmatched: Keys of the file that belong to no module of the model; reported, never dropped
            silently.
        metadata: The file's own metadata.
        vectors: Parameter path (a bias, or a norm's weight) -> what is added to it.
    """

    name: str
    deltas: Mapping[str, LowRankDelta]
    unmatched: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing."""
        return not self.deltas and not self.vectors

    def scaled(self, strength: float) -> Adapter:
        """Return the adapter at a strength; at strength 0 it changes nothing, so nothing is left of
        it.
        """
        if not strength:
            return replace(self, deltas={}, vectors={})
        vectors = {path: vector * strength for path, vector in self.vectors.items()}
        return replace(
            self,
            deltas={path: delta.scaled(strength) for path, delta in self.deltas.items()},
            vectors=vectors,
        )

    def joined_with(self, other: Adapter) -> Adapter:
        """Return this adapter with another part of the same file."""
        return replace(
            self, deltas={**self.deltas, **other.deltas}, vectors={**self.vectors, **other.vectors}
        )

    def with_deltas(self, deltas: Mapping[str, LowRankDelta]) -> Adapter:
        return replace(self, deltas=deltas)

    def select(self, wanted: Callable[[str], bool]) -> Adapter:
        """Return the part of the adapter whose module and parameter paths are wanted."""
        vectors = {path: vector for path, vector in self.vectors.items() if wanted(path)}
        return replace(
            self,
            deltas={path: delta for path, delta in self.deltas.items() if wanted(path)},
            vectors=vectors,
        )

    def split(self, belongs: Callable[[str], bool]) -> tuple[Adapter, Adapter]:
        """Return the part of the adapter whose module and parameter paths belong, and the rest."""
        return self.select(belongs), self.select(lambda path: not belongs(path))

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Adapter:
        return self.with_deltas(
            {path: delta.to(device=device, dtype=dtype) for path, delta in self.deltas.items()}
        )


def target_layers(adapters: Sequence[Adapter]) -> list[str]:
    """Return the module paths that at least one adapter changes, in order of first appearance."""
    return list(dict.fromkeys(path for adapter in adapters for path in adapter.deltas))


def names_of(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Return the adapters' names, with a number where several have the same."""
    names = [adapter.name for adapter in adapters]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({k + 1})" for k, name in enumerate(names)
    )


def mean_vectors(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return the mean of the adapters' bias and norm changes; an adapter without one counts as zero
    there.

    What is added to a bias does not depend on the input, so the best compromise between tasks is
    their mean.
    """
    paths = dict.fromkeys(path for adapter in adapters for path in adapter.vectors)
    return {
        path: torch.stack(
            [adapter.vectors[path] for adapter in adapters if path in adapter.vectors]
        ).sum(0)
        / len(adapters)
        for path in paths
    }
