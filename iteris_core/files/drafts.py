"""Hidden names for drafts, their locks, and the removal of what killed writers left.

A writer holds a lock beside its draft. The system lets go of a lock when its process ends, in
whatever way. So the next writer in the folder knows which drafts nobody will finish. A process's
number would not tell: it is given out anew, and means nothing on another machine or in a container.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

_HIDDEN = re.compile(r"(?P<stem>\.iteris-[0-9a-f]{8}-[0-9a-f]{16})\.(lock|part|old)")
_HELD = (errno.EACCES, errno.EDEADLK) if sys.platform == "win32" else (errno.EAGAIN,)
_TRIES = 10  # at a lock that another process took at the same moment
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class HiddenNames:
    """The names under which a writer works.

    Args:
        folder: Where they are.
        stem: How they begin: with the machine's mark, so that a disk that several machines use is
            cleared with care.
    """

    folder: Path
    stem: str

    @classmethod
    def new(cls, folder: Path) -> HiddenNames:
        return cls(folder, f"{_own_start()}{secrets.token_hex(8)}")

    @property
    def lock(self) -> Path:
        """A file that the writer holds locked; its content is the name of what is written."""
        return self.folder / f"{self.stem}.lock"

    @property
    def part(self) -> Path:
        """The draft, a file or a folder."""
        return self.folder / f"{self.stem}.part"

    @property
    def old(self) -> Path:
        """The folder that is replaced, while the new one has not got its name."""
        return self.folder / f"{self.stem}.old"

    def put_back(self, target: Path) -> None:
        """Give a folder that was moved away its name again, unless the new one has it."""
        if os.path.lexists(self.old) and not os.path.lexists(target):
            os.rename(self.old, target)

    def remove(self) -> None:
        """Remove all but the lock."""
        for path in (self.part, self.old):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _own_start() -> str:
    return f".iteris-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


@contextlib.contextmanager
def hidden_names(place: Path) -> Iterator[HiddenNames]:
    """Hold hidden names beside a place, of which nothing is left afterwards."""
    make_folder(place.parent)
    names, lock = _locked(place)
    try:
        with contextlib.suppress(OSError):  # what others left must not stop anybody
            _clear_leftovers(names)
        yield names
    except BaseException:
        with contextlib.suppress(OSError):  # the cause is told, not what happened after it
            names.put_back(place)
        raise
    finally:
        with contextlib.suppress(OSError):
            _finish(names, lock)


def _finish(names: HiddenNames, lock: BufferedRandom) -> None:
    """Leave nothing behind. The lock file goes last: while anything is left, it tells of what."""
    with lock:
        names.remove()
    with contextlib.suppress(FileNotFoundError):  # of a lock that is free anybody may dispose
        os.unlink(names.lock)


def _locked(place: Path) -> tuple[HiddenNames, BufferedRandom]:
    for tries_left in reversed(range(_TRIES)):
        names = HiddenNames.new(place.parent)
        lock = open(names.lock, "x+b")  # noqa: SIM115 (it is held)
        try:
            lock.write(os.fsencode(place.name))
            lock.flush()
            # somebody may have taken it for a leftover before it was locked; a disk that never
            # agrees is one without locks
            if (_lock(lock) is not False and _is_at(lock, names.lock)) or not tries_left:
                break
        except BaseException:
            _drop(lock, names)
            raise
        _drop(lock, names)
    return names, lock


def _drop(lock: BufferedRandom, names: HiddenNames) -> None:
    lock.close()
    with contextlib.suppress(OSError):
        os.unlink(names.lock)


def _is_at(file: BufferedRandom, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file: BufferedRandom) -> bool | None:
    """Lock a file if it is free; False: another process holds it; None: the disk has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _clear_leftovers(own: HiddenNames) -> None:
    """Remove what writers left in a folder whose processes were killed, and put back a folder that
    one of them had moved away.
    """
    now = os.stat(own.lock).st_mtime  # by the disk's clock
    matches = map(_HIDDEN.fullmatch, os.listdir(own.folder))
    for stem in {match["stem"] for match in matches if match} - {own.stem}:
        with contextlib.suppress(OSError):
            _clear(HiddenNames(own.folder, stem), now)


def _clear(names: HiddenNames, now: float) -> None:
    lock = open(names.lock, "a+b")  # noqa: SIM115 (closed before it is removed)
    free = _lock(lock)
    # Network disks may keep locks on each machine for itself, or have none. There a writer that
    # began more than a day ago is taken for dead.
    sure = free and names.stem.startswith(_own_start())
    age = now - os.fstat(lock.fileno()).st_mtime
    if free is False or not (sure or age > _DAY):
        lock.close()
        return
    lock.seek(0)
    target = Path(os.fsdecode(lock.read())).name  # no way out of the folder
    names.put_back(names.folder / target)
    _finish(names, lock)


# --- folders ---


def sync_folder(folder: Path) -> None:
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


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if they are missing, on the disk too."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    os.makedirs(folder, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)
