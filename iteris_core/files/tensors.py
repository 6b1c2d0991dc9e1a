"""Safetensors files: read without pickle, written in one step, and identified by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from ..errors import AdapterError

_LENGTH_BYTES = 8  # of a header's length, at the start of a file
_PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_BLOCK_BYTES = 1 << 20


def check_readable(path: Path) -> None:
    """Refuse a path that is no whole safetensors file, without reading its tensors.

    Raises:
        AdapterError: The file is missing, a pickle, truncated or something else; names the next
            step.
    """
    with opened(path):
        pass


@contextlib.contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file, whose tensors are read when they are asked for, on the CPU.

    Raises:
        AdapterError: See `check_readable`.
    """
    if not path.is_file():
        raise AdapterError(
            f"{path.name}: there is no such file ({path}); give the path of a .safetensors file"
        )
    if _is_pickle(path):
        raise AdapterError(
            f"{path.name}: this is a pickle file, which can run code when it is opened; IterIS "
            "reads only .safetensors. Convert it with a tool that you trust, or download the "
            "safetensors version"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise AdapterError(
            f"{path.name}: not a whole safetensors file ({path.stat().st_size} bytes; {error}); "
            "the download was probably cut off. Download it again"
        ) from error


def _is_pickle(path: Path) -> bool:
    if path.suffix in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        # a header's length may begin with the same bytes as a pickle, but only a header begins with
        # a brace
        return start.startswith(_PICKLE_STARTS) and file.read(1) != b"{"


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU in their own precision, and its metadata.

    Raises:
        AdapterError: See `check_readable`.
    """
    with opened(Path(path)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no dict)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a safetensors file with these tensors and no metadata."""
    return hashlib.sha256(save(storable(tensors))).hexdigest()


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors as safetensors needs them: on the CPU, contiguous, and none a view
    of another.
    """
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


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
