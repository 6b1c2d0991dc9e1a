"""Calibration samples of language models: from files, and as token rows of one length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import AdapterError, CalibrationError, ConfigError
from ..files.tensors import read_tensors
from ..tasks import Sample

Modules = Literal["all", "encoder"]
Padding = Literal["ignore", "count"]
ENCODER_STREAM = "encoder"
DECODER_STREAM = "decoder"
IGNORED_LABEL = -100
_EXAMPLE = '{"input": "...", "target": "..."}'


@dataclass(frozen=True)
class TextSample:
    """One input of a task, and what the model should answer.

    Args:
        input: A text, or its token ids (length,) without padding.
        target: A text, or token ids (length,); None: what the task's own teacher generates.
    """

    input: str | Tensor
    target: str | Tensor | None = None

    @property
    def is_text(self) -> bool:
        """Whether a tokenizer is needed."""
        return isinstance(self.input, str) or isinstance(self.target, str)


@dataclass(frozen=True)
class TextOptions:
    """How texts are read, and which modules are merged.

    Args:
        modules: ``encoder`` leaves the decoder out of the merge.
        padding: ``ignore`` leaves padding out of the statistics; ``count`` fills texts up to
            `max_length` and counts the padding, as the published code does.
        max_length: Tokens of a text, input or target; what is longer is cut.
        max_new_tokens: Length of an answer that a teacher has to write because a sample has no
            target.
    """

    modules: Modules = "all"
    padding: Padding = "ignore"
    max_length: int = 256
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        for name, allowed in (("modules", get_args(Modules)), ("padding", get_args(Padding))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it can be "
                    f"{' or '.join(map(repr, allowed))}"
                )
        for name in ("max_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")


def read_texts(path: Path) -> list[TextSample]:
    """Read samples from a text file, one input a line, or from JSON lines ``{"input": ...,
    "target": ...}`` (``.jsonl``).

    Raises:
        CalibrationError: The file cannot be read, or a line of it; names the line.
    """
    if path.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        return [TextSample(line) for _, line in read_lines(path, "one input")]
    return [_of_json(f"{path}, line {number}", line) for number, line in read_lines(path, _EXAMPLE)]


def read_lines(path: Path, content: str) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, stripped, with their numbers from 1.

    Only a line feed ends a line: JSON may hold the other characters that ``str.splitlines`` splits
    at.

    Args:
        path: In UTF-8, with or without a byte order mark.
        content: Of a line, for errors.

    Raises:
        CalibrationError: The file cannot be read, or there is nothing in it.
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


def parse_line(place: str, line: str, example: str) -> Any:
    """Return what a line of JSON lines says.

    Raises:
        CalibrationError: It is no JSON; shows an example.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(
            f"{place}: no JSON ({error}); write {example} on each line"
        ) from error


def _of_json(place: str, line: str) -> TextSample:
    entry = parse_line(place, line, _EXAMPLE)
    if (
        not isinstance(entry, Mapping)
        or not isinstance(entry.get("input"), str)
        or not entry["input"].strip()
    ):
        raise CalibrationError(
            f'{place}: has no text "input"; write {_EXAMPLE} ("target" is optional)'
        )
    target = entry.get("target")
    if target is not None and not (isinstance(target, str) and target.strip()):
        found = "empty" if isinstance(target, str) else "no text"
        raise CalibrationError(
            f'{place}: "target" is {found}; write a text, or leave it out, so that the teacher answers'
        )
    return TextSample(entry["input"], target)


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
        found = (
            "no tensor 'input_ids'"
            if ids is None
            else f"'input_ids' of shape {tuple(ids.shape)}, {ids.dtype}"
        )
        raise CalibrationError(
            f"{path}: has {found}; it must hold whole numbers of shape (tasks, samples, length)"
        )
    return [[TextSample(row) for row in task.long()] for task in ids]


@dataclass(frozen=True)
class TokenRow:
    """What one row of a batch reads: token ids (length,), which of them are no padding, and the
    same of the decoder.
    """

    ids: Tensor
    mask: Tensor
    decoder_ids: Tensor | None = None
    decoder_mask: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """A sample as token ids (length,) without padding; no target yet where the teacher is to write
    it.
    """

    ids: Tensor
    target: Tensor | None


