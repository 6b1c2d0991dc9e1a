"""The real frontend in a real browser, on a real ComfyUI with the small checkpoint."""

import contextlib
import json
import os
from pathlib import Path

import browser
import pytest
from checkpoint import write_checkpoint
from comfy_host import SMALL, write_few
from workflow_files import list_transformer

from demo.server import ComfyServer, cache_folder, find_comfyui

CHAIN = Path(__file__).parents[1] / "data" / "chain.json"
BLOCKS = "mid_block|down_blocks.*attn1_to_q"  # two blocks of the diffusion model
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Tests of the page are slow."""
    for item in items:
        if item.path.is_relative_to(HERE) and "server" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    write_checkpoint(base / "models" / "checkpoints" / "checkpoint.safetensors")
    list_transformer(base / "models")
    (base / "models" / "loras").mkdir()
    for seed, name in enumerate(("first", "second", "third"), start=1):
        write_few(base / "models" / "loras" / f"{name}.safetensors", seed, BLOCKS)
    with ComfyServer(
        find_comfyui(cache_folder()), base, base / "server.log", device="cpu"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def chromium():
    executable = browser.find_chromium()
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to one")
    with browser.chromium(executable) as started:
        yield started


@pytest.fixture(scope="session")
def lent(chromium, server):
    """Lend a page with settings of its own, in which nothing was done: one that was left, or a new one."""
    free = []

    @contextlib.contextmanager
    def lend(**settings):
        if free:
            frontend = free.pop()
            frontend.enter(**settings)
        else:
            frontend = browser.Frontend(chromium, server.address, **settings)
        yield frontend
        frontend.leave()
        free.append(frontend)

    return lend


@pytest.fixture(scope="module")
def frontend(lent):
    """A page for all tests of a file, which load workflows of their own."""
    with lent() as opened:
        yield opened


@pytest.fixture
def open_frontend(lent):
    """Open another page, with settings of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(lent(**settings))


@pytest.fixture(params=["canvas", pytest.param("vue", marks=pytest.mark.nightly)])
def in_renderer(request, server):
    """A page in each renderer of the frontend."""
    if request.param == "canvas":
        return request.getfixturevalue("frontend")
    return request.getfixturevalue("open_frontend")(Comfy_VueNodes_Enabled=True)


@pytest.fixture(scope="session")
def small():
    """Load a chain of two LoRAs with its merge, small; no two seeds are the same work to the server."""

    def load_small(frontend, seed):
        chain = json.loads(CHAIN.read_text(encoding="utf-8"))
        chain = {key: chain[key] for key in "123456"}
        frontend.load(chain, f"merge_{seed}")
        frontend.set_widgets(4, **SMALL, seed=seed)

    return load_small


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """Save screenshots to $ITERIS_SCREENSHOTS, or below pytest's folder for temporary files."""
    given = os.environ.get("ITERIS_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return lambda frontend, name: frontend.page.screenshot(path=folder / f"{name}.png")
