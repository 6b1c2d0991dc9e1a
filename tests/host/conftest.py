"""A real ComfyUI: LoRAs first and second change few layers, and middle_1 to middle_3 two."""

import pytest
from checkpoint import write_checkpoint
from comfy_host import MIDDLE, Host, write_few

from demo.server import PACK_NAME, ComfyServer, cache_folder, find_comfyui


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    for folder in ("checkpoints", "loras"):
        (base / "models" / folder).mkdir(parents=True)
    write_checkpoint(base / "models" / "checkpoints" / "sd15.safetensors")
    for seed, name in enumerate(("first", "second"), 1):
        write_few(base / "models" / "loras" / f"{name}.safetensors", seed)
    for seed in (1, 2, 3):
        write_few(base / "models" / "loras" / f"middle_{seed}.safetensors", seed, MIDDLE)
    nodes = ("--whitelist-custom-nodes", PACK_NAME)
    with ComfyServer(
        find_comfyui(cache_folder()), base, base / "server.log", device="cpu", arguments=nodes
    ) as server:
        yield Host(base, server)
