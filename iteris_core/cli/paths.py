"""Where a command may write: asked before the work, which can take hours, and so that no result
takes the place of an input.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from ..errors import ConfigError

Places = Mapping[str, Path | None]


def check_places(
    *,
    whole: Places | None = None,
    folders: Places | None = None,
    files: Places | None = None,
    inputs: Mapping[str, Iterable[Path | str | None] | None] | None = None,
) -> None:
    """Refuse places that cannot be written to, that lie in each other, or in which an input of the
    command would be lost.

    Args:
        whole: Option -> folder that is written, and replaced, as a whole; None: not asked for.
        folders: Option -> folder in which files are added.
        files: Option -> file.
        inputs: Option -> what is read; names on the hub are no places.

    Raises:
        ConfigError: Names the options and the place.
    """
    whole, folders, files = (_given(places) for places in (whole, folders, files))
    read = [
        (option, Path(path))
        for option, paths in (inputs or {}).items()
        for path in paths or ()
        if path and Path(path).exists()
    ]
    for (first, one), (second, other) in combinations([*whole.items(), *files.items()], 2):
        if one.resolve() == other.resolve():
            raise ConfigError(f"{second} and {first} are both {one}; give each a place of its own")
        for (outer, folder), (inner, place) in (
            ((first, one), (second, other)),
            ((second, other), (first, one)),
        ):
            if folder.resolve() in place.resolve().parents:
                what = "which is written as a whole" if outer in whole else "which is to be a file"
                raise ConfigError(
                    f"{inner} is {place}, inside of {outer}, {folder}, {what}; choose a place "
                    "outside"
                )
    for option, place in files.items():
        if place.is_dir():
            raise ConfigError(f"{option} is {place}, a folder; name a file")
    for option, place in {**whole, **files}.items():
        for name, path in read:
            part_of_it = (
                option in files and place.exists() and path.resolve() in place.resolve().parents
            )
            if part_of_it or place.resolve() in (path.resolve(), *path.resolve().parents):
                raise ConfigError(
                    f"{option} is {place}, which would take the place of {name} {path}; choose "
                    "another place"
                )
    for option, place in {**whole, **files}.items():
        _check_writable(option, place, place.resolve().parent)
    for option, place in folders.items():
        _check_writable(option, place, place.resolve())


def _given(places: Places | None) -> dict[str, Path]:
    return {option: place for option, place in (places or {}).items() if place is not None}


def _check_writable(option: str, place: Path, folder: Path) -> None:
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
