"""`iteris demo` as a user calls it, with a real server, and what it says to bad input."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner
from waiting import HANGS

from demo.command import app

ROW = re.compile(r"[│|] (\w[^│|]*?)\s*[│|]\W+(\d+)\W+(\d+)\W+(\d+)")


def start(*arguments: object, temporary: Path, **options) -> subprocess.Popen[str]:
    """Start `iteris demo`, whose server's files go under `temporary`: by them its process is known."""
    installed = os.environ.get("ITERIS_DEMO_PYTHON")  # CI has one with the newest packages
    command = [installed, "-m", "iteris_core.cli", "demo"]
    if installed is None:
        command = [sys.executable, "-m", "demo"]
    command += map(str, arguments)
    environment = os.environ | {
        "TMPDIR": str(temporary),
        "TEMP": str(temporary),
        "TMP": str(temporary),
    }
    root = Path(__file__).resolve().parents[2]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=root, env=environment, **pipes, **options)


def servers(temporary: Path) -> list[psutil.Process]:
    """Return the servers that have files under `temporary`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "main.py" in line and any(str(temporary) in part for part in line):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo_temporary")


@pytest.mark.slow
def test_demo_merges_and_leaves_only_its_results(tmp_path, temporary):
    output = tmp_path / "result"
    process = start("--output", output, "--device", "cpu", temporary=temporary)
    printed, errors = process.communicate(timeout=HANGS)
    log = output / "comfyui.log"
    assert process.returncode == 0, errors + (
        log.read_text(errors="replace") if log.is_file() else ""
    )
    assert str(output) in printed
    with (output / "merged.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    keys = header.keys() - {"__metadata__"}
    assert {key.split("_")[1] for key in keys} == {"unet"}
    for name in ("comparison.png", "pictures.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    # what the recogniser sees in four pictures of each
    seen = {name: [int(n) for n in numbers] for name, *numbers in ROW.findall(printed)}
    assert min(seen["the merge"]) >= 2, printed
    (best,) = (counts for name, counts in seen.items() if name.endswith("(their best)"))
    assert seen["the merge"][-1] > max(best[-1], seen["all stacked at 1"][-1]), printed
    assert seen["the two it names, at 0.8"][-1] >= 2, printed  # what a user should try first
    stages = ["Starting ComfyUI", "Merge LoRAs: stage 1 of", "Compare", "Draw with the merge"]
    places = [printed.index(text) for text in [*stages, "What a recogniser sees", "Results in"]]
    assert places == sorted(places), printed
    assert isinstance(json.loads((output / "report.json").read_text(encoding="utf-8")), dict)
    assert (output / "report.txt").read_text(encoding="utf-8").strip()
    text = log.read_text(encoding="utf-8", errors="replace")
    complaints = (
        "lora key not loaded",
        "unet missing",
        "unet unexpected",
        "clip missing",
        "Missing VAE",
        "Leftover VAE",
    )
    assert not [complaint for complaint in complaints if complaint in text]
    assert not servers(temporary)
    assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_demo_stops_its_server_and_keeps_no_empty_folder_when_it_is_stopped(
    sent, code, tmp_path, temporary
):
    process = start("--output", tmp_path / "result", "--device", "cpu", temporary=temporary)
    while not servers(temporary):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended with exit code {process.wait(0.2)}")
    process.send_signal(sent)
    printed, _ = process.communicate(timeout=HANGS)
    assert process.returncode == code
    assert "nothing was kept" in printed
    assert not (tmp_path / "result").exists()
    assert not servers(temporary)
    assert not list(temporary.iterdir())


OWN_FILES = ("--checkpoint", "model.safetensors", *("--lora", "a.safetensors") * 2)
PROMPTS = ("--prompt", "one", "--prompt", "two")
BAD = {
    "does not exist": ("--checkpoint", "gone.safetensors", *("--lora", "a.safetensors") * 2),
    "not a .safetensors": ("--checkpoint", "old.ckpt", *("--lora", "a.safetensors") * 2),
    "at least two LoRAs": ("--checkpoint", "model.safetensors", "--lora", "a.safetensors"),
    "--lora needs --checkpoint": ("--lora", "a.safetensors", "--lora", "a.safetensors"),
    "0 --prompt for 2 LoRAs": OWN_FILES,
    "1 --prompt for 2 LoRAs": (*OWN_FILES, "--prompt", "only one"),
    "is empty": (*OWN_FILES, "--prompt", "one", "--prompt", " "),
    "multiple of 16": (*OWN_FILES, *PROMPTS, "--width", "100"),
    "expected 1 or more": (*OWN_FILES, *PROMPTS, "--steps", "0"),
    "--family needs --checkpoint": ("--family", "sdxl"),
    "--prompt needs --checkpoint": ("--prompt", "one"),
    "--steps needs --checkpoint": ("--steps", "0"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_exit_code_2(message, tmp_path, monkeypatch):
    """It is found by name and number, before anything is read."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.safetensors", "a.safetensors", "old.ckpt"):
        (tmp_path / name).touch()
    done = CliRunner().invoke(app, [*BAD[message], "--output", "result"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (tmp_path / "result").exists()
