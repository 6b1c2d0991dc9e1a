"""Runs a script of this folder in a process with ComfyUI; see `in_comfy`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from demo.server import cache_folder, find_comfyui

ROOT = Path(__file__).parents[2]


def has_newer_classes():
    """Return whether the ComfyUI that tests run is a newer one than CI's."""
    folder = os.environ.get("COMFYUI_PATH")
    return (
        bool(folder) and "class Anima" in (Path(folder) / "comfy/supported_models.py").read_text()
    )


def figures_of(script, *arguments):
    """Return the lines of JSON that a script prints, parsed."""
    done = subprocess.run(
        [sys.executable, f"tests/support/{script}", str(find_comfyui(cache_folder())), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
