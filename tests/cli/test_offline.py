"""A command on local files asks nothing of the outside: no connection, no name, no other program, no
pickle. Nor does what strangers' pictures, tables and adapters hold.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_diffusers
import tiny_language
from PIL import Image
from transformers import BlipForConditionalGeneration

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


def started(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def python(*arguments):
    done = started(*arguments)
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


# --- files of strangers ---

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
/a (ran) (w) file def
%%EOF
"""


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A tiny BLIP with an adapter, and two folders of pictures: one of pictures that are read
    ("good"), and one with PostScript among them ("bad").
    """
    folder = tmp_path_factory.mktemp("blip")
    tiny_language.blip().save_pretrained(folder / "base")
    tiny_language.blip_processor().save_pretrained(folder / "base")
    kind = {"kind": BlipForConditionalGeneration, "task_type": None}
    tiny_language.adapter(folder / "base", folder / "one", 1, ("query", "value"), **kind)
    for name in ("good", "bad"):
        (folder / name).mkdir()
        for number in range(2):
            picture = Image.new("RGB", (20, 24), (90 * number, 9, 9))
            picture.save(folder / name / f"{number}.png")
    (folder / "bad" / "1.png").write_bytes(EPS)
    return folder


def merge(blip, name, out):
    return [
        *("merge", "blip", "--base", blip / "base", "--adapter", blip / "one"),
        *("--images", blip / name, "--max-new-tokens", 2, "--output", out),
    ]


@pytest.mark.slow
def test_no_picture_starts_a_program(blip, tmp_path):
    """An EPS would start Ghostscript, whatever the file is called."""
    done = started(OUTSIDE, *merge(blip, "bad", tmp_path / "bad"))
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be read as a picture" in done.stderr
    assert python(OUTSIDE, *merge(blip, "good", tmp_path / "good")) == []
    assert list((tmp_path / "good").iterdir())
