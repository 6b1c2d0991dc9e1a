"""A real ComfyUI over HTTP, with a small SD1.5-layout checkpoint and LoRAs of few of its layers.
$COMFYUI_PATH points the tests at another ComfyUI.
"""

from pathlib import Path

import pytest
from checkpoint import write_checkpoint
from comfy_host import Host, write_few

from demo.server import ComfyServer, cache_folder, find_comfyui

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    for folder in ("checkpoints", "loras"):
        (base / "models" / folder).mkdir(parents=True)
    write_checkpoint(base / "models" / "checkpoints" / "sd15.safetensors")
    for seed, name in enumerate(("first", "second"), 1):
        write_few(base / "models" / "loras" / f"{name}.safetensors", seed)
    with ComfyServer(
        find_comfyui(cache_folder()), base, base / "server.log", device="cpu"
    ) as server:
        yield Host(base, server)
