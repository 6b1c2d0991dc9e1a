"""What the package says about itself: its version, what it needs, what the registry shows, and the
examples in its docstrings.
"""

import doctest
import importlib
import os
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import iteris_core

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for folder in ("iteris_core", "nodes")
    for path in (ROOT / folder).rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def project():
    """Return the sections `project` and `tool.comfy` of pyproject.toml."""
    toml = pytest.importorskip("tomllib")  # since Python 3.11
    read = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return read["project"], read["tool"]["comfy"]


def test_it_asks_for_nothing_that_comfyui_ships(project):
    wanted, _ = project
    assert wanted["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert [name.split(">")[0] for name in wanted["dependencies"]] == ["greenlet"]


def test_the_registry_finds_what_it_shows(project):
    wanted, shown = project
    assert {kind.split(" :: ")[0] for kind in wanted["classifiers"]} == {
        "Operating System",
        "Environment",
    }
    for key, (wide, high) in {"Icon": (1, 1), "Banner": (21, 9)}.items():
        file = ROOT / shown[key].split("/main/")[1]
        with Image.open(file) as picture:
            width, height = picture.size
        assert width * high == height * wide, key


def test_only_pyproject_holds_the_address(project):
    wanted, shown = project
    (address,) = wanted["urls"].values()
    name = "/".join(address.split("/")[-2:])
    assert all(f"/{name}/" in shown[key] for key in ("Icon", "Banner"))
    found = subprocess.run(["git", "grep", "-lF", name], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["pyproject.toml"]


@pytest.fixture
def workflow():
    """Return the workflow that publishes, as data."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def test_a_tag_of_the_version_publishes_and_nothing_else(workflow):
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads "on" as a truth value
    (check,) = (step["run"] for step in workflow["jobs"]["test"]["steps"] if "name" in step)
    for tag, is_right in {f"v{iteris_core.__version__}": True, "v9.9.9": False}.items():
        command = ["bash", "-ec", check]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag})
        assert (ended.returncode == 0) == is_right


def test_only_a_tag_that_is_tested_and_agreed_to_is_published(workflow):
    jobs = workflow["jobs"]
    assert set(jobs) == {"test", "publish"}
    assert ".ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    assert (jobs["publish"]["needs"], jobs["publish"]["environment"]) == ("test", "registry")
    assert "if" not in jobs["publish"]  # "always()" would not wait for the tests to pass
    with_token = [step["run"] for step in jobs["publish"]["steps"] if "secrets" in str(step)]
    assert with_token == ['comfy --skip-prompt node publish --token "$TOKEN"']
    assert "secrets" not in str(jobs["test"])


def test_what_runs_where_a_version_is_published_cannot_change(workflow):
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for used in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", used)  # a tag can be moved
    installed = [step["run"] for step in steps if "install" in step.get("run", "")]
    assert installed == ["pip install --require-hashes --no-deps -r .ci/locks/registry.txt"]
    for step in steps:
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"] == {"persist-credentials": False}


def test_what_is_published_is_what_is_tagged(workflow, tmp_path):
    """The last step before it looks, and none writes into the folder: comfy-cli packs what git
    tracks, as it lies there.
    """
    *_, check, publish = workflow["jobs"]["publish"]["steps"]
    assert "node publish" in publish["run"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    looked = partial(subprocess.run, ["bash", "-ec", check["run"]], cwd=tmp_path)
    assert looked().returncode == 0
    (tmp_path / "pyproject.toml").write_text("changed")
    assert looked().returncode != 0


def test_the_registry_leaves_out_folders_of_this_one_alone():
    """`docs/` without a slash before it would be web/docs, too."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    names = {name for path in tracked.split() for name in Path(path).parts}
    patterns = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    anywhere = {line.strip("/") for line in patterns if line and line[0] not in "/#"}
    assert not names & anywhere


def test_the_version_is_the_one_that_is_installed():
    assert f'\nversion = "{iteris_core.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_the_examples_in_docstrings_are_true(path):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(f"iteris_pack.{name}")
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0  # what failed is in the output


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 3
