"""Names and fingerprints of LoRA files."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...iteris_core import IterisError
from ...iteris_core.settings import shown, some_of
from .. import host

_MOST_CHARACTERS = 200  # of a name that is compared with others
_UNFIT = re.compile(r'[<>:"|?*\x00-\x1f\\]')  # what the name of a file may not have
_MOST_NAMES, _MOST_LETTERS = 3, 24  # of LoRAs in the name of their merge, and of each
_FOLDER = "loras"  # of the output folder; ComfyUI adds it to its folders of LoRAs


def adapter_name(lora_name: str) -> str:
    """Return the name of a LoRA in reports: its name in ComfyUI's list without the suffix. No two
    files share it.

    >>> adapter_name("style/cat.safetensors")
    'style/cat'
    """
    return lora_name.replace("\\", "/").removesuffix(".safetensors")


def check_known(lora_name: str) -> None:
    """Refuse a name that is not one of ComfyUI's list, such as what a browser asks about.

    Raises:
        IterisError: It is not there.
    """
    if lora_name not in host.lora_names():
        raise IterisError(
            f"{shown(lora_name)} is not in ComfyUI's list of LoRAs; press R to refresh it"
        )


def find_name(wanted: str, names: Sequence[str]) -> str:
    """Return the file that a row or a stack names: by its path, by the longest end of the path, or
    by a name that only one file ends with.

    Raises:
        IterisError: No file, or more than one.
    """
    plain = adapter_name(wanted)
    paths = {name: adapter_name(name) for name in names}
    found = [name for name, path in paths.items() if path == plain]
    # rows hold no blanks at the end of a name
    found = found or [name for name, path in paths.items() if path.rstrip() == plain]
    ends = [name for name, path in paths.items() if plain.endswith(f"/{path}")]  # an absolute path
    found = found or sorted(ends, key=len)[-1:]
    found = found or [name for name, path in paths.items() if path.endswith(f"/{plain}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise IterisError(
            f"{shown(wanted)} is the name of {len(found)} files: {some_of(found)}. "
            "Write the folder with it"
        )
    raise IterisError(
        f"{shown(wanted)} is in none of ComfyUI's loras folders; "
        f"{_near(plain, paths.values())} put the file there, then press R on ComfyUI's page"
    )


def _near(plain: str, paths: Iterable[str]) -> str:
    """Return what to try before a file is put there: a similar name, if there is one."""
    by_end = {path.rpartition("/")[2]: path for path in paths}
    end = plain.rpartition("/")[2][:_MOST_CHARACTERS]
    found = difflib.get_close_matches(end, by_end, 1)
    return f"did you mean {shown(by_end[found[0]])}? If not," if found else "check the spelling, or"


def fingerprint(path: Path | None) -> str:
    """Return a string that changes when a LoRA's file changes, or the trigger words next to it:
    other programs often write there what is no concern of a merge.
    """
    from ...iteris_core.files.beside import words_beside

    if path is None or not path.is_file():
        return "missing"
    status = path.stat()
    return " ".join((f"{status.st_mtime_ns}-{status.st_size}", *words_beside(path)[1]))


def fingerprints(names: Iterable[str]) -> str:
    """Return a string that changes when one of these files, or its name, changes."""
    return " ".join(f"{name} {fingerprint(host.find_lora(name))}" for name in dict.fromkeys(names))


def path_to_save(output: Path, file_name: str) -> Path:
    """Return the path of a LoRA of this name in the folder ``loras`` of the output folder, which
    ComfyUI's lists of LoRAs hold.

    The name is the one in these lists, so it may have folders of its own. With ``loras/`` in front
    it means the same file.

    Raises:
        IterisError: An empty name, one that leaves the folder, or one that no file can have.
    """
    from ...iteris_core.files.writing import fault_of_path

    name = file_name.strip().replace("\\", "/").removeprefix(f"{_FOLDER}/")
    name = name.removesuffix(".safetensors")
    if not name or name.endswith("/"):
        raise IterisError("the file name is empty; write a name such as my_merge")
    # not resolved: output/loras may be a link to another disk
    folder = Path(os.path.abspath(output / _FOLDER))
    wanted = Path(os.path.abspath(folder / f"{name}.safetensors"))
    if not wanted.is_relative_to(folder):
        raise IterisError(
            f"{file_name!r} is outside the folder {_FOLDER} in ComfyUI's output folder; write a "
            "name such as my_merge, or styles/my_merge"
        )
    if fault := fault_of_path(wanted):
        raise IterisError(fault)
    return wanted


def name_of_merge(loras: Iterable[str]) -> str:
    """Return the name of a merge's file, of its LoRAs' names: the first of them, and how many more
    there are.

    >>> name_of_merge(["people/sks_robot", "zwx_owl"])
    'sks_robot+zwx_owl'
    >>> name_of_merge("abcde")
    'a+b+c+2'
    """
    plain = (_UNFIT.sub("_", name.rpartition("/")[2])[:_MOST_LETTERS] for name in loras)
    names = list(dict.fromkeys(plain))
    more = len(names) - _MOST_NAMES
    return "+".join([*names[:_MOST_NAMES], *([str(more)] if more > 0 else [])]) or "merged"
