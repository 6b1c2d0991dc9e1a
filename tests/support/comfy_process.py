"""Runs the checks of `tests/comfy/inside` in a process with ComfyUI; see `in_comfy`."""

import os
import subprocess
import sys
from pathlib import Path

from demo.server import cache_folder, find_comfyui

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


def has_newer_classes():
    """Return whether the ComfyUI that tests run is a newer one than CI's."""
    folder = os.environ.get("COMFYUI_PATH")
    return (
        bool(folder) and "class Anima" in (Path(folder) / "comfy/supported_models.py").read_text()
    )


def check_inside(*names, checked="", device="--cpu"):
    """Run `check_NAME.py` in one process; they ask the environment for what is CHECKED.

    Args:
        device: ComfyUI's options; without --cpu it runs on the device of `second_device`.
    """
    support = [SUPPORT] if device == "--cpu" else [SUPPORT, SUPPORT / "second_device"]
    environment = {
        "COMFYUI": str(find_comfyui(cache_folder())),
        "CHECKED": checked,
        "DEVICE": device,
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *support])),
    }
    options = ["-p", "in_comfy", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *options, "-o", "pythonpath="]
    command += [ROOT / "tests" / "comfy" / "inside" / f"check_{name}.py" for name in names]
    given = {"cwd": ROOT, "env": os.environ | environment, "capture_output": True}
    done = subprocess.run(command, text=True, check=False, **given)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
