"""The tokens of a layer's rows that count in the statistics, their weights, and which of a
teacher's tokens answers to which of its student's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..devices import Workplace
from ..layers import is_patchwise, weight_shape
from ..rows.chunks import Block
from .problem import Problem

# Tokens of rows that are read whole: texts have few, which are not alike, and some are padding.
_READ_WHOLE = 512


@dataclass(frozen=True)
class CountedTokens:
    """The tokens of some rows that count.

    Args:
        picked: Tokens that are read, the same of every row: a slice, or their numbers.
        counted: Those of the picked tokens of all rows whose weight is not 0, (n,); None: all.
        roots: Roots of their weights, (n, 1).
        answering: Number of the teacher's token that answers to each picked token of its student,
            (rows, picked); None: the one with the same number.
    """

    picked: Tensor | slice
    counted: Tensor | None = None
    roots: Tensor | None = None
    answering: Tensor | None = None

    def of_student(self, part: Tensor) -> Tensor:
        """Return (rows, tokens, d) as the tokens that count, (n, d)."""
        return self._counted(part[:, self.picked])

    def of_teacher(self, part: Tensor) -> Tensor:
        """Return (rows, tokens, d) of teachers as the tokens that answer to those of `of_student`,
        (n, d).
        """
        if self.answering is None:
            return self._counted(part[:, self.picked])
        numbers = self.answering[:, :, None].expand(-1, -1, part.shape[2])
        return self._counted(part.gather(1, numbers))

    def _counted(self, part: Tensor) -> Tensor:
        part = part.flatten(0, 1)
        return part if self.counted is None else part[self.counted]

    def weighed(self, part: Tensor) -> Tensor:
        """Return (n, d) times the roots of the tokens' weights."""
        return part if self.roots is None else part * self.roots


def tokens_read(module: nn.Module, count: int, problem: Problem) -> int:
    """Return the number of tokens of a row that are read: all of them, or as many as the settings
    allow.

    Args:
        module: The layer.
        count: Number of tokens of a row.
        problem: The merge, with the settings ``tokens_per_row``, ``tokens_per_dimension`` and
            ``patches``.
    """
    config = problem.config
    most = count
    if config.tokens_per_row is not None:
        most = min(most, config.tokens_per_row)
    if is_patchwise(module):
        return min(most, max(1, config.patches // problem.samples))
    if config.tokens_per_dimension is not None and count > _READ_WHOLE:
        fewest = min(len(task.samples) for task in problem.tasks)
        budget = config.tokens_per_dimension * weight_shape(module)[1]
        most = min(most, -(-budget // fewest))
    return most


def picked_tokens(module: nn.Module, count: int, problem: Problem) -> Tensor | None:
    """Return the tokens of a row that are read, at random places, on the CPU; None: all of them.

    Args: See `tokens_read`.
    """
    most = tokens_read(module, count, problem)
    if most == count:
        return None
    generator = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=generator)[:most].sort().values


def counted_tokens(
    block: Block, picked: Tensor | None, count: int, place: Workplace, stream: str, path: str
) -> CountedTokens | None:
    """Return the tokens of a block that count; None where none does.

    Args:
        block: Samples, with their token weights.
        picked: Tokens of a row that are read, see `picked_tokens`.
        count: Number of tokens of a row.
        place: Device of the result, and precision of the weights.
        stream: Token stream of the layer's input.
        path: Path of the layer, for errors.

    Raises:
        CalibrationError: Token weights, or tokens of teachers, that do not fit.
    """
    read: Tensor | slice = slice(None) if picked is None else picked
    on_device = read if isinstance(read, slice) else read.to(place.device)
    answering = block.teacher_tokens(stream, count, path)
    if answering is not None:
        answering = answering[:, read].to(place.device)
    weights = block.token_weights(stream, count, path)
    if weights is None:
        return CountedTokens(on_device, answering=answering)
    weights = weights.reshape(len(block.samples), count)[:, read].flatten()
    counted = weights.nonzero()[:, 0]
    if not len(counted):
        return None
    roots = weights[counted].to(place.device, place.dtype).sqrt()[:, None]
    return CountedTokens(on_device, counted.to(place.device), roots, answering)
