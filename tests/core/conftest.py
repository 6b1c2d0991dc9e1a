"""Helpers for the core's tests, handed out as a fixture: with `--import-mode=importlib`, tests cannot import each other."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("core", deadline=None, max_examples=8, derandomize=True)
settings.load_profile("core")


def load(name):
    """Return a module of this folder under a name of its own."""
    full = f"iteris_test_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def toy():
    """The module `toy.py`: tiny networks, and the published algorithm, dense and naive."""
    return load("toy")


@pytest.fixture
def host():
    """A Stable Diffusion of two tiny networks, see `fake_host.py`."""
    return load("fake_host").FakeHost()
