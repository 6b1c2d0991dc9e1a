"""What the package says about itself: its version, and the examples in its docstrings."""

import doctest
import importlib
from pathlib import Path

import pytest

import iteris_core

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for folder in ("iteris_core", "nodes")
    for path in (ROOT / folder).rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


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
