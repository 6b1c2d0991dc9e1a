"""Helpers for the core's tests, handed out as a fixture: with `--import-mode=importlib`, tests cannot import each other."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("core", deadline=None, max_examples=8, derandomize=True)
settings.load_profile("core")


@pytest.fixture(scope="session")
def toy():
    """The module `toy.py`: tiny networks, and the published algorithm, dense and naive."""
    name = "iteris_test_toy"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("toy.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
