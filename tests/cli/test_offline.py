"""A command on local files opens no connection, no other program and no pickle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_diffusers

from iteris_core.diffusion.lora_files import save_lora

TESTS = Path(__file__).parents[1]
OUTSIDE = TESTS / "support" / "outside.py"
ASKS = """
import outside, pickle, socket, subprocess, sys, urllib.request
asked = outside.refuse()
for ask in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: urllib.request.urlopen("http://127.0.0.1:9"),
    lambda: subprocess.run([sys.executable, "--version"]),
    lambda: pickle.loads(b"cbuiltins\\nlen\\n."),
):
    try:
        ask()
    except OSError:
        pass
    else:
        sys.exit("it was allowed")
print(len(asked))
"""


def python(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_process_asks_is_refused_and_told():
    assert python("-c", ASKS) == 5


@pytest.mark.slow
def test_a_merge_of_stable_diffusion_asks_nothing(tmp_path):
    model = tiny_diffusers.model()
    tiny_diffusers.save_folder(model, tmp_path / "base")
    merged = tmp_path / "merged.safetensors"
    arguments = ["merge", "sd15", "--base", tmp_path / "base", "--output", merged]
    arguments += ["--trajectories", 1, "--timesteps", 1, "--steps", 2, "--resolution", 64]
    for seed, name in enumerate(("one", "two")):
        adapter = tiny_diffusers.adapter(model, seed, wanted=("attn2.to_q", "fc1"))
        save_lora(model, adapter, tmp_path / f"{name}.safetensors")
        arguments += ["--lora", f"<lora:{tmp_path}/{name}> | a {name}"]
    assert python(OUTSIDE, *arguments) == []
    assert merged.is_file()
