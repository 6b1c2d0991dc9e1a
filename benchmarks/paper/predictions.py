"""Predictions as JSON lines, so that an interrupted run can go on.

The first line of a file names the origin of its predictions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from iteris_core.files.writing import write_text
from iteris_core.progress import Progress
from iteris_core.settings import shown

from .errors import EvaluationError

Input = TypeVar("Input")


def fingerprint(*parts: str | bytes) -> str:
    """Return a short hash of texts and bytes, in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return a short hash of a file's content."""
    return fingerprint(path.read_bytes())


def predict(
    path: Path,
    made_by: Mapping[str, Any],
    inputs: Sequence[Input],
    write: Callable[[Sequence[Input]], Sequence[str]],
    batch: int,
    progress: Progress,
) -> list[str]:
    """Return one prediction per input: the file's, then new ones, which are appended to it
    batch by batch.

    Args:
        path: File of the predictions; its first line is `made_by`.
        made_by: Everything that a prediction depends on, as JSON.
        inputs: Inputs of the task, in order.
        write: Function from inputs to predictions.
        batch: Inputs of one call.
        progress: Listener for (predictions made, predictions in all).

    Raises:
        EvaluationError: The file has another origin; names it.
    """
    done = _resumed(path, made_by)
    progress(min(len(done), len(inputs)), len(inputs))
    for start in range(len(done), len(inputs), batch):
        written = write(inputs[start : start + batch])
        lines = (_line({"index": start + i, "prediction": text}) for i, text in enumerate(written))
        with path.open("a", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        done.extend(written)
        progress(len(done), len(inputs))
    return done[: len(inputs)]


def _resumed(path: Path, made_by: Mapping[str, Any]) -> list[str]:
    """Return the predictions that a file holds.

    An incomplete last line is removed from the file.
    """
    lines = list(_whole_lines(path)) if path.exists() else []
    if not lines:
        write_text(_line(made_by), path, overwrite=True)
        return []
    if lines[0] != dict(made_by):
        first = next(
            name for name in {**made_by, **lines[0]} if lines[0].get(name) != made_by.get(name)
        )
        raise EvaluationError(
            f"{path}: holds predictions made with another {first:.60} "
            f"({shown(lines[0].get(first))}, now {shown(made_by.get(first))}); choose another "
            "--output, or give --overwrite to begin again"
        )
    predictions = [line["prediction"] for line in lines[1:]]
    content = _line(made_by) + "".join(
        _line({"index": i, "prediction": text}) for i, text in enumerate(predictions)
    )
    if content != path.read_text(encoding="utf-8", errors="replace"):
        write_text(content, path, overwrite=True)
    return predictions


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the origin of the predictions, then the predictions. A last line without an end is
    ignored.
    """
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    ):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise TypeError("it is not an object")
            if number and (
                entry["index"] != number - 1 or not isinstance(entry["prediction"], str)
            ):
                raise ValueError(f"prediction {number - 1} is expected here")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EvaluationError(
                f"{path}, line {number + 1}: is not a prediction ({error}); give --overwrite to begin "
                "again"
            ) from error
        yield entry


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
