"""Safetensors files: read with errors that say what is wrong, written atomically. Nothing here is
opened by pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import AdapterError

_LENGTH_BYTES = 8
_PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def check_readable(path: Path) -> None:
    """Refuse a path that is no whole safetensors file, without reading its tensors.

    Raises:
        AdapterError: The file is missing, a pickle, truncated, or something else; with what to do
            about it.
    """
    if not path.is_file():
        raise AdapterError(
            f"{path.name}: there is no such file ({path}); give the path of a .safetensors file"
        )
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        brace = file.read(1)
        # a header's length may begin with the same bytes as a pickle, but only a header begins with
        # a brace
        if path.suffix in _PICKLE_SUFFIXES or (start.startswith(_PICKLE_STARTS) and brace != b"{"):
            raise AdapterError(
                f"{path.name}: this is a pickle file, which can run code when it is opened; IterIS "
                "reads only .safetensors. Convert it with a tool that you trust, or download the "
                "safetensors version"
            )
        size = path.stat().st_size
        header_size = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or not 2 <= header_size <= size - _LENGTH_BYTES:
            raise AdapterError(
                f"{path.name}: not a whole safetensors file ({size} bytes, of which its header "
                f"would be {header_size}); the download was probably cut off. Download it again"
            )
        try:
            header = json.loads(brace + file.read(header_size - 1))
            needed = max(
                (
                    entry["data_offsets"][1]
                    for key, entry in header.items()
                    if key != "__metadata__"
                ),
                default=0,
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            raise AdapterError(
                f"{path.name}: its safetensors header cannot be read; download it again"
            ) from error
    if not isinstance(needed, int):
        raise AdapterError(f"{path.name}: its safetensors header cannot be read; download it again")
    if size != _LENGTH_BYTES + header_size + needed:
        raise AdapterError(
            f"{path.name}: the file has {size} bytes where its header announces "
            f"{_LENGTH_BYTES + header_size + needed}; the download was probably cut off. Download "
            "it again"
        )


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU in their own precision, and its metadata.

    Raises:
        AdapterError: See `check_readable`.
    """
    path = Path(path)
    check_readable(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise AdapterError(
            f"{path.name}: cannot be read as safetensors ({error}); download it again"
        ) from error


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: on the CPU, contiguous, and none a view of
    another.
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
        tensors: Written as they are, on whatever device.
        path: The folder is made if needed.
        metadata: Strings; ``format`` is added.
        overwrite: Replace a file that is there.

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
    """Give an empty folder to write into, which takes the place of `folder` in one step when all is
    written.

    Whether a folder may be replaced is for the caller to decide; see `check_replaceable`.
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
    """Refuse to write to a folder that holds anything, unless it may be overwritten and everything
    in it is ours.

    Args:
        folder: Where something is to be written; it need not exist.
        own_files: Whether a file of this name belongs to what is written there.
        overwrite: Whether the user allows to replace it.

    Raises:
        FileExistsError: With what is in the way.
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
