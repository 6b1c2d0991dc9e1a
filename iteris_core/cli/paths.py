"""The check of the places that a command reads and writes, before hours of work."""

from __future__ import annotations

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
        for option, place in self._outputs():
            if fault := fault_of_path(place):
                raise ConfigError(f"{option}: {fault}")
        self._check_apart()
        for option, file in self.files.items():
            if file is not None and file.is_dir():
                raise ConfigError(f"{option} is {file}, a folder; name a file")
        self._check_inputs_stay()
        for option, place in self._outputs():
            _check_writable(option, place)

    def _outputs(self) -> list[tuple[str, Path]]:
        """Return the places whose former content is replaced."""
        return [
            (option, place)
            for option, place in {**self.whole, **self.files}.items()
            if place is not None
        ]

    def _check_apart(self) -> None:
        for (outer, folder), (inner, place) in permutations(self._outputs(), 2):
            if folder.resolve() == place.resolve():
                raise ConfigError(
                    f"{inner} and {outer} are both {folder}; give each a place of its own"
                )
            if folder.resolve() in place.resolve().parents:
                what = "written as a whole" if outer in self.whole else "to be a file"
                raise ConfigError(
                    f"{inner} is {place}, inside of {outer}, {folder}, which is {what}; choose a "
                    "place outside"
                )

    def _check_inputs_stay(self) -> None:
        for option, place in self._outputs():
            for name, path in self._read():
                is_inside = (
                    option in self.files
                    and place.exists()
                    and path.resolve() in place.resolve().parents
                )
                if is_inside or place.resolve() in (path.resolve(), *path.resolve().parents):
                    raise ConfigError(
                        f"{option} is {place}, which would take the place of {name} {path}; choose "
                        "another place"
                    )

    def _read(self) -> Iterator[tuple[str, Path]]:
        """Yield the inputs that are on this disk."""
        for option, paths in self.inputs.items():
            for path in map(Path, map(str, filter(None, paths))):
                if path.exists():
                    yield option, path


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
