"""The extension's pure modules, tested in Node: the one on the path, else Playwright's own."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from waiting import HANGS

HERE = Path(__file__).parent


def find_node():
    if found := shutil.which("node"):
        return found
    spec = importlib.util.find_spec("playwright")
    bundled = Path(spec.origin).parent / "driver" / "node" if spec else None
    return str(bundled) if bundled and bundled.is_file() else None


def test_modules():
    node = find_node()
    if node is None:
        pytest.skip("no Node: install Node 20 or newer, or Playwright, which has one")
    done = subprocess.run(
        [node, "--test", *map(str, HERE.glob("*.test.mjs"))],
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout or "fail 0" in done.stdout
