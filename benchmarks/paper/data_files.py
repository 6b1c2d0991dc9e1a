"""Rows of the public formats: JSON lines, a JSON list, tables with a header, parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from .errors import EvaluationError

_ENCODING = "utf-8-sig"  # with or without a byte order mark


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file as rows, field name -> value; `EvaluationError` names a file that is none."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise EvaluationError(f"{path}: is not one of {', '.join(_READERS)}; give one of these")
    try:
        rows = read(path)
    except (OSError, ValueError, csv.Error) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error!s:.300}); download it again"
        ) from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{path}: has no rows of named fields; give a file with examples")
    return rows


def _json_lines(path: Path) -> list[Any]:
    rows = []
    # only a line feed ends a line: JSON may hold the other characters that str.splitlines splits at
    for number, line in enumerate(path.read_text(encoding=_ENCODING).split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def _json(path: Path) -> list[Any]:
    content = json.loads(path.read_text(encoding=_ENCODING))
    return content if isinstance(content, list) else []


def _table(path: Path) -> list[Any]:
    # GLUE's tables have quotation marks in them that quote nothing
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    with path.open(encoding=_ENCODING, newline="") as file:
        return list(csv.DictReader(file, **tabs))


def _parquet(path: Path) -> list[Any]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


_READERS = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".tsv": _table,
    ".csv": _table,
    ".parquet": _parquet,
}
