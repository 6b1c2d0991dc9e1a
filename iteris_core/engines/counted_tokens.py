"""The tokens of a layer's rows that count in the statistics, their weights, and which of a
teacher's tokens answers to which of its student's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import MergeConfig
from ..layers import is_patchwise
from ..rows.chunks import Block


@dataclass(frozen=True)
class CountedTokens:
    """The tokens of some rows that count.

    Args:
        picked: Tokens that are read, the same of every row: a slice, or their numbers.
        counted: Those of the picked tokens of all rows whose weight is not 0, (n,); None: all.
        roots: Roots of their weights, (n, 1).
        answering: Number of the teacher's token that answers to each token of its student, (rows,
            tokens); None: the one with the same number.
    """

    picked: Tensor | slice
    counted: Tensor | None = None
    roots: Tensor | None = None
    answering: Tensor | None = None

    def of(self, part: Tensor) -> Tensor:
        """Return (rows, tokens, d) as the tokens that count times the roots of their weights,
        (n, d).
        """
        part = part[:, self.picked].flatten(0, 1)
        if self.counted is None or self.roots is None:
            return part
        return part[self.counted] * self.roots

    def lined_up(self, part: Tensor) -> Tensor:
        """Return (rows, tokens, d) of teachers, each row in the order of its student's tokens."""
        if self.answering is None:
            return part
        return part.gather(1, self.answering[:, :, None].expand(-1, -1, part.shape[2]))


def picked_tokens(module: nn.Module, count: int, samples: int, config: MergeConfig) -> Tensor:
    """Return the tokens of a row that are read, on the CPU: all of them, or as many as the settings
    allow, at random places.

    Args:
        module: The layer.
        count: Number of tokens of a row.
        samples: Number of samples of all tasks, which share the patches that are allowed.
        config: Settings, of which ``tokens_per_row`` and ``patches`` are used.
    """
    most = count if config.tokens_per_row is None else min(count, config.tokens_per_row)
    if is_patchwise(module):
        most = min(most, max(1, config.patches // samples))
    if most == count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=generator)[:most].sort().values


def counted_tokens(
    block: Block, picked: Tensor, tokens: Tensor, stream: str, path: str
) -> CountedTokens | None:
    """Return the tokens of a block that count; None where none does.

    Args:
        block: Samples, with their token weights.
        picked: Tokens of a row that are read, see `picked_tokens`.
        tokens: The block's tokens, (rows, tokens, d): their device and precision are those of the
            result.
        stream: Token stream of the layer's input.
        path: Path of the layer, for errors.

    Raises:
        CalibrationError: Token weights, or tokens of teachers, that do not fit.
    """
    count = tokens.shape[1]
    answering = block.teacher_tokens(stream, count, path)
    if answering is not None:
        answering = answering.to(tokens.device)
    on_device = slice(None) if len(picked) == count else picked.to(tokens.device)
    weights = block.token_weights(stream, count, path)
    if weights is None:
        return CountedTokens(on_device, answering=answering)
    weights = weights.reshape(len(block.samples), count)[:, picked].flatten()
    counted = weights.nonzero()[:, 0]
    if not len(counted):
        return None
    roots = weights[counted].to(tokens).sqrt()[:, None]
    return CountedTokens(on_device, counted.to(tokens.device), roots, answering)
