"""The check of the places that a command reads and writes, before hours of work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

from ..errors import ConfigError
from ..files.writing import fault_of_path


@dataclass(frozen=True)
class Places:
    """The places that a command reads and writes.

    Args:
        whole: Option -> folder that is written, and replaced, as a whole; None: the option is not
            given.
        inputs: Option -> paths that are read; None and names on the hub do not count.
    """

    whole: Mapping[str, Path | None] = field(default_factory=dict)
    files: Mapping[str, Path | None] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse places that cannot be written to, that are inside each other, or where an input of
        the command would be lost.

        Raises:
            ConfigError: Names the options and the place.
        """
        outputs = [
            (option, place)
            for option, place in {**self.whole, **self.files}.items()
            if place is not None
        ]
        for option, place in outputs:
            if fault := fault_of_path(place):
                raise ConfigError(f"{option}: {fault}")
            if option in self.files and place.is_dir():
                raise ConfigError(f"{option} is {place}, a folder; name a file")
        for (outer, folder), (inner, place) in permutations(outputs, 2):
            if folder.resolve() in _with_parents(place):
                raise ConfigError(
                    f"{inner} is {place}, inside of {outer}, {folder}; choose a place outside"
                )
        for option, place in outputs:
            self._check_inputs_stay(option, place)
            _check_writable(option, place)

    def _check_inputs_stay(self, option: str, place: Path) -> None:
        is_old_file = option in self.files and place.exists()
        for name, path in self._read():
            is_inside = is_old_file and path.resolve() in _with_parents(place)
            if is_inside or place.resolve() in _with_parents(path):
                raise ConfigError(
                    f"{option} is {place}, which would take the place of {name} {path}; choose "
                    "another place"
                )

    def _read(self) -> Iterator[tuple[str, Path]]:
        """Yield the inputs that are on this disk."""
        for option, paths in self.inputs.items():
            for path in map(str, filter(None, paths)):
                if os.path.exists(path):  # Path.exists raises where a row of prompts is no name
                    yield option, Path(path)


def _with_parents(place: Path) -> tuple[Path, ...]:
    return place.resolve(), *place.resolve().parents


def _check_writable(option: str, place: Path) -> None:
    folder = place.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"{option} is {place}, but {folder} is a file; choose another place")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} is {place}, but nothing can be written into {folder} ({error.strerror}); "
            "choose another place"
        ) from error
