"""What a run has made is kept with its origin, so that an interrupted run can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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


def kept(path: Path, made_by: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a file of an earlier run holds; None if there is none.

    Args:
        path: JSON file with ``made_by``.
        made_by: Everything that what is made depends on, as JSON.

    Raises:
        EvaluationError: The file has another origin, or cannot be read; names it.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before = dict(content["made_by"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error!s:.200}); delete it to begin again"
        ) from error
    different = [name for name in made_by if before.get(name) != made_by[name]]
    if different:
        first = different[0]
        raise EvaluationError(
            f"{path}: was made with another {first} ({shown(before.get(first))}, now "
            f"{shown(made_by[first])}); choose another --output, or delete this one to begin again"
        )
    found: dict[str, Any] = content
    return found


def keep(path: Path, made_by: Mapping[str, Any], **content: Any) -> None:
    """Write a file for `kept`."""
    text = json.dumps({"made_by": made_by, **content}, ensure_ascii=False, indent=1)
    write_text(text + "\n", path, overwrite=True)


def predict(
    path: Path,
    made_by: Mapping[str, Any],
    inputs: Sequence[Input],
    write: Callable[[Sequence[Input]], Sequence[str]],
    batch: int,
    progress: Progress,
) -> list[str]:
    """Return one prediction per input: the file's, then new ones, which are kept batch by batch.

    Args:
        path: File of the predictions.
        made_by: Everything that a prediction depends on, as JSON.
        inputs: Inputs of the task, in order.
        write: Function from inputs to predictions.
        batch: Inputs of one call.
        progress: Listener for (predictions made, predictions in all).

    Raises:
        EvaluationError: See `kept`.
    """
    found = kept(path, made_by) or {"predictions": []}
    done: list[str] = found["predictions"]
    progress(min(len(done), len(inputs)), len(inputs))
    for start in range(len(done), len(inputs), batch):
        done += write(inputs[start : start + batch])
        keep(path, made_by, predictions=done)
        progress(len(done), len(inputs))
    return done[: len(inputs)]
