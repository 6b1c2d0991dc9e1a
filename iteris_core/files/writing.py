"""Files and folders that are written in one step: who looks finds the old or the new one, whole.

A draft is written in the same folder, under a hidden name. When it is whole and on the disk, it
gets the name. What killed writers left is removed by those that come a day later.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ..errors import NameTakenError, SaveError
from .tensors import serialized

_FORMAT = {"format": "pt"}  # by which transformers knows whose tensors they are
_HIDDEN = re.compile(r"\.iteris-[0-9a-f]{16}\.(part|old)")
_DAY = 24 * 3600.0
_UNFINISHED = ".part"
_TRIES = 100  # at a name that others take at the same time
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_LONGEST_NAME = 255  # bytes; of every disk that is in wide use
_DEVICES = re.compile(
    r"(con(in\$|out\$)?|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³]) *(\..*)?", re.IGNORECASE
)
_WINDOWS = '<>:"|?*'
_SHOWN = 60  # characters of a long name in an error
_CAUSES = {
    errno.ENOSPC: "the disk is full; free some room, or save to another disk",
    errno.EDQUOT: "your share of the disk is used up; free some room, or save to another disk",
    errno.EFBIG: "the file is larger than this disk or process allows; save to another disk, or at "
    "a lower rank",
    errno.EROFS: "the disk is read-only; save to another place",
    errno.EACCES: "this is not allowed to you, or another program has it open; save to another "
    "place",
    errno.EPERM: "this is not allowed to you; save to another place",
    errno.ENAMETOOLONG: "the name is too long for the disk; choose a shorter one",
    errno.EISDIR: "a folder has this name; choose another name",
    errno.EEXIST: "a part of its path is a file; choose another place",
    errno.ENOTDIR: "a part of its path is a file; choose another place",
    errno.EINVAL: "the disk does not take this name; choose another name",
    errno.EIO: "the disk failed; save to another disk",
}


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a safetensors file in one step. Equal tensors and metadata give equal bytes.

    Args:
        tensors: Key -> tensor in the precision in which it is written, on any device.
        path: See `whole_file`.
        metadata: Strings for the file; ``format`` is added.
        overwrite: See `whole_file`.
        check: Is called with the draft, before it gets its name; if it raises, nothing is left.

    Raises:
        SaveError, NameTakenError: See `whole_file`.
    """
    with whole_file(path, overwrite=overwrite) as file:
        file.writelines(serialized(tensors, {**_FORMAT, **metadata}))
        if check is not None:
            file.flush()
            check(Path(file.name))


