"""Calibration samples of language models: examples from files, and rows of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..devices import device_of
from ..errors import AdapterError, CalibrationError, ConfigError
from ..files.limits import json_value
from ..files.tensors import read_tensors
from ..settings import MOST_TOKENS, settings
from ..tasks import Sample
from .pictures import SUFFIXES, pictures_in

_JSON = (".jsonl", ".json", ".ndjson")
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Example:
    """One input of a task, and the right answer.

    Args:
        input: Text, token ids (length,) without padding, file of a picture, or its pixels as the
            model reads them, (3, height, width).
        target: Text, or token ids (length,); of a caption those that the decoder reads, from its
            start token on. None: the task's own teacher writes it.
        prompt: Text that a caption begins with, given or written: the words that the adapter was
            trained with. Captions that are token ids include it.
    """

    input: str | Path | Tensor
    target: str | Tensor | None = None
    prompt: str = ""

    @property
    def needs_reader(self) -> bool:
        """Whether a tokenizer or processor is needed, to turn a part of it into tensors."""
        parts = (self.input, self.target, self.prompt or None)
        return any(not isinstance(part, Tensor | None) for part in parts)


@settings
class ReadingOptions:
    """How samples are read."""

    # at least a start token, one word and an end token
    max_length: Annotated[
        int,
        Field(ge=3, le=MOST_TOKENS, description="Tokens of a text; what is longer is cut."),
    ] = 256
    max_new_tokens: Annotated[
        int,
        Field(
            ge=1,
            le=MOST_TOKENS,
            description="Most tokens of an answer that a teacher has to write.",
        ),
    ] = 32


@dataclass(frozen=True)
class EncodedSample:
    """A sample as tensors.

    Args:
        read: Input of the model: token ids (length,) without padding, or pixels (3, height, width).
        target: Token ids (length,) that it should answer; None until the task's teacher has written
            them.
        start: Token ids (length,) that the teacher's answer begins with.
    """

    read: Tensor
    target: Tensor | None
    start: Tensor = torch.tensor([], dtype=torch.long)


@dataclass(frozen=True)
class Row:
    """What one row of a batch reads.

    Args:
        read: Token ids (length,) of the encoder, or pixels (3, height, width).
        mask: 1 for tokens and 0 for padding, (length,); None: `read` is pixels.
        decoder_ids: Token ids (length,) of the decoder.
        decoder_mask: 1 for tokens and 0 for padding of the decoder, (length,).
    """

    read: Tensor
    mask: Tensor | None
    decoder_ids: Tensor
    decoder_mask: Tensor


def stacked(model: Any, rows: Sequence[Row], part: str) -> Tensor:
    """Return one part of all rows as a tensor (rows, ...) on the model's device."""
    return torch.stack([getattr(row, part) for row in rows]).to(device_of(model))


def row_sample(row: Row, streams: tuple[str, str]) -> Sample:
    """Return a row as a sample of a task, whose padding does not count.

    Args:
        streams: Streams of the network whose tokens ``mask`` and ``decoder_mask`` are about.
    """
    masks = zip(streams, (row.mask, row.decoder_mask), strict=True)
    weights = {stream: mask.float() for stream, mask in masks if mask is not None if not mask.all()}
    return Sample(row, token_weights=weights)


def read_texts(path: Path) -> list[Example]:
    """Read examples from a text file, one input a line, or from JSON lines ``{"input": ...,
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
        return [Example(line) for _, line in _lines(path, "one input")]
    return [Example(text, target) for text, target in _pairs(path, "input", "target")]


def read_images(path: Path) -> list[Example]:
    """Read examples: the pictures of a folder, or JSON lines ``{"image": ..., "caption": ...}``,
    paths relative to the file.

    Raises:
        CalibrationError: There are none, or a line is wrong; names it.
    """
    if not path.is_dir():
        pairs = _pairs(path, "image", "caption")
        return [Example(path.parent / image, caption) for image, caption in pairs]
    files = pictures_in(path)
    if not files:
        raise CalibrationError(
            f"{path}: there are no pictures in this folder ({', '.join(SUFFIXES)})"
        )
    return [Example(file) for file in files]


def read_token_ids(path: Path) -> list[list[Example]]:
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
        found = "nothing" if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise CalibrationError(
            f"{path}: has {found} as 'input_ids'; these must be whole numbers of shape (tasks, "
            "samples, length)"
        )
    return [[Example(row) for row in task.long()] for task in ids]


def _lines(path: Path, content: str) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, stripped, with their numbers from 1.

    Only a line feed ends a line: JSON may hold the other characters that ``str.splitlines`` splits
    at.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path}: cannot be read as text ({error}); give a text file with {content} a line"
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise CalibrationError(f"{path}: there are no samples in it; write {content} a line")
    return numbered


def _pairs(path: Path, first: str, second: str) -> list[tuple[str, str | None]]:
    """Return the texts of JSON lines ``{first: ..., second: ...}``; the second is optional."""
    example = f'{{"{first}": "...", "{second}": "..."}} ("{second}" is optional)'
    pairs = []
    for number, line in _lines(path, example):
        place = f"{path}, line {number}"
        try:
            entry = json_value(line)
        except ValueError as error:
            raise CalibrationError(
                f"{place}: is not JSON ({error}); write {example} on each line"
            ) from error
        if not isinstance(entry, Mapping) or not _is_text(entry.get(first)):
            raise CalibrationError(f'{place}: has no text "{first}"; write {example}')
        optional = entry.get(second)
        if optional is not None and not _is_text(optional):
            raise CalibrationError(
                f'{place}: "{second}" is {optional!r:.60}, not a text; write one, or leave it '
                "out, so that the teacher writes it"
            )
        pairs.append((entry[first], optional))
    return pairs


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def check_ids(what: str, ids: Tensor, vocabulary: int) -> None:
    """Refuse token ids that a model does not have.

    Raises:
        CalibrationError: The ids are not a row of numbers from 0 to below `vocabulary`.
    """
    if ids.ndim != 1 or not ids.numel() or ids.min() < 0 or ids.max() >= vocabulary:
        largest = f" up to {ids.max()}" if ids.numel() else ""
        raise CalibrationError(
            f"{what} has token ids of shape {tuple(ids.shape)}{largest}; the model reads 1 or more "
            f"ids from 0 to {vocabulary - 1}"
        )


def check_length(length: int, positions: int | None, what: str) -> None:
    """Refuse a text that is longer than what a model reads; None: it reads any.

    Raises:
        ConfigError: The model has fewer positions.
    """
    if positions is not None and length > positions:
        raise ConfigError(
            f"{what} may have {length} tokens, but this model reads {positions}; set a smaller "
            "number"
        )


def padded(rows: Sequence[Tensor], value: int) -> tuple[Tensor, Tensor]:
    """Return rows of token ids filled up at their ends, and 1 for tokens and 0 for padding, both
    (rows, length).
    """
    filled = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    mask = torch.zeros_like(filled)
    for i, ids in enumerate(rows):
        filled[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
    return filled, mask


def masked(outputs: Tensor, mask: Tensor) -> Tensor:
    """Return outputs (rows, length, d) with 0 where a mask (rows, length) has it. They may be on
    the last of several devices, and the mask on the first.
    """
    return outputs * mask[..., None].to(outputs.device)


def until_end(row: Tensor, end_id: int | Sequence[int] | None) -> Tensor:
    """Return generated token ids up to the end of the sentence, that one included."""
    ends = torch.isin(row, torch.tensor([] if end_id is None else end_id, dtype=row.dtype))
    return row[: int(ends.nonzero()[0]) + 1] if ends.any() else row
