"""Captions as their teacher and as the student read them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError
from ..network import TEXT_STREAM, Network
from ..rows.wearing import DeltaCache, Mix, answers_of
from ..settings import setting_to
from ..tasks import PerToken, Sample
from .model import DenoiserRow, DiffusionHost, Encoded

_MOST_PIECES = 4  # of a prompt; contexts of 1, 2, 3 and 4 pieces have 12 in common


@dataclass(frozen=True)
class Pairing:
    """The tokens of a scene's teacher that answer to tokens of its student; no other token counts.

    Words answer to words, and the end to the end. Padding answers to padding at the same position,
    which the text encoder adds to it in both captions. The start is left out: it says the same
    whatever comes after it.

    Args:
        words: (teacher's, student's) position of each token of the teacher's own words.
        ends: (teacher's, student's) position of the end, right after the caption's words; None: no
            token counts, as where text and picture are read together and words cannot be paired.
    """

    words: tuple[tuple[int, int], ...] = ()
    ends: tuple[int, int] | None = None

    def pairs(self, tokens: int) -> list[tuple[int, int]]:
        """Return all pairs of (teacher's, student's) positions in contexts of so many tokens."""
        if self.ends is None:
            return []
        end = max(self.ends)
        return [
            *self.words,
            *([self.ends] if end < tokens else []),
            *((i, i) for i in range(end + 1, tokens)),
        ]

    def weights(self, tokens: int) -> Tensor:
        """Return weights (tokens,) that are 1 at the student's tokens that count, and 0
        elsewhere.
        """
        weights = torch.zeros(tokens)
        weights[[student for _, student in self.pairs(tokens)]] = 1
        return weights

    def teacher_tokens(self, tokens: int) -> Tensor:
        """Return the teacher's token for each of the student's, (tokens,); any where none
        counts.
        """
        numbers = torch.arange(tokens)
        for teacher, student in self.pairs(tokens):
            numbers[student] = teacher
        return numbers


class Texts(NamedTuple):
    """What the two rows of a task's samples read.

    Args:
        pairing: The tokens that count; None: all, of one caption that both read.
        task: Name of the task.
        lora: Number of the LoRA that the teacher wears; None: the base model.
    """

    teacher: str
    student: str
    pairing: Pairing | None = None
    task: str = ""
    lora: int | None = None


# What the rows of a merge read, encoded.
Contexts = Mapping[Texts, "Context"]


@torch.no_grad()
def written_for(
    network: Network,
    pieces: Sequence[tuple[Any, Mix]],
    rows_per_call: int,
    adapters: Sequence[Adapter] = (),
) -> list[Any]:
    """Return what text encoders write for each piece of a caption where its row wears a mix.

    Many rows go through one call: some hosts convert all weights again in each.
    """
    written: list[Any] = []
    cache = DeltaCache(network.worn_bytes)
    for start in range(0, len(pieces), rows_per_call):
        part = pieces[start : start + rows_per_call]
        mixes = [dict(mix) for _, mix in part]
        written += answers_of(network, adapters, mixes, [piece for piece, _ in part], cache)
    return written


@dataclass(frozen=True)
class Context:
    """A caption as its teacher and as the student read it.

    Args:
        weights: Weights of the tokens in the statistics, (tokens,); None: each counts once.
        teacher_tokens: The teacher's token for each of the student's, (tokens,); None: the same.
    """

    teacher: Encoded
    student: Encoded
    weights: Tensor | None = None
    teacher_tokens: Tensor | None = None

    @classmethod
    def repeated(
        cls, teacher: Encoded, student: Encoded, times: int, pairing: Pairing | None = None
    ) -> Context:
        """Repeat a context, so that all have one length.

        Attention stays the same, and each token counts once in all.
        """
        length = len(teacher.tokens)
        if pairing is not None and pairing.ends is None:
            pairing = None
        weights = None if pairing is None else pairing.weights(length)
        numbers = None if pairing is None else pairing.teacher_tokens(length)
        if times == 1:
            return cls(teacher, student, weights, numbers)
        weights = torch.ones(length) if weights is None else weights
        if numbers is not None:
            numbers = torch.cat([numbers + start * length for start in range(times)])
        return cls(
            replace(teacher, tokens=teacher.tokens.repeat(times, 1)),
            replace(student, tokens=student.tokens.repeat(times, 1)),
            weights.repeat(times) / times,
            numbers,
        )

    def sample(
        self,
        latents: Tensor,
        sigma: Tensor,
        other_weights: Mapping[str, PerToken] | None = None,
        *,
        is_negative: bool = False,
    ) -> Sample:
        """Return the diffusion model's sample of noisy latents with this context.

        Args:
            latents: Noisy latents, (channels, ..., height, width).
            sigma: Their noise level, 0-dim.
            other_weights: Token weights of other streams than the text.
        """
        of_text = {} if self.weights is None else {TEXT_STREAM: self.weights}
        return Sample(
            DenoiserRow(latents, sigma, self.teacher, is_negative),
            DenoiserRow(latents, sigma, self.student, is_negative),
            {**of_text, **(other_weights or {})},
            {} if self.teacher_tokens is None else {TEXT_STREAM: self.teacher_tokens},
        )


@dataclass(frozen=True)
class Tokenized:
    """Captions, cut into the pieces that the text encoder reads.

    Args:
        pieces: Caption -> its pieces, one row of the text encoder each; none where no text encoder
            can be merged.
        common_length: Number of pieces that every caption's context is filled up to, by whole
            repeats; None: they keep their lengths.
    """

    model: DiffusionHost
    pieces: Mapping[str, Sequence[Any]]
    common_length: int | None

    @classmethod
    def of(cls, model: DiffusionHost, texts: Iterable[Texts]) -> Tokenized:
        """Cut captions into pieces, and find their common length.

        Raises:
            CalibrationError: A caption is too long; shows it.
        """
        captions = dict.fromkeys(caption for each in texts for caption in each[:2])
        pieces = {caption: model.tokenize(caption) for caption in captions}
        caption = max(pieces, key=lambda caption: len(pieces[caption]))
        if len(pieces[caption]) > _MOST_PIECES:
            raise CalibrationError(
                f"the prompt {caption[:40]!r}... has {len(pieces[caption])} pieces of 75 tokens; "
                f"calibration can use prompts of up to {_MOST_PIECES}. Write shorter ones: trigger "
                "words and a few others are enough"
            )
        common = math.lcm(*map(len, pieces.values())) if model.has_text_layers else None
        return cls(model, pieces, common)

    def samples(self, texts: Texts) -> list[Sample]:
        """Return the text encoder's samples of what two rows read, one per piece.

        Raises:
            CalibrationError: A caption of a scene that does not fit into one piece; shows it.
        """
        teacher, student = self.pieces[texts.teacher], self.pieces[texts.student]
        pairing = texts.pairing
        if pairing is None:
            return [Sample(piece) for piece in teacher]
        if not teacher:
            return []
        if (len(teacher), len(student)) != (1, 1):
            raise CalibrationError(
                f"the scene caption {texts.student[:60]!r}... has more than the 75 tokens of one "
                "piece; shorten what the LoRAs are called (a few words that name the subject), or "
                f"set {setting_to('scene_weight', 0)}"
            )
        return [
            Sample(
                teacher[0],
                student[0],
                {TEXT_STREAM: pairing.weights},
                {TEXT_STREAM: pairing.teacher_tokens},
            )
        ]

    def context(self, texts: Texts, teacher: Sequence[Any], student: Sequence[Any]) -> Context:
        """Return what two rows read as a context.

        Args:
            teacher: What the text encoder returned for each piece of the teacher's caption.
            student: The same of the student's.
        """
        of_teacher = self.model.encoded(texts.teacher, teacher)
        is_same = texts.pairing is None and all(map(operator.is_, teacher, student))
        of_student = of_teacher if is_same else self.model.encoded(texts.student, student)
        times = 1 if self.common_length is None else self.common_length // len(teacher)
        return Context.repeated(of_teacher, of_student, times, texts.pairing)
