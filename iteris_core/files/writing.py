"""Files and folders that are written in one step: they are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .layout import storable


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a safetensors file in one step: it is there whole or not at all.

    Args:
        tensors: Key -> tensor in the precision in which it is written, on any device.
        path: The file; its folder is made if needed.
        metadata: Strings for the file; ``format`` is added.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        FileExistsError: The file is there and `overwrite` is False; it is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        save_file(storable(tensors), draft, metadata={"format": "pt", **metadata})
        os.chmod(draft, 0o644)
        if overwrite:
            os.replace(draft, path)
        else:
            _move_without_replacing(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(draft)


def _move_without_replacing(draft: str, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise FileExistsError(
            f"{path} exists already; choose another name, or allow overwriting"
        ) from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(
                f"{path} exists already; choose another name, or allow overwriting"
            ) from None
        os.rename(draft, path)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of `folder` in one step at the end.

    A folder that is there is replaced. Whether it may be is for the caller to decide; see
    `check_replaceable`.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", suffix=".part", dir=folder.parent
    ) as drafts:
        draft = Path(drafts) / "new"
        old = Path(drafts) / "old"
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.exists() and not folder.exists():
                shutil.move(old, folder)
            raise


def check_replaceable(folder: Path, own_files: Callable[[str], bool], *, overwrite: bool) -> None:
    """Refuse to write to a folder that is not empty, unless it may be overwritten and holds only
    files of our kind.

    Args:
        folder: The folder to be written; it need not exist.
        own_files: Whether a file of this name belongs to what is written there.
        overwrite: Whether files in the folder may be replaced.

    Raises:
        FileExistsError: Something is in the way; says what.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder")
    inside = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if inside and not overwrite:
        raise FileExistsError(
            f"{folder} exists already; choose another folder, or allow overwriting"
        )
    foreign = [name for name in inside if not own_files(name)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds {foreign[0]!r}, which is not of this kind; choose another folder"
        )
