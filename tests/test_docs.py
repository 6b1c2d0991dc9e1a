"""The pages for people: what they point to is there, and what they show works."""

import re
import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
OURS = re.compile(r"https://github\.com/[\w-]+/[\w-]+/blob/main/")  # in a node's help
CODE = re.compile(r"`([\w./-]+)`")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}


def pages() -> dict[Path, str]:
    """Return the pages that git tracks, or would, and their texts."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in sorted(set(listed.splitlines())) if (ROOT / name).exists()]
    assert ROOT / "README.md" in paths
    return {path: path.read_text(encoding="utf-8") for path in paths}


PAGES = pages()


def anchors_of(text: str) -> list[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_no_page_has_two_headings_with_one_anchor():
    for page, text in PAGES.items():
        anchors = anchors_of(text)
        assert len(set(anchors)) == len(anchors), page


def test_every_link_into_the_repository_leads_to_a_file_and_a_heading():
    for page, text in PAGES.items():
        for link in LINK.findall(text):
            target, _, anchor = OURS.sub("/", link).partition("#")
            folder = ROOT if target.startswith("/") else page.parent
            place = (folder / target.lstrip("/")).resolve() if target else page
            if "://" not in target:
                assert place.exists(), f"{page} links to {link}"
                assert not anchor or anchor in anchors_of(PAGES[place]), f"{page} links to {link}"


def test_every_path_that_is_named_exists():
    """A path with a folder in it is one of the repository, a bare `name.py` is somewhere in it."""
    modules = {path.name for path in ROOT.rglob("*.py")}
    for page, text in PAGES.items():
        for named in CODE.findall(text):
            if "/" in named and named.split("/")[0] in FOLDERS:
                assert (ROOT / named).exists(), f"{page} names {named}"
            elif named.endswith(".py") and "/" not in named:
                assert named in modules, f"{page} names {named}"


def test_the_example_of_the_library_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "example.py"))
    result = names["result"]
    assert {task.task for task in result.report.layers[0].tasks} == {"first", "second"}
    assert result.adapter.deltas["0"].shape == names["merged"].deltas["0"].shape == (48, 64)
