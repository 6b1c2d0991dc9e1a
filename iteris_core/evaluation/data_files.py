"""Rows of the public formats: JSON lines, a JSON list, tables with a header, parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EvaluationError

EXTENSIONS = ".jsonl, .json, .tsv, .csv, .parquet"
_ENCODING = "utf-8-sig"  # with or without a byte order mark
_NEEDED = "give a file {}, with the field names that the data set has on the hub"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file as rows, field name -> value.

    Raises:
        EvaluationError: It is missing, empty, damaged or of another format; names the place.
    """
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
        ".tsv": _table,
        ".csv": _table,
    }
    read = {**readers, ".parquet": _parquet}.get(path.suffix.lower())
    if read is None:
        raise EvaluationError(
            f"{path}: is no {EXTENSIONS}; {_NEEDED.format('of one of these kinds')}"
        )
    try:
        rows = read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); {_NEEDED.format('that is there and whole')}"
        ) from error
    if not rows:
        raise EvaluationError(f"{path}: there are no rows in it; {_NEEDED.format('with examples')}")
    return rows


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    # only a line feed ends a line: JSON may hold the other characters that str.splitlines splits at
    for number, line in enumerate(path.read_text(encoding=_ENCODING).split("\n"), 1):
        if line.strip():
            rows.append(_object(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}"))
    return rows


def _json(path: Path) -> list[dict[str, Any]]:
    content = _parsed(path.read_text(encoding=_ENCODING), str(path))
    if not isinstance(content, list):
        raise EvaluationError(
            f"{path}: is no JSON list but {type(content).__name__}; write a list of objects"
        )
    return [_object(entry, f"{path}, entry {number}") for number, entry in enumerate(content, 1)]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{place}: is no JSON ({error}); download the file again, or repair it"
        ) from error


def _object(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise EvaluationError(
            f"{place}: is no object but {type(entry).__name__}; write one object per example"
        )
    return dict(entry)


def _table(path: Path) -> list[dict[str, Any]]:
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding=_ENCODING, newline="") as file:
        # GLUE's tables have quotation marks in them that quote nothing
        table = csv.DictReader(
            file,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        )
        return [
            {name: value for name, value in row.items() if name is not None and value is not None}
            for row in table
        ]


def _parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path).to_pylist()
    # its readers raise errors of Python, too, about what its own types cannot hold
    except (ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{path}: is not a parquet file that can be read ({error!s:.300}); download it again"
        ) from error
