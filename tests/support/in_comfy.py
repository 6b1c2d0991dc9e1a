"""A plugin of pytest: ComfyUI, and this pack beside it, in a process that `comfy_process` starts.

It is a process of its own, since ComfyUI reads the command line when it is imported, sets switches of
PyTorch, and puts its folder before all others of `sys.path`, where it has a `nodes` too. Tests run in
inference mode, as ComfyUI's nodes do.
"""

import os
import sys

import pytest

sys.path.insert(0, os.environ["COMFYUI"])
sys.argv[1:] = os.environ.get("DEVICE", "--cpu").split()

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import iteris_pack  # noqa: E402, F401
import torch  # noqa: E402

sys.path.pop(0)  # the stub of ComfyUI that it brings

if "--enable-dynamic-vram" in sys.argv:
    import comfy.memory_management
    import comfy.model_patcher
    import comfy_aimdo.control

    # as ComfyUI's `main` does on a GPU of NVIDIA or AMD
    comfy_aimdo.control.init_devices([0])
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    with torch.inference_mode():
        return (yield)
