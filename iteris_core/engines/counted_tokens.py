"""Which tokens of a layer's rows count in the statistics, with what weight, and how the tokens of
teacher and student are paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..devices import Workplace
from ..layers import is_patchwise, weight_shape
from ..rows.chunks import Block
from .problem import Problem

# Rows of up to so many tokens are read whole: texts are short, with distinct tokens and padding.
_READ_WHOLE = 512
# Patches of all rows that count at a k x k convolution, whose inputs are up to 23040 wide in SD1.5.
PATCHES = 4096
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class CountedTokens:
    """The tokens of some rows that count.

    Args:
        picked: Tokens that are read, the same in every row: a slice, or their numbers. Ignored if
            `counted` is given.
        counted: Row and number of each token that counts, (n,) both; None: all that are picked.
        roots: Roots of their weights, (n, 1); None: all are 1.
        answering: Number of the teacher's token that answers to each token of its student, (rows,
            picked) or, with `counted`, (n,); None: the one with the same number.
    """

    picked: Tensor | slice
    counted: tuple[Tensor, Tensor] | None = None
    roots: Tensor | None = None
    answering: Tensor | None = None

    def of_student(self, part: Tensor) -> Tensor:
        """Return (rows, tokens, d) as the tokens that count, (n, d)."""
        return part[:, self.picked].flatten(0, 1) if self.counted is None else part[self.counted]

    def of_teacher(self, part: Tensor) -> Tensor:
        """Return (rows, tokens, d) of teachers as the tokens that answer to `of_student`'s,
        (n, d).
        """
        if self.answering is None:
            return self.of_student(part)
        if self.counted is not None:
            return part[self.counted[0], self.answering]
        numbers = self.answering[:, :, None].expand(-1, -1, part.shape[2])
        return part.gather(1, numbers).flatten(0, 1)

    def weighed(self, part: Tensor) -> Tensor:
        """Return (n, d) times the roots of the tokens' weights."""
        return part if self.roots is None else part * self.roots


def tokens_read(module: nn.Module, count: int, problem: Problem) -> int:
    """Return the number of tokens of a row that are read: all of them, or as many as the settings
    allow.

    Args:
        count: Number of tokens of a row.
    """
    config = problem.config
    most = count
    if is_patchwise(module):
        return min(most, max(1, PATCHES // problem.samples))
    if config.tokens_per_dimension is not None and count > _READ_WHOLE:
        fewest = min(len(task.samples) for task in problem.tasks)
        budget = config.tokens_per_dimension * weight_shape(module)[1]
        most = min(most, -(-budget // fewest))
    return most


def counted_tokens(
    block: Block, most: int, count: int, place: Workplace, stream: str, path: str
) -> CountedTokens | None:
    """Return the tokens of a block that count, a random choice if not all are read; None if there
    are none.

    Args:
        most: Number of tokens of a row that are read, see `tokens_read`.
        count: Number of tokens of a row.
        place: Device of the result, and precision of the weights.

    Raises:
        CalibrationError: Token weights, or tokens of teachers, that do not fit.
    """
    weights = block.token_weights(stream, count, path)
    answering = block.teacher_tokens(stream, count, path)
    if weights is None:
        if answering is not None:
            answering = answering[:, _read(count, most, _CPU)].to(place.device)
        return CountedTokens(_read(count, most, place.device), answering=answering)
    weights = weights.reshape(len(block.samples), count)
    if most < count:
        weights = _thinned(weights, _order(count), most)
    counted = weights.nonzero(as_tuple=True)
    if not len(counted[0]):
        return None
    rows, numbers = (part.to(place.device) for part in counted)
    nonzero = weights[counted]
    roots = None
    if (nonzero != 1).any():
        roots = nonzero.to(place.device, place.dtype).sqrt()[:, None]
    if answering is not None:
        answering = answering[counted].to(place.device)
    return CountedTokens(slice(None), (rows, numbers), roots, answering)


# every chunk asks for both at every layer
@lru_cache(maxsize=64)
def _order(count: int) -> Tensor:
    """Return the numbers of a row's tokens in a random order, the same for all rows of a length."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))


@lru_cache(maxsize=64)
def _read(count: int, most: int, device: torch.device) -> Tensor | slice:
    """Return the tokens of a row that are read, rising; all if there are at most `most`."""
    return slice(None) if most >= count else _order(count)[:most].sort().values.to(device)


def _thinned(weights: Tensor, order: Tensor, most: int) -> Tensor:
    """Return token weights with at most `most` nonzero ones per row, the first in an order.

    All rows' sums shrink by the same factor on average, so that the tokens of a row with few of
    them are worth less.

    Args:
        weights: (rows, tokens).
        order: Numbers of the tokens, (tokens,).
    """
    tokens = weights.shape[1]
    counts = weights[:, order] != 0
    first = counts & (counts.cumsum(1) <= most)
    is_kept = torch.zeros_like(first)
    is_kept[:, order] = first
    worth = counts.sum(1) * most / (first.sum(1) * tokens).clamp_min(1)
    return torch.where(is_kept, weights, 0.0) * worth[:, None]
