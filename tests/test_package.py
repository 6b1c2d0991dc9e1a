"""What the package says about itself, and the examples in its docstrings."""

import doctest
import importlib
import re
import subprocess
from pathlib import Path

import pytest

import iteris_core

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"


def test_it_asks_for_nothing_that_comfyui_ships():
    toml = pytest.importorskip("tomllib")  # since Python 3.11
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == iteris_core.__version__
    assert project["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert [name.split(">")[0] for name in project["dependencies"]] == ["greenlet"]


@pytest.fixture
def workflow():
    """Return the workflow that publishes, as data."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((WORKFLOWS / "publish.yml").read_text(encoding="utf-8"))


def test_what_gets_the_token_is_pinned(workflow):
    for path in WORKFLOWS.glob("*.yml"):
        for used in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", used)  # a tag can be moved
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all("--require-hashes" in s["run"] for s in steps if "install" in s.get("run", ""))
    assert sum("secrets" in str(step) for step in steps) == 1


def test_the_registry_leaves_out_folders_of_this_one_alone():
    """`docs/` without a slash before it would be web/docs, too."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    names = {name for path in tracked.split() for name in Path(path).parts}
    patterns = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    anywhere = {line.strip("/") for line in patterns if line and line[0] not in "/#"}
    assert not names & anywhere


def test_the_examples_in_docstrings_are_true():
    tried = 0
    for folder in ("iteris_core", "nodes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>>" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                module = importlib.import_module(
                    "iteris_pack." + ".".join(parts).removesuffix(".__init__")
                )
                found = doctest.testmod(module)
                assert found.attempted > 0 and found.failed == 0, path  # pytest shows what failed
                tried += 1
    assert tried > 0


@pytest.mark.slow  # it imports diffusers
def test_every_benchmark_can_still_be_imported():
    """They run by hand alone, and would break unseen."""
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith("__main__"):
            importlib.import_module(name.removesuffix(".__init__"))
