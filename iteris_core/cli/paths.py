"""The check of the places that a command reads and writes, before hours of work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from ..errors import ConfigError
from ..files.writing import check_free, fault_of_path

Inputs = Mapping[str, Sequence[object]]


def check_places(outputs: Mapping[str, Path | None], inputs: Inputs, *, overwrite: bool) -> None:
    """Refuse places that cannot be written to, or where an input of the command would be lost; and
    a file of a report that is there already.

    Args:
        outputs: Option -> file or folder that is written; None: the option is not given.
        inputs: Option -> paths that are read; None and names on the hub do not count.

    Raises:
        ConfigError: Names the options and the place.
        NameTakenError: The report may not be replaced.
    """
    given = {option: place for option, place in outputs.items() if place is not None}
    for option, place in given.items():
        if fault := fault_of_path(place):
            raise ConfigError(f"{option}: {fault}")
    for (first, place), (option, other) in combinations(given.items(), 2):
        if place.resolve() == other.resolve():
            raise ConfigError(f"{option} is {other}, as is {first}; choose another place")
    for option, place in given.items():
        for name, path in _on_disk(inputs):
            is_inside = place.is_file() and path.resolve() in _with_parents(place)
            if is_inside or place.resolve() in _with_parents(path):
                raise ConfigError(
                    f"{option} is {place}, which would take the place of {name} {path}; choose "
                    "another place"
                )
        _check_writable(option, place)
        if option == "--json":
            check_free(place, overwrite=overwrite)


def _on_disk(inputs: Inputs) -> Iterator[tuple[str, Path]]:
    for option, paths in inputs.items():
        for path in map(str, filter(None, paths)):
            if os.path.exists(path):  # Path.exists raises where a row of prompts is no name
                yield option, Path(path)


def _with_parents(place: Path) -> tuple[Path, ...]:
    return place.resolve(), *place.resolve().parents


def _check_writable(option: str, place: Path) -> None:
    folder = next(parent for parent in place.resolve().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} is {place}, but nothing can be written into {folder} ({error.strerror}); "
            "choose another place"
        ) from error
