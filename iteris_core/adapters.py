"""Adapters: the content of LoRA files as weight deltas per module. The kinds of adapters that files
hold are in `files.adapter_kinds`.

Letters used throughout the package: d_in and d_out are a layer's widths, r is a rank, tokens are
rows of an input matrix. A weight is (d_out, d_in), as in torch; a k x k convolution counts as d_in
= channels * k * k.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from .devices import moved
from .errors import AdapterError, ConfigError, SolveError
from .svd import has_nearly_full_rank, numerical_rank, svd


@lru_cache(maxsize=4)
def _unit(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a unit matrix, which deltas share; not to be modified."""
    return torch.eye(size, dtype=dtype, device=device)


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
    def from_dense(cls, weight: Tensor) -> LowRankDelta:
        """Return a (d_out, d_in) matrix as factors of its numerical rank, or where that is nearly
        full as the matrix itself, without the minutes that its singular values take.
        """
        if has_nearly_full_rank(weight):
            if weight.shape[0] < weight.shape[1]:
                return cls(_unit(weight.shape[0], weight.dtype, weight.device), weight)
            return cls(weight, _unit(weight.shape[1], weight.dtype, weight.device))
        u, values, vh = svd(weight)
        rank = numerical_rank(values)
        root = values[:rank].sqrt()
        return cls(u[:, :rank] * root, root[:, None] * vh[:rank])

    def dense(self) -> Tensor:
        """Return the delta as a (d_out, d_in) matrix."""
        return self.up @ self.down

    def squared_norm(self) -> Tensor:
        """Return the squared Frobenius norm, ``tr(up^T up down down^T)``, without forming the
        delta unless that is smaller than these products.
        """
        if self.rank > min(self.shape):
            return self.dense().square().sum()
        return ((self.up.T @ self.up) * (self.down @ self.down.T)).sum()

    def scaled(self, factor: float) -> LowRankDelta:
        return self if factor == 1 else replace(self, up=self.up * factor)

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
        used = torch.minimum(up_norm, down_norm) > 0
        ratio = torch.where(used, (down_norm / up_norm).sqrt(), 1.0)
        return LowRankDelta(self.up * ratio, self.down / ratio[:, None])


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Stacked(Generic[Key]):
    """Several deltas as one.

    Args:
        delta: ``[up_1 | ... | up_K] [down_1; ...; down_K]``, of rank ``sum r_k``.
        slices: Key of each part -> its place among the ranks of `delta`: columns of ``up``, rows of
            ``down``.
    """

    delta: LowRankDelta
    slices: Mapping[Key, slice]

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Stacked[Key]:
        return replace(self, delta=self.delta.to(device=device, dtype=dtype))


def stack(
    deltas: Mapping[Key, LowRankDelta], shares: Mapping[Key, float] | None = None
) -> Stacked[Key]:
    """Return ``sum_k shares[k] * deltas[k]`` without forming any weight.

    Args:
        deltas: Key of each part -> its delta; at least one, all of one shape.
        shares: Factor of each part; None: 1 for all.
    """
    slices = {}
    start = 0
    for key, delta in deltas.items():
        slices[key] = slice(start, start + delta.rank)
        start += delta.rank
    ups = [delta.up if shares is None else delta.up * shares[k] for k, delta in deltas.items()]
    downs = [delta.down for delta in deltas.values()]
    return Stacked(LowRankDelta(torch.cat(ups, dim=1), torch.cat(downs, dim=0)), slices)