def write_text(text: str, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a text file in one step.

    Raises:
        SaveError, NameTakenError: See `whole_file`.
    """
    with whole_file(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8"))


def append_text(text: str, path: Path) -> None:
    """Write at the end of a text file, which is made if needed. A kill may leave a part of it.

    Raises:
        SaveError: It cannot be written.
    """
    with _one_sentence(path):
        os.makedirs(path.parent, exist_ok=True)
        with open(path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


# --- in one step ---


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[BufferedWriter]:
    """Give a file to write into, which gets its name in one step at the end. After an error nothing
    is left of it.

    Args:
        path: The file; its folder is made if needed.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        NameTakenError: There is a folder of that name, or a file and `overwrite` is False; it is
            untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
    """
    path = Path(path)
    with _one_sentence(path):
        check_free(path, overwrite=overwrite)
        with _draft_of(path) as draft:
            with open(draft, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(draft, path)
            else:
                _move_without_replacing(draft, path)
            _sync_folder(path.parent)


@dataclass(frozen=True)
class FolderDraft:
    """A folder that is not seen before it is whole, so that files are written into it plainly.

    Args:
        path: The folder.
    """

    path: Path

    def add_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Write a safetensors file; see `write_tensors`. It has another suffix until all is
        written: ComfyUI lists all files of this one, also what a killed process leaves.
        """
        with open(self.path / f"{name}{_UNFINISHED}", "xb") as file:
            file.writelines(serialized(tensors, {**_FORMAT, **metadata}))

    def add_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with open(self.path / name, "xb") as file:
            file.write(text.encode("utf-8"))


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder, of which a new one may take the place of an old one and of nothing else.

    Args:
        name: Its name in errors, such as "a PEFT adapter".
        is_one: Whether a folder that is not empty is of this kind.
        owns: Whether a file of this name belongs to it.
    """

    name: str
    is_one: Callable[[Path], bool]
    owns: Callable[[str], bool]


@contextlib.contextmanager
def whole_folder(
    folder: Path, kind: FolderKind, *, overwrite: bool = False
) -> Iterator[FolderDraft]:
    """Give an empty folder to write into, which takes the place of `folder` at the end.

    A folder that is there is moved away just before the new one gets its name. If the process is
    killed in between, the next writer in the same place moves it back.

    Args:
        folder: The folder; its parent is made if needed.
        kind: See `check_replaceable`.
        overwrite: See `check_replaceable`.

    Raises:
        NameTakenError: See `check_replaceable`; the folder is untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
    """
    with _one_sentence(folder):
        folder = folder.resolve()
        check_replaceable(folder, kind, overwrite=overwrite)
        with _draft_of(folder) as draft:
            os.mkdir(draft)
            yield FolderDraft(draft)
            _sync_tree(draft)
            for file in draft.glob(f"*{_UNFINISHED}"):
                os.rename(file, file.with_suffix(""))
            _sync_folder(draft)
            _take_place(draft, folder, kind, overwrite=overwrite)
            _sync_folder(folder.parent)


@contextlib.contextmanager
def _draft_of(place: Path) -> Iterator[Path]:
    """Give a hidden name in the folder of a place; nothing is left of it afterwards."""
    os.makedirs(place.parent, exist_ok=True)
    with contextlib.suppress(OSError):  # what others left must not stop anybody
        for name in filter(_HIDDEN.fullmatch, os.listdir(place.parent)):
            _clear_leftover(place.parent / name, _DAY)
    draft = place.with_name(f".iteris-{secrets.token_hex(8)}.part")
    try:
        yield draft
    finally:
        for path in (draft, draft.with_suffix(".old")):
            _clear_leftover(path, -math.inf)


def _clear_leftover(path: Path, age: float) -> None:
    """Put back what was moved away, and remove the rest if it is older than some seconds."""
    with contextlib.suppress(OSError):  # the cause is told, not what happened after it
        if path.suffix == ".old":
            for name in os.listdir(path):
                if not os.path.lexists(path.parent / name):
                    os.rename(path / name, path.parent / name)
                    os.rmdir(path)
        if time.time() - os.lstat(path).st_mtime >= age:
            shutil.rmtree(path) if path.is_dir() else os.unlink(path)


def _move_without_replacing(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError:  # a disk without hard links
        if os.path.lexists(path):
            raise _taken(path) from None
        os.rename(draft, path)


def _take_place(draft: Path, folder: Path, kind: FolderKind, *, overwrite: bool) -> None:
    moved = draft.with_suffix(".old") / folder.name  # which tells others where it belongs
    for _ in range(_TRIES):
        check_replaceable(folder, kind, overwrite=overwrite)
        if not overwrite:
            with contextlib.suppress(OSError):  # an empty one, onto which Windows renames nothing
                os.rmdir(folder)
        elif folder.exists():
            shutil.rmtree(moved, ignore_errors=True)  # of a round before
            os.makedirs(moved.parent, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, moved)
        try:
            os.rename(draft, folder)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return
    raise _taken(folder)


def _sync_tree(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(place, name), "r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    """Send the names in a folder to the disk; until then a power cut may undo a rename. Many
    network disks cannot, and not every folder can be opened; the names are there all the same.
    """
    if sys.platform == "win32":  # which opens no folders
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
    finally:
        os.close(handle)


# --- what is in the way, and free names ---


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a name for a file. It can be called before a long merge, too.

    Raises:
        NameTakenError: See `whole_file`.
    """
    if path.is_dir():
        raise NameTakenError(f"{path} is a folder; choose another name")
    if not overwrite and os.path.lexists(path):
        raise _taken(path)


def check_replaceable(folder: Path, kind: FolderKind, *, overwrite: bool) -> None:
    """Refuse to write to a folder that is not empty, unless it may be overwritten, is of our kind
    and holds nothing else.

    Args:
        folder: The folder to be written; it need not exist.
        kind: What is written there.
        overwrite: Whether files in the folder may be replaced.

    Raises:
        NameTakenError: Something is in the way; says what.
    """
    try:
        inside = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise NameTakenError(f"{folder} is a file; choose another folder") from None
    if inside and not overwrite:
        raise NameTakenError(
            f"{folder} exists already; choose another folder, or allow overwriting"
        )
    if os.path.ismount(folder):
        raise NameTakenError(
            f"{folder} is where a disk begins, such as a container's volume, which cannot be "
            "replaced; choose a folder in it"
        )
    foreign = [name for name in inside if not kind.owns(name)]
    if foreign:
        raise NameTakenError(
            f"{folder} holds {foreign[0]!r}, which does not belong to {kind.name} and would be "
            "lost; choose another folder, or move that file"
        )
    if inside and not kind.is_one(folder):
        raise NameTakenError(
            f"{folder} holds {inside[0]!r} and is not {kind.name}, and nothing else is replaced; "
            "choose another folder"
        )


def under_free_name(wanted: Path, save: Callable[[Path, bool], object], *, overwrite: bool) -> Path:
    """Save under a name or, where it is taken, under the next free number, and return the path.

    What took hours is not lost because another program was quicker.

    Args:
        wanted: The file or folder.
        save: (path, whether it may be replaced) -> nothing; saves, or raises `NameTakenError`.
        overwrite: Whether `wanted` may be replaced; nothing else is.
    """
    path = wanted
    for _ in range(_TRIES):
        try:
            save(path, overwrite and path == wanted)
        except NameTakenError:
            path = free_name(wanted)
        else:
            return path
    raise _taken(path)


def free_name(wanted: Path) -> Path:
    """Return a path with the next free number.

    >>> free_name(Path("a.safetensors")).name
    'a_02.safetensors'
    """
    ending = wanted.suffix if wanted.suffix[1:].isalpha() else ""  # not that of "t5-v1.1"
    stem = os.fsencode(wanted.name.removesuffix(ending))
    for number in itertools.count(2):
        tail = f"_{number:02}{ending}"
        start = stem[: _LONGEST_NAME - len(tail)].decode("utf-8", "ignore")
        path = wanted.with_name(start + tail)
        if not os.path.lexists(path):
            break
    return path


def fault_of_name(name: str) -> str:
    """Return what keeps a file from having a name, as the end of a sentence; empty: nothing.

    A name that only Windows refuses is refused everywhere, since files are passed on.

    >>> fault_of_name("nul.safetensors")
    'is the name of a device on Windows; choose another name'
    """
    if any(ord(letter) < ord(" ") for letter in name):
        return "has a control character in it; choose another name"
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "has half a character in it, which no disk can write; choose another name"
    if length > _LONGEST_NAME:
        return f"is {length} bytes long, and {_LONGEST_NAME} is the most; choose a shorter name"
    if any(letter in _WINDOWS for letter in name):
        return f"has one of {_WINDOWS} in it, which Windows does not allow; choose another name"
    if name.endswith((".", " ")):
        return "ends with a dot or a space, which Windows takes away; choose another name"
    if _DEVICES.fullmatch(name):
        return "is the name of a device on Windows; choose another name"
    return ""


def fault_of_path(path: Path) -> str:
    """Return what keeps a path from being made, as a sentence; empty: nothing."""
    for place in (path, *path.parents):
        is_there = place.name == ".." or os.path.lexists(place)
        fault = "" if is_there else fault_of_name(place.name)
        if fault:
            name = place.name if len(place.name) < _SHOWN else f"{place.name[:_SHOWN]}..."
            return f"{name!r} {fault}"
    return ""


# --- errors ---


def _taken(path: Path) -> NameTakenError:
    return NameTakenError(f"{path} exists already; choose another name, or allow overwriting")


@contextlib.contextmanager
def _one_sentence(place: Path) -> Iterator[None]:
    """Turn what a disk can answer into an error that names the cause.

    Raises:
        SaveError: See above; or the name cannot be one.
    """
    if fault := fault_of_path(place):
        raise SaveError(fault)
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        cause = _CAUSES.get(code or 0) or getattr(error, "strerror", None) or str(error)
        raise SaveError(f"{place} cannot be written: {cause}") from error
