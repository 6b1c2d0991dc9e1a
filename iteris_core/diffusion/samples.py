"""Captions of teacher and student, their contexts, and the samples made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..network import TEXT_STREAM
from ..tasks import Sample, TokenWeights
from .model import UnetRow

_MOST_PIECES = 4  # of a prompt; contexts of 1, 2, 3 and 4 pieces have 12 in common


@dataclass(frozen=True)
class Reading:
    """The captions of the two rows of a sample.

    Args:
        teacher: The teacher's caption.
        student: The student's caption.
        positions: The tokens of both that count; None: all, of one caption that both read.
    """

    teacher: str
    student: str
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.positions is None and self.teacher != self.student:
            raise ValueError(f"{self.teacher!r} and {self.student!r} differ, and no token counts")

    @classmethod
    def of(cls, caption: str) -> Reading:
        """Return the reading of one caption by teacher and student, all of whose tokens count."""
        return cls(caption, caption)

    @property
    def captions(self) -> tuple[str, str]:
        return self.teacher, self.student


@dataclass(frozen=True)
class Context:
    """A caption as its teacher and as the student read it.

    Args:
        teacher: The teacher's context, (tokens, width).
        student: The student's context, (tokens, width).
        weights: Weights of the tokens in the statistics, (tokens,); None: each counts once.
    """

    teacher: Tensor
    student: Tensor
    weights: Tensor | None

    @classmethod
    def repeated(
        cls, teacher: Tensor, student: Tensor, times: int, positions: Sequence[int] | None = None
    ) -> Context:
        """Repeat a context, so that all have one length.

        Attention stays the same, and each token counts once in all.
        """
        weights = None if positions is None else position_weights(positions, len(teacher))
        if times == 1:
            return cls(teacher, student, weights)
        weights = torch.ones(len(teacher)) if weights is None else weights
        return cls(
            teacher.repeat(times, 1), student.repeat(times, 1), weights.repeat(times) / times
        )

    def sample(
        self,
        latents: Tensor,
        sigma: Tensor,
        other_weights: Mapping[str, TokenWeights] | None = None,
    ) -> Sample:
        """Return the UNet's sample of noisy latents with this context.

        Args:
            latents: Noisy latents, (channels, height, width).
            sigma: Their noise level, 0-dim.
            other_weights: Token weights of other streams than the text.
        """
        of_text = {} if self.weights is None else {TEXT_STREAM: self.weights}
        return Sample(
            UnetRow(latents, sigma, self.teacher),
            UnetRow(latents, sigma, self.student),
            {**of_text, **(other_weights or {})},
        )


def position_weights(positions: Sequence[int], tokens: int) -> Tensor:
    """Return weights (tokens,) that are 1 at some positions and 0 elsewhere."""
    weights = torch.zeros(tokens)
    weights[list(positions)] = 1
    return weights


@dataclass(frozen=True)
class Tokenized:
    """Captions in the pieces that the text encoder reads at once.

    Args:
        pieces: Caption -> its pieces, one row of the text encoder each.
        common_length: The number of pieces to which every caption's context can be repeated a
            whole number of times.
    """

    pieces: Mapping[str, Sequence[Any]]
    common_length: int

    @classmethod
    def of(cls, pieces: Mapping[str, Sequence[Any]]) -> Tokenized:
        """Check captions and find their common length.

        Raises:
            CalibrationError: A caption is too long; shows it.
        """
        caption = max(pieces, key=lambda caption: len(pieces[caption]))
        if len(pieces[caption]) > _MOST_PIECES:
            raise CalibrationError(
                f"the prompt {caption[:40]!r}... has {len(pieces[caption])} pieces of 75 tokens; "
                f"calibration can use prompts of up to {_MOST_PIECES}. Write shorter ones: trigger "
                "words and a few others are enough"
            )
        return cls(pieces, math.lcm(*map(len, pieces.values())))

    def samples(self, reading: Reading) -> list[Sample]:
        """Return the text encoder's samples of one reading, one per piece.

        Raises:
            CalibrationError: A caption of a scene that does not fit into one piece; shows it.
        """
        teacher, student = (self.pieces[caption] for caption in reading.captions)
        if reading.positions is None:
            return [Sample(piece) for piece in teacher]
        if (len(teacher), len(student)) != (1, 1):
            raise CalibrationError(
                f"the scene caption {reading.student[:60]!r}... has more than the 75 tokens of one "
                "piece; shorten the LoRAs' triggers (a few words that name the subject), or set "
                "scene_weight to 0"
            )
        weights = {TEXT_STREAM: partial(position_weights, reading.positions)}
        return [
            Sample(piece, other, weights) for piece, other in zip(teacher, student, strict=True)
        ]

    def context(self, reading: Reading, rows: Sequence[tuple[Tensor, Tensor]]) -> Context:
        """Return the context of one reading.

        Args:
            reading: Captions of the teacher and the student.
            rows: (teacher's, student's) encoded rows of `samples`, (77, width) each.
        """
        teacher, student = (torch.cat(side) for side in zip(*rows, strict=True))
        times = self.common_length // len(rows)
        return Context.repeated(teacher, student, times, reading.positions)
