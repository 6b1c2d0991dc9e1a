"""Files that are written in one step: a reader finds the old one or the new one, whole.

A draft is written in the same folder, under a hidden name. When it is whole and on the disk, it
gets the name. What a killed writer left stays there, hidden.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ..errors import NameTakenError, SaveError
from .tensors import serialized

_TRIES = 10_000  # numbers of a name that is taken
_LONGEST_NAME = 255  # bytes; of every disk that is in wide use
_SHOWN = 60  # characters of a long name in an error
# What only Windows refuses is refused everywhere, since files are passed on.
_UNFIT = re.compile(r'[\0-\x1f\ud800-\udfff<>:"|?*]|[. ]$')


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a safetensors file of tensors on any device in one step; see `whole_file`."""
    with whole_file(path, overwrite=overwrite) as file:
        file.writelines(blocks_of(tensors, metadata))


def write_text(text: str, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a text file in one step; see `whole_file`."""
    with whole_file(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8"))


def blocks_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, memoryview]:
    """Return the content of a safetensors file; ``format`` tells transformers whose it is."""
    return serialized(tensors, {"format": "pt", **metadata})


# --- in one step ---


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[BufferedWriter]:
    """Give a file to write into, which gets its name in one step at the end; its folder is made if
    needed. After an error nothing is left of it, and what was there is untouched.

    Raises:
        NameTakenError: See `check_free`.
        SaveError: It cannot be written; names the cause.
    """
    path = Path(path)
    # also around the draft's end: a file that is closed writes what it holds back
    with _one_sentence(path):
        check_free(path, overwrite=overwrite)
        os.makedirs(path.parent, exist_ok=True)
        draft = path.with_name(f".iteris-{secrets.token_hex(8)}.part")
        try:
            with open(draft, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(draft, path)
            else:
                _move_without_replacing(draft, path)
        finally:
            with contextlib.suppress(OSError):  # the cause is told, not what happened after it
                os.unlink(draft)


def _move_without_replacing(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise taken(path) from None
    except OSError:  # a disk without hard links
        if os.path.lexists(path):
            raise taken(path) from None
        os.rename(draft, path)


# --- what is in the way, and free names ---


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a name for a file, as before a long merge.

    Raises:
        NameTakenError: There is a folder of that name, or a file and `overwrite` is False.
    """
    if path.is_dir():
        raise NameTakenError(f"{path} is a folder; choose another name")
    if not overwrite and os.path.lexists(path):
        raise taken(path)


def taken(path: Path) -> NameTakenError:
    """Return the error about a name that is taken."""
    return NameTakenError(f"{path} exists already; choose another name, or allow overwriting")


def under_free_name(wanted: Path, save: Callable[[Path, bool], object], *, overwrite: bool) -> Path:
    """Save under a name or, where it is taken, under the next free number, and return the path:
    what took hours is not lost because another program was quicker.

    Args:
        wanted: The file or folder, which alone may be replaced.
        save: (path, whether it may be replaced) -> nothing; saves, or raises `NameTakenError`.
    """
    ending = wanted.suffix if wanted.suffix[1:].isalpha() else ""  # not the ending of "t5-v1.1"
    stem = wanted.name.removesuffix(ending)
    for number in range(1, _TRIES):
        path = wanted if number == 1 else wanted.with_name(f"{stem}_{number:02}{ending}")
        try:
            save(path, overwrite and path == wanted)
        except NameTakenError:
            continue
        return path
    raise taken(wanted)


def fault_of_path(path: Path) -> str:
    """Return what keeps a path from being made, as a sentence; empty: nothing.

    >>> fault_of_path(Path("what?"))[:47]
    "'what?' can be no name: a name has no control c"
    """
    for place in (path, *path.parents):
        name = place.name
        if name == ".." or os.path.lexists(place):
            continue
        if _UNFIT.search(name) or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
            shown = name if len(name) < _SHOWN else f"{name[:_SHOWN]}..."
            return (
                f"{shown!r} can be no name: a name has no control characters and none of "
                '<>:"|?*, does not end with a dot or a space, and has at most '
                f"{_LONGEST_NAME} bytes. Choose another"
            )
    return ""


@contextlib.contextmanager
def _one_sentence(place: Path) -> Iterator[None]:
    """Turn a name that cannot be one, or what a disk can answer, into a `SaveError`."""
    if fault := fault_of_path(place):
        raise SaveError(fault)
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise SaveError(
            f"{place} cannot be written: {cause}; look at the room on the disk and at your "
            "permissions, or save to another place"
        ) from error
