"""ComfyUI's folders and files, and whether metadata may be written into files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import comfyui_version
import folder_paths
from comfy.cli_args import args

from ...iteris_core.errors import AdapterError
from ...iteris_core.settings import shown

_DENOISERS = ("checkpoints", "diffusion_models")
_MODELS = (*_DENOISERS, "text_encoders")


def lora_names() -> list[str]:
    names: list[str] = folder_paths.get_filename_list("loras")
    return names


def find_lora(name: str) -> Path | None:
    """Return the full path of a LoRA in ComfyUI's folders; None: there is no such file, or one that
    ComfyUI does not list.
    """
    _, listed = folder_paths.folder_names_and_paths["loras"]
    if not folder_paths.filter_files_extensions([name], listed):
        return None
    path = folder_paths.get_full_path("loras", name)
    return None if path is None else Path(path)


def lora_path(name: str) -> Path:
    """Return the full path of a LoRA in ComfyUI's folders.

    Raises:
        AdapterError: No such file there, or one that is not a LoRA by its ending.
    """
    path = find_lora(name)
    if path is None:
        raise AdapterError(
            f"{shown(name)} is in none of ComfyUI's loras folders; choose another LoRA, or press R "
            "on ComfyUI's page"
        )
    return path


def lora_name_of(path: Path) -> str | None:
    """Return the name of a file in ComfyUI's list of LoRAs; None: it is in no loras folder."""
    # both, since a folder in it may be a link to another place
    for real in (os.path.abspath, os.path.realpath):
        for folder in folder_paths.get_folder_paths("loras"):
            if Path(real(path)).is_relative_to(real(folder)):
                return str(Path(real(path)).relative_to(real(folder)))
    return None


def namesake(path: Path) -> Path | None:
    """Return the file of another folder that ComfyUI's lists of LoRAs have under the name that a
    file at this path has or would have there; None: there is none.
    """
    name = lora_name_of(path)
    found = find_lora(name) if name else None
    if found is None or (path.parent.is_dir() and found.parent.samefile(path.parent)):
        return None
    return found


def model_files(names: Iterable[str]) -> list[str]:
    """Return the names that are model files, each with its short hash."""
    from ...iteris_core.files.metadata import short_hash

    found = []
    for name in sorted(names):
        path = find_model(name, _MODELS)
        if path is not None:
            with path.open("rb") as file:
                found.append(f"{name} ({short_hash(file)})")
    return found


def find_model(name: str, kinds: Sequence[str] = _DENOISERS) -> Path | None:
    """Return the full path of a checkpoint or a diffusion model in ComfyUI's lists; None: it is in
    none.

    Args:
        kinds: ComfyUI's lists of files that count.
    """
    for kind in kinds:
        if name in folder_paths.get_filename_list(kind):
            path = folder_paths.get_full_path(kind, name)
            if path is not None:
                return Path(path)
    return None


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def version() -> str:
    """Return ComfyUI's version."""
    return str(comfyui_version.__version__)


def saves_metadata() -> bool:
    """Whether metadata may be written into files; the user can forbid it (--disable-metadata)."""
    return not args.disable_metadata
