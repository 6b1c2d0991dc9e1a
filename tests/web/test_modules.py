"""The extension's pure modules, tested in Node: the one on the path, else Playwright's own."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from waiting import HANGS

HERE = Path(__file__).parent
STYLES = HERE.parents[1] / "web" / "iteris.css"


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


@pytest.mark.parametrize(
    ("color", "classes"),
    [("#d93636", "unfit missing refused unread"), ("#e0a100", "odd again lacking asks")],
)
def test_rows_are_marked_red_where_they_are_refused_and_yellow_where_in_doubt(color, classes):
    rules = STYLES.read_text(encoding="utf-8").splitlines()
    marked = "".join(rule for rule in rules if f"box-shadow: inset 3px 0 {color}" in rule)
    assert all(f".iteris-{name}" in marked for name in classes.split())
