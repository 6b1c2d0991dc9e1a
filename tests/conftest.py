"""What all tests share: one torch thread, one seed, and models that many of them merge."""

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests are of the CPU, where none is named
torch.set_num_threads(1)  # small matrices on many threads wait more than they work
settings.register_profile("iteris", deadline=None, max_examples=8, derandomize=True)
settings.load_profile("iteris")


SERVERS = ("host", "web")  # folders, each of whose tests share a ComfyUI
OTHERS = ("test_chain.py", "test_panels.py")  # half of tests/web, which shares another one
SLOW = ("host", "comfy")  # tests/web has some that are quick


def pytest_ignore_collect(collection_path, config):
    """Do not import a file all of whose tests are left out: diffusers takes seconds."""
    left_out = [] if "nightly" in config.option.markexpr else ["nightly"]
    left_out += ["slow"] * ("not slow" in config.option.markexpr)
    if "slow" in left_out and collection_path.parent.name in SLOW:
        return True
    if left_out and collection_path.match("test_*.py"):
        text = collection_path.read_text(encoding="utf-8")
        if any(f"\npytestmark = pytest.mark.{mark}\n" in text for mark in left_out):
            return True
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let one process run the tests of a file, or of a server; `loadgroup` does nothing in pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            *_, folder, name = file.split("/")
            return f"{folder} {name in OTHERS}" if folder in SERVERS else file

    return Scheduler(config, log)


def pytest_itemcollected(item):
    if item.path.parent.name in SLOW:
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)  # tests/web has marked its tests by then
def pytest_collection_modifyitems(config, items):
    """Leave out `nightly`, unless `-m` speaks of it, and begin with what takes longest."""
    if "nightly" not in config.option.markexpr:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    items.sort(
        key=lambda item: (
            item.get_closest_marker("slow") is None,
            item.path.parent.name not in SERVERS,
        )
    )


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    """A saved tiny T5, and the adapters `one` (q, v) and `two` (q, k, v, o, wi, wo) beside it."""
    import language_families

    return language_families.make("T5", tmp_path_factory.mktemp("t5")).folder
