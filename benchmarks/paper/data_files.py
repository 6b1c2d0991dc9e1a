"""Rows of the public formats: JSON lines, a JSON list, tables with a header, parquet."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import EvaluationError

EXTENSIONS = ".jsonl, .json, .tsv, .csv, .parquet"
# Memory that the rows of a parquet file may take, beside 20 times the file; a row and a cell are
# Python's own objects.
_ROOM = 200_000_000
_GROWTH = 20
_STEP = 1_000  # rows that are read at once
_OF_ROW = 250
_OF_CELL = 60
_LISTED = 20  # fields of a row that are named in an error
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


def listed(row: Mapping[str, Any]) -> str:
    """Return the names of a row's fields for an error, the first few."""
    names = [f"{name!s:.60}" for name in itertools.islice(row, _LISTED)]
    return f"the fields {', '.join(names)}" if names else "no fields"


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
            f"{path}: is not a JSON list but {type(content).__name__}; write a list of objects"
        )
    return [_object(entry, f"{path}, entry {number}") for number, entry in enumerate(content, 1)]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{place}: is not JSON ({error}); download the file again, or repair it"
        ) from error


def _object(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise EvaluationError(
            f"{place}: is not an object but {type(entry).__name__}; write one object per example"
        )
    return dict(entry)


def _table(path: Path) -> list[dict[str, Any]]:
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding=_ENCODING, newline="") as file:
        # GLUE's tables have quotation marks in them that quote nothing
        table = csv.reader(
            file,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        )
        names = next(table, [])
        # what a short row lacks is left out, since a short file may name many columns
        return [dict(zip(names, row, strict=False)) for row in table if row]


def _parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    left = _ROOM + _GROWTH * path.stat().st_size
    rows: list[dict[str, Any]] = []
    try:
        with parquet.ParquetFile(path) as file:
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            largest = max((group.total_byte_size for group in groups), default=0)
            # few bytes may say that one long text stands in each row
            step = max(1, min(_STEP, _ROOM // max(1, 8 * largest)))
            for batch in file.iter_batches(step):
                left -= batch.nbytes + batch.num_rows * (_OF_ROW + _OF_CELL * batch.num_columns)
                if left < 0:
                    break
                rows += batch.to_pylist()
    # its readers raise errors of Python, too, about what its own types cannot hold
    except (ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{path}: is not a parquet file that can be read ({error!s:.300}); download it again"
        ) from error
    if left < 0:
        raise EvaluationError(
            f"{path}: its rows take more memory than {_GROWTH} times the file, so it is damaged or "
            "made to do harm; download it again"
        )
    return rows
