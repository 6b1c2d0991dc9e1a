"""The pages for people: what they point to is there, and what they show works."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from workflow_notes import TEMPLATES

ROOT = Path(__file__).parent.parent
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
)
PAGES = sorted(ROOT / name for name in set(LISTED.stdout.splitlines()))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([\w./-]+)`")
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors_of(page: Path) -> set[str]:
    """Return the headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/first_merge.md"} <= set(
        map(name_of, PAGES)
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in anchors_of(place), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_is_named_exists(page):
    """A path with a folder in it is one of the repository. A bare `name.py` stands beside a path
    of its line, or is anywhere in the repository.
    """
    for line in page.read_text(encoding="utf-8").splitlines():
        named = CODE.findall(line)
        for text in named:
            if "/" in text and text.split("/")[0] in TOP:
                assert (ROOT / text).exists(), f"{name_of(page)} names {text}"
            elif text.endswith(".py") and "/" not in text:
                beside = [ROOT / other for other in named if "/" in other]
                folders = [path if path.is_dir() else path.parent for path in beside]
                exists = any((folder / text).exists() for folder in folders)
                assert exists or (not folders and any(ROOT.rglob(text))), (
                    f"{name_of(page)} names {text}"
                )


def test_the_commands_of_the_readme_are_those_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for extra, command in (("demo", "iteris demo"), ("test", "pytest")):
        assert f'\n    pip install -e ".[{extra}]" && {command}\n' in readme
        assert re.search(rf'pip"? install --quiet [^\n]*-e "\.\[{extra}\]"\n', run)
        assert re.search(rf"(\n|&& exec ){command} ", run)


def test_the_example_of_the_library_runs(tmp_path):
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {
        "model": torch.nn.Sequential(torch.nn.Linear(4, 3)),
        **{f"up_{k}": torch.randn(3, 2) for k in (1, 2)},
        **{f"down_{k}": torch.randn(2, 4) for k in (1, 2)},
        **{f"inputs_{k}": list(torch.randn(8, 5, 4)) for k in (1, 2)},
    }
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    result = runpy.run_path(str(tmp_path / "example.py"), init_globals=names)["result"]
    assert {task.task for task in result.report.layers[0].tasks} == {"first", "second"}
    assert result.adapter.deltas["0"].shape == (3, 4)


def test_every_workflow_has_its_note():
    written = {}
    for path in (ROOT / "workflows").glob("*.json"):
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        (written[path.stem.partition(" ")[2]],) = (
            node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"
        )
    assert written == {template.title: template.note for template in TEMPLATES}
