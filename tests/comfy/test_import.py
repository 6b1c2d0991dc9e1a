"""What the pack costs ComfyUI when it starts: none of what only a merge needs is imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from waiting import HANGS

from demo.server import cache_folder, find_comfyui

ROOT = Path(__file__).parents[2]
OPTIONAL = "matplotlib diffusers peft sklearn pandas pyarrow typer rich greenlet"
# what ComfyUI has imported when it comes to its custom nodes, and then the pack, as it imports it
SCRIPT = f"""
import importlib, importlib.util, json, sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, comfy.utils, comfyui_version, folder_paths, numpy, safetensors.torch, torch
import pydantic.dataclasses  # by its nodes for APIs
from comfy_api.latest import ComfyExtension
for name in "{OPTIONAL}".split():
    sys.modules.setdefault(name, None)  # importing one that is not there yet is an ImportError
before = set(sys.modules)
spec = importlib.util.spec_from_file_location(
    "pack", "{ROOT}/__init__.py", submodule_search_locations=["{ROOT}"]
)
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
importlib.import_module("pack.nodes")
print(json.dumps(sorted(set(sys.modules) - before)))
"""
ENGINE = re.compile(
    r"pack\.iteris_core\.(algebra|engines|rows|rivals|merging|report\.figures|files)\b"
)


def test_the_pack_is_imported_without_what_only_a_merge_needs():
    comfyui = find_comfyui(cache_folder())
    environment = {**os.environ, "PYTHONPATH": str(comfyui)}
    given = {"cwd": comfyui, "env": environment, "timeout": HANGS}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stderr[-2000:]
    new = json.loads(done.stdout.splitlines()[-1])
    known = {"pack", "pydantic", *sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in new} <= known
    assert "pack.nodes.merge" in new and not list(filter(ENGINE.match, new))
