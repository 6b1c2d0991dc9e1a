"""The common part of text samples and caption samples: lines of files, token ids, padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import CalibrationError
from ..files.limits import json_value
from ..settings import MOST_TOKENS, settings

Padding = Literal["ignore", "count"]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


@settings
class ReadingOptions:
    """How samples are read."""

    max_length: Annotated[Tokens, Field(description="Tokens of a text; what is longer is cut.")] = (
        256
    )
    max_new_tokens: Annotated[
        Tokens, Field(description="Most tokens of an answer that a teacher has to write.")
    ] = 32

    def is_merged(self, path: str) -> bool:
        """Whether the module or parameter at a path is merged."""
        return True


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


def read_lines(path: Path, content: str) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, stripped, with their numbers from 1.

    Only a line feed ends a line: JSON may hold the other characters that ``str.splitlines`` splits
    at.

    Args:
        path: File in UTF-8, with or without a byte order mark.

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


def read_pairs(path: Path, first: str, second: str) -> list[tuple[str, str | None]]:
    """Return two texts of every line of JSON lines.

    Args:
        path: File of objects ``{first: ..., second: ...}``.
        first: Name of the text that must be there.
        second: Name of the optional text.

    Raises:
        CalibrationError: The file cannot be read, or a line of it; names the line.
    """
    example = f'{{"{first}": "...", "{second}": "..."}} ("{second}" is optional)'
    pairs = []
    for number, line in read_lines(path, example):
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
    try:
        return isinstance(value, str) and bool(value.strip().encode("utf-8"))
    except UnicodeEncodeError:  # half a character, as JSON's \ud800, which no tokenizer reads
        return False


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


def masked(outputs: Tensor, mask: Tensor) -> Tensor:
    """Return outputs (rows, length, d) with 0 where a mask (rows, length) has it. They may be on
    the last of several devices, and the mask on the first.
    """
    return outputs * mask[..., None].to(outputs.device)


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


def mask_of(rows: Sequence[Tensor], length: int) -> Tensor:
    """Return 1 for tokens and 0 for padding of `padded` rows, (rows, length)."""
    return padded([torch.ones_like(ids) for ids in rows], length, 0)


def check_fits(rows: Sequence[Tensor], length: int) -> None:
    """Refuse rows of token ids that are longer than what they are to be filled up to.

    Raises:
        CalibrationError: A row is longer.
    """
    longest = max(map(len, rows), default=0)
    if longest > length:
        raise CalibrationError(
            f"a sample has {longest} tokens, but padding that counts fills up to {length}; set "
            f"max_length to {longest} or more"
        )


def longest(rows: Sequence[Sequence[Tensor]]) -> int:
    """Return the number of tokens of the longest row of all tasks."""
    return max(len(ids) for task in rows for ids in task)


def token_weights(masks: Mapping[str, Tensor], padding: Padding) -> dict[str, Tensor]:
    """Return the weights of a sample's tokens in the statistics, for `Sample`.

    Args:
        masks: Stream -> 1 for tokens and 0 for padding, (length,).
    """
    if padding == "count":
        return {}
    return {stream: mask.float() for stream, mask in masks.items() if not mask.all()}


def targets_of(tasks: Sequence[Sequence[EncodedSample]]) -> list[list[Tensor]]:
    """Return the targets of samples that all have one."""
    return [[sample.target for sample in task if sample.target is not None] for task in tasks]


def until_end(row: Tensor, end_id: int | Sequence[int] | None) -> Tensor:
    """Return generated token ids up to the end of the sentence, that one included."""
    ends = torch.isin(
        row, torch.tensor([] if end_id is None else end_id, dtype=row.dtype)
    ).nonzero()
    return row[: int(ends[0]) + 1] if len(ends) else row
