"""ComfyUI, and this pack beside it, in the process of a script.

    python script.py COMFYUI_FOLDER [ARGUMENTS]

A script imports this before all of `comfy` and `iteris_pack`. It needs a process of its own, since
ComfyUI reads the command line when it is imported, sets switches of PyTorch, and puts its folder
before all others of `sys.path`, where it has a `nodes` too. It hands its figures to `tell`.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COMFYUI = Path(sys.argv[1])
ARGUMENTS = sys.argv[2:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, str(COMFYUI))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import iteris_pack  # noqa: E402, F401
import torch  # noqa: E402

sys.path.pop(0)  # the stub of ComfyUI that it brings


def tell(figures: Iterable[dict[str, Any]]) -> None:
    """Print figures as lines of JSON, computed as ComfyUI's nodes compute."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        for found in figures:
            print(json.dumps(found), flush=True)