def sums_of_parts(matrix: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
    """Return the sums over neighbours of these numbers along a dimension, (..., parts, ...).

    >>> sums_of_parts(torch.tensor([1.0, 2.0, 3.0]), [1, 2], 0)
    tensor([1., 5.])
    """
    places = _places_of_parts(tuple(sizes), matrix.dtype, matrix.device)
    return (matrix.movedim(dim, -1) @ places).movedim(-1, dim)


@lru_cache(maxsize=64)
def _places_of_parts(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 1 where a number, a row each, is of a part, a column each, and 0 elsewhere."""
    return torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), dim=0).to(device, dtype)


@dataclass(frozen=True)
class Adapter:
    """One LoRA.

    Args:
        deltas: Module path in the model -> delta of that module's weight.
        unmatched: Keys of the file that belong to no module of the model; reported, never dropped
            silently.
        vectors: Parameter path (a bias, or a norm's weight) -> difference that is added to it.
        keys: Number of keys of the file; 0: it is not known.
        left_out: Keys of the file for text encoders that are never merged.
    """

    name: str
    deltas: Mapping[str, LowRankDelta]
    unmatched: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    keys: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes of its factors and vectors."""
        factors = (side for delta in self.deltas.values() for side in (delta.up, delta.down))
        return sum(tensor.nbytes for tensor in (*factors, *self.vectors.values()))

    @property
    def unread(self) -> float:
        """The share of the file's keys that belong to no module of the model."""
        return len(self.unmatched) / self.keys if self.keys else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether the adapter changes nothing."""
        return not self.deltas and not self.vectors

    def digest(self) -> str:
        """Return a hash of its deltas."""
        return sha256_of_tensors(
            {
                f"{path} {side}": getattr(delta, side)
                for path, delta in self.deltas.items()
                for side in ("up", "down")
            }
        )

    def scaled(self, strength: float) -> Adapter:
        """Return the adapter at a strength; at strength 0 it has neither deltas nor vectors.

        Raises:
            ConfigError: The strength is not a finite number.
        """
        if not math.isfinite(strength):
            raise ConfigError(
                f"the strength of {self.name!r} is {strength}; it must be a finite number"
            )
        if not strength:
            return replace(self, deltas={}, vectors={})
        return replace(
            self,
            deltas={path: delta.scaled(strength) for path, delta in self.deltas.items()},
            vectors={path: vector * strength for path, vector in self.vectors.items()},
        )

    def joined_with(self, other: Adapter) -> Adapter:
        """Return this adapter with another part of the same file."""
        return replace(
            self, deltas={**self.deltas, **other.deltas}, vectors={**self.vectors, **other.vectors}
        )

    def select(self, wanted: Callable[[str], bool]) -> Adapter:
        """Return the part of the adapter whose module and parameter paths pass a test."""
        return replace(
            self,
            deltas={path: delta for path, delta in self.deltas.items() if wanted(path)},
            vectors={path: vector for path, vector in self.vectors.items() if wanted(path)},
        )

    def split(self, belongs: Callable[[str], bool]) -> tuple[Adapter, Adapter]:
        """Return the part of the adapter whose module and parameter paths pass a test, and the
        rest.
        """
        return self.select(belongs), self.select(lambda path: not belongs(path))


def check_adapters(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that cannot be merged with each other, or at all, whatever the model is.

    Raises:
        AdapterError: Two adapters of one name; a change that holds NaN or infinity, or no numbers
            at all; changes of one bias or norm in two shapes; or no change of any layer's weight.
            Names the adapter and the layer.
    """
    if twice := repeated_name(adapters):
        raise AdapterError(
            f"two adapters are called {twice!r}, and a report could not tell them apart. Give each "
            "one a name of its own"
        )
    shapes: dict[str, tuple[Adapter, torch.Size]] = {}
    for adapter in adapters:
        place = unusable_place(adapter)
        if place is not None:
            raise AdapterError(
                f"adapter {adapter.name!r} holds NaN, infinity or no numbers at all in its change "
                f"of {place!r}: its training failed, its file is damaged, or its strength is far "
                "too large. Use another file or strength"
            )
        for path, vector in adapter.vectors.items():
            other, shape = shapes.setdefault(path, (adapter, vector.shape))
            if vector.shape != shape:
                raise AdapterError(
                    f"adapter {adapter.name!r} changes {path!r} by numbers of shape "
                    f"{tuple(vector.shape)}, and adapter {other.name!r} by {tuple(shape)}; they "
                    "were made for two models. Leave one of them out"
                )
    if not target_layers(adapters):
        raise AdapterError(
            "none of the adapters changes the weight of a layer: every strength is 0, or they "
            "change biases and norms alone, which cannot be merged by themselves. Choose others"
        )


def merged_adapter(adapters: Sequence[Adapter], deltas: Mapping[str, LowRankDelta]) -> Adapter:
    """Return the merge of adapters: its deltas, and the mean of their changes of biases and norms.

    Raises:
        SolveError: A number is not finite; names the layer or parameter.
    """
    name = " + ".join(adapter.name for adapter in adapters)
    merged = Adapter(name, deltas, vectors=mean_vectors(adapters))
    place = unusable_place(merged)
    if place is not None:
        raise SolveError(
            f"the merge of {merged.name!r} has NaN or infinity in its change of {place!r}, so "
            "there is nothing to save; lower the strengths, or save in bfloat16 or float32"
        )
    return merged


def unusable_place(adapter: Adapter) -> str | None:
    """Return the first layer or parameter whose change is not made of finite numbers, or None."""
    for path, delta in adapter.deltas.items():
        if not (_is_finite(delta.up) and _is_finite(delta.down)):
            return path
    return next((path for path, v in adapter.vectors.items() if not _is_finite(v)), None)


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta:
        return False
    # one pass without a copy; a sum may overflow where no number is infinite
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor).all())


def target_layers(adapters: Sequence[Adapter]) -> list[str]:
    """Return the module paths that at least one adapter changes, in order of first appearance."""
    return list(dict.fromkeys(path for adapter in adapters for path in adapter.deltas))


def target_shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """Return module path -> (d_out, d_in) of the layers that adapters change."""
    return {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def repeated_name(named: Iterable[_Named]) -> str | None:
    """Return the first name that two of these have, or None."""
    names = [each.name for each in named]
    return next((name for name in names if names.count(name) > 1), None)


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Return names, with their place after those that occur several times.

    >>> told_apart(["cat", "dog", "cat"])
    ('cat (1)', 'dog', 'cat (3)')
    >>> told_apart(["cat (2)", "cat", "cat"])
    ('cat (2) (1)', 'cat (2) (2)', 'cat (3)')
    """
    told = tuple(
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    )
    return told if len(set(told)) == len(told) else told_apart(told)


def mean_vectors(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return the mean of the adapters' changes of biases and norms; an adapter without one counts
    as zero.

    The difference of a bias does not depend on the input, so the mean is the best compromise.
    """
    paths = dict.fromkeys(path for adapter in adapters for path in adapter.vectors)
    return {
        path: torch.stack(
            [adapter.vectors[path] for adapter in adapters if path in adapter.vectors]
        ).sum(0)
        / len(adapters)
        for path in paths
    }


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in whatever order and on
    whatever device they are.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()