def encode(
    samples: Sequence[TextSample], tokenizer: Any, max_length: int, vocabulary: int
) -> list[Encoded]:
    """Return samples as token ids.

    Args:
        samples: Of one task.
        tokenizer: Of the base model; None if all samples are token ids.
        max_length: Tokens of a text, at most.
        vocabulary: Size of the model's embedding.

    Raises:
        CalibrationError: A sample without tokens, or with ids that the model does not have.
    """
    encoded = []
    for number, sample in enumerate(samples):
        ids, target = (
            part
            if part is None or isinstance(part, Tensor)
            else _tokens(tokenizer, part, name, max_length)
            for part, name in ((sample.input, "text"), (sample.target, "text_target"))
        )
        for part in (ids, target):
            if part is not None and (
                part.ndim != 1 or not part.numel() or part.min() < 0 or part.max() >= vocabulary
            ):
                found = f"token ids of shape {tuple(part.shape)}" + (
                    f" up to {part.max()}" if part.numel() else ""
                )
                raise CalibrationError(
                    f"sample {number} has {found}; the model reads 1 or more ids from 0 to "
                    f"{vocabulary - 1}"
                )
        encoded.append(Encoded(ids, target))
    return encoded


def _tokens(tokenizer: Any, text: str, name: str, max_length: int) -> Tensor:
    return torch.tensor(
        tokenizer(**{name: text}, truncation=True, max_length=max_length)["input_ids"],
        dtype=torch.long,
    )


def padded(rows: Sequence[Tensor], length: int, value: int) -> Tensor:
    """Return rows of token ids as one tensor (rows, length), filled up at their ends.

    Raises:
        CalibrationError: A row is longer.
    """
    check_fits(rows, length)
    filled = torch.full((len(rows), length), value, dtype=torch.long)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)] = ids
    return filled


def check_fits(rows: Sequence[Tensor], length: int) -> None:
    """Refuse rows of token ids that are longer than what they are to be filled up to.

    Raises:
        CalibrationError: One is.
    """
    longest = max(map(len, rows), default=0)
    if longest > length:
        raise CalibrationError(
            f"a sample has {longest} tokens, but padding that counts fills up to {length}; set "
            f"max_length to {longest} or more"
        )


def token_samples(
    tasks: Sequence[Sequence[Encoded]],
    pad_id: int,
    shift_right: Any,
    *,
    padding: Padding = "ignore",
    fill_to: int | None = None,
) -> list[list[Sample]]:
    """Return all tasks' samples as rows of one length, in which padding does not count.

    Args:
        tasks: Per task its samples; all with a target, or none (the decoder does not run).
        pad_id: What fills rows up.
        shift_right: Labels (rows, length), `IGNORED_LABEL` behind their end -> decoder inputs
            (rows, length).
        padding: ``count`` lets padding count in the statistics like any token, as the published
            code does.
        fill_to: Length of the inputs; None: of the longest.
    """
    flat = [sample for task in tasks for sample in task]
    length = fill_to or max(len(sample.ids) for sample in flat)
    ids = padded([sample.ids for sample in flat], length, pad_id)
    mask = padded([torch.ones_like(sample.ids) for sample in flat], length, 0)
    counts = {ENCODER_STREAM: mask}
    decoder_ids: Sequence[Tensor | None] = [None] * len(flat)
    decoder_mask: Sequence[Tensor | None] = [None] * len(flat)
    if flat[0].target is not None:
        labels = padded([s.target for s in flat], max(len(s.target) for s in flat), IGNORED_LABEL)
        decoder_ids = shift_right(labels)
        decoder_mask = (labels != IGNORED_LABEL).long()
        counts[DECODER_STREAM] = decoder_mask
    counts = (
        {}
        if padding == "count"
        else {stream: c.float() for stream, c in counts.items() if not c.all()}
    )
    rows = iter(
        Sample(
            TokenRow(ids[i], mask[i], decoder_ids[i], decoder_mask[i]),
            token_weights={stream: c[i] for stream, c in counts.items()},
        )
        for i in range(len(flat))
    )
    return [[next(rows) for _ in task] for task in tasks]


def until_end(row: Tensor, end_id: int | Sequence[int] | None) -> Tensor:
    """Return generated token ids up to the end of the sentence, that one included."""
    ends = torch.isin(
        row, torch.tensor([] if end_id is None else end_id, dtype=row.dtype)
    ).nonzero()
    return row[: int(ends[0]) + 1] if len(ends) else row
