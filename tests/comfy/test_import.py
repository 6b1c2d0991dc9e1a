"""What the pack costs ComfyUI when it starts, and what it does without."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from waiting import HANGS

from demo.server import cache_folder, find_comfyui

ROOT = Path(__file__).parents[2]
OPTIONAL = [
    "matplotlib",
    "diffusers",
    "peft",
    "sklearn",
    "pandas",
    "pyarrow",
    "typer",
    "rich",
    "greenlet",
]
# Imports of the pack over those of `unittest` with its mocks, in turns, since machines differ in pace.
# Measured: 16 to 17.4, and 56 to 77 with the engine's 60 modules.
MOST_TIMES = 30
# as ComfyUI has imported them when it comes to its custom nodes
SCRIPT = """
import importlib, importlib.util, json, statistics, sys, time
folder, optional = sys.argv[1], sys.argv[2].split(",")
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, comfy.utils, comfyui_version, folder_paths, numpy, safetensors.torch, torch
import pydantic.dataclasses  # by its nodes for APIs
from comfy_api.latest import ComfyExtension
for name in optional:
    sys.modules.setdefault(name, None)  # importing one that is not there yet is an ImportError
def timed(package, import_it):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    start = time.process_time()
    import_it()
    return time.process_time() - start
def pack():
    spec = importlib.util.spec_from_file_location("pack", f"{folder}/__init__.py", submodule_search_locations=[folder])
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])
    importlib.import_module("pack.nodes")
before = set(sys.modules)
ours, others = zip(*(
    (timed("pack", pack), timed("unittest", lambda: importlib.import_module("unittest.mock"))) for _ in range(5)
))
new = {name for name in set(sys.modules) - before if name.partition(".")[0] != "unittest"}
print(json.dumps([statistics.median(ours), statistics.median(others), sorted(new)]))
"""


def test_the_pack_is_imported_quickly_and_without_what_only_a_merge_needs():
    comfyui = find_comfyui(cache_folder())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT), ",".join(OPTIONAL)],
        cwd=comfyui,
        capture_output=True,
        text=True,
        timeout=HANGS,
        env={**os.environ, "PYTHONPATH": str(comfyui)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, of_unittest, new = json.loads(done.stdout.splitlines()[-1])
    print(
        f"importing the pack takes {1000 * seconds:.0f} ms of CPU time beyond what ComfyUI has "
        f"imported, {seconds / of_unittest:.1f} times as long as unittest"
    )
    known = {"pack", "pydantic", *sys.stdlib_module_names}
    libraries = {name.partition(".")[0] for name in new} - known
    assert libraries == set()
    engine = re.compile(r"pack\.iteris_core\.(algebra|engines|rows|rivals|merging|report|files)\b")
    assert [name for name in new if engine.match(name)] == []
    assert "pack.nodes.merge" in new
    assert seconds < MOST_TIMES * of_unittest
