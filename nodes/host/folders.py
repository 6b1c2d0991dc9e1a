"""Where ComfyUI keeps files, and what its user allows to be written into them."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ...iteris_core import AdapterError


def lora_names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def find_lora(name: str) -> Path | None:
    """Return the full path of a LoRA in ComfyUI's folders; None: there is no such file."""
    path = folder_paths.get_full_path("loras", name)
    return None if path is None else Path(path)


def lora_path(name: str) -> Path:
    """Return the full path of a LoRA in ComfyUI's folders.

    Raises:
        AdapterError: No such file there.
    """
    path = find_lora(name)
    if path is None:
        raise AdapterError(f"{name}: there is no such file in the loras folders; choose another LoRA, or refresh the list")
    return path


def lora_name_of(path: Path) -> str | None:
    """Return the name of a file in ComfyUI's list of LoRAs; None: it is in no loras folder."""
    folders = (Path(folder).resolve() for folder in folder_paths.get_folder_paths("loras"))
    inside = (folder for folder in folders if path.resolve().is_relative_to(folder))
    return next((str(path.resolve().relative_to(folder)) for folder in inside), None)


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def saves_metadata() -> bool:
    """Whether files may tell how they were made; the user can start ComfyUI with --disable-metadata."""
    return not args.disable_metadata
