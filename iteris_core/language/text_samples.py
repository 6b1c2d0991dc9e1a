"""Calibration samples of encoder-decoders: texts from files, and rows of token ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import AdapterError, CalibrationError
from ..files.tensors import read_tensors
from ..settings import settings
from ..tasks import Sample
from .samples import (
    EncodedSample,
    Padding,
    ReadingOptions,
    check_ids,
    longest,
    mask_of,
    padded,
    read_lines,
    read_pairs,
    targets_of,
    token_weights,
)

Modules = Literal["all", "encoder"]
ENCODER_STREAM = "encoder"
DECODER_STREAM = "decoder"
IGNORED_LABEL = -100
_JSON = (".jsonl", ".json", ".ndjson")
_TABLES = (".csv", ".tsv")
_IN_ENCODER = re.compile(r"(.*\.)?encoder\..*")


@dataclass(frozen=True)
class TextSample:
    """One input of a task, and the right answer.

    Args:
        input: Text, or its token ids (length,) without padding.
        target: Text, or token ids (length,); None: the task's teacher answers.
    """

    input: str | Tensor
    target: str | Tensor | None = None

    @property
    def needs_reader(self) -> bool:
        """Whether a tokenizer is needed."""
        return isinstance(self.input, str) or isinstance(self.target, str)


@settings
class TextOptions(ReadingOptions):
    """How texts are read, and which modules are merged."""

    padding: Annotated[
        Padding,
        Field(
            description="ignore leaves padding out of the statistics; count fills inputs (not "
            "targets) up to max_length and counts the padding, as the published code does."
        ),
    ] = "ignore"
    modules: Annotated[
        Modules, Field(description="Modules that are merged; encoder leaves the decoder out.")
    ] = "all"

    def is_merged(self, path: str) -> bool:
        return self.modules == "all" or in_encoder(path)


def in_encoder(path: str) -> bool:
    """Tell the encoder's module paths from the decoder's."""
    return _IN_ENCODER.fullmatch(path) is not None


@dataclass(frozen=True)
class TokenRow:
    """The token ids that one row of a batch reads.

    Args:
        ids: Token ids (length,).
        mask: 1 for tokens and 0 for padding, (length,).
        decoder_ids: Token ids (length,) of the decoder; None: it does not run.
        decoder_mask: 1 for tokens and 0 for padding of the decoder, (length,).
    """

    ids: Tensor
    mask: Tensor
    decoder_ids: Tensor | None = None
    decoder_mask: Tensor | None = None


def read_texts(path: Path) -> list[TextSample]:
    """Read samples from a text file, one input a line, or from JSON lines ``{"input": ...,
    "target": ...}`` (``.jsonl``).

    Raises:
        CalibrationError: The file is a table or cannot be read, or a line of it; names the line.
    """
    if path.suffix.lower() in _TABLES:
        raise CalibrationError(
            f"{path}: is a table, whose heading and columns would be read as inputs; write one "
            'input a line into a .txt, or {"input": "...", "target": "..."} into a .jsonl'
        )
    if path.suffix.lower() not in _JSON:
        return [TextSample(line) for _, line in read_lines(path, "one input")]
    return [TextSample(text, target) for text, target in read_pairs(path, "input", "target")]


def read_token_ids(path: Path) -> list[list[TextSample]]:
    """Read ``input_ids`` (tasks, samples, length) of a safetensors file; no token of it is padding.

    Raises:
        CalibrationError: There is no such tensor.
    """
    try:
        tensors, _ = read_tensors(path)
    except AdapterError as error:
        raise CalibrationError(f"token ids: {error}") from error
    ids = tensors.get("input_ids")
    if ids is None or ids.ndim != 3 or not ids.numel() or ids.is_floating_point():
        there = (
            "no tensor 'input_ids'"
            if ids is None
            else f"'input_ids' of shape {tuple(ids.shape)}, {ids.dtype}"
        )
        raise CalibrationError(
            f"{path}: has {there}; it must hold whole numbers of shape (tasks, samples, length)"
        )
    return [[TextSample(row) for row in task.long()] for task in ids]


def encode(
    samples: Sequence[TextSample], tokenizer: Any, max_length: int, vocabulary: int
) -> list[EncodedSample]:
    """Return samples as token ids.

    Args:
        tokenizer: Tokenizer of the base model; None if all samples are token ids.

    Raises:
        CalibrationError: A sample has no tokens, or ids that the model does not have.
    """

    def tokens(text: str, name: str) -> Tensor:
        read = tokenizer(**{name: text}, truncation=True, max_length=max_length)
        return torch.tensor(read["input_ids"], dtype=torch.long)

    encoded = []
    for number, sample in enumerate(samples):
        ids = tokens(sample.input, "text") if isinstance(sample.input, str) else sample.input
        target = sample.target
        if isinstance(target, str):
            target = tokens(target, "text_target")
        for part in (ids, target):
            if part is not None:
                check_ids(f"sample {number}", part, vocabulary)
        encoded.append(EncodedSample(ids, target))
    return encoded


def token_samples(
    tasks: Sequence[Sequence[EncodedSample]],
    pad_id: int,
    shift_right: Callable[[Tensor], Tensor],
    *,
    padding: Padding = "ignore",
    fill_to: int | None = None,
) -> list[list[Sample]]:
    """Return all tasks' samples as rows of one length.

    Args:
        tasks: Samples of each task; all have a target, or none (then the decoder does not run).
        pad_id: Token id that fills inputs up.
        shift_right: Labels (rows, length), `IGNORED_LABEL` after their end -> decoder inputs
            (rows, length).
        fill_to: Length of the inputs; None: the longest one's.
    """
    inputs = [[sample.read for sample in task] for task in tasks]
    targets = targets_of(tasks)
    length = fill_to or longest(inputs)
    target_length = longest(targets) if any(targets) else 0
    made = []
    for texts, answers in zip(inputs, targets, strict=True):
        ids = padded(texts, length, pad_id)
        mask = mask_of(texts, length)
        if not answers:
            made.append([_sample(TokenRow(*row), padding) for row in zip(ids, mask, strict=True)])
            continue
        labels = padded(answers, target_length, IGNORED_LABEL)
        is_label = (labels != IGNORED_LABEL).long()
        rows = zip(ids, mask, shift_right(labels), is_label, strict=True)
        made.append([_sample(TokenRow(*row), padding) for row in rows])
    return made


def _sample(row: TokenRow, padding: Padding) -> Sample:
    masks = {ENCODER_STREAM: row.mask}
    if row.decoder_mask is not None:
        masks[DECODER_STREAM] = row.decoder_mask
    return Sample(row, token_weights=token_weights(masks, padding))
