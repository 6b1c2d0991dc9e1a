"""A real ComfyUI over HTTP, with a small SD1.5-layout checkpoint. $COMFYUI_PATH points the tests at
another ComfyUI.
"""

import copy
import importlib
import json
import re
import sys
import types
from pathlib import Path

import pytest
from safetensors.torch import load_file

from iteris_core.cli.demo.checkpoint import write_checkpoint, write_lora
from iteris_core.cli.demo.client import ComfyClient
from iteris_core.cli.demo.server import ComfyServer, cache_folder, find_comfyui

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "workflows" / "api" / "merge_two_loras.json"
SMALL = {
    "trajectories": 1,
    "timesteps": 2,
    "sampling_steps": 2,
    "resolution": 64,
    "unconditional_share": 0.5,
    "held_out": 0,
}


class Host:
    """The server, its folders, and workflows to post to it."""

    def __init__(self, base: Path, server: ComfyServer):
        self.base = base
        self.server = server
        self.client = ComfyClient(server.address)
        self.loras = base / "models" / "loras"
        self.output = base / "output"

    def run(self, workflow, on_event=None):
        return self.client.run(workflow, on_event, timeout=300)

    def log(self) -> str:
        return self.server.log.read_text(errors="replace")

    def latent(self, name: str):
        """Return the samples of the newest SaveLatent file of this name."""
        return load_file(max(self.output.glob(f"{name}_*.latent")))["latent_tensor"]

    def merge(
        self,
        first="first.safetensors",
        second="second.safetensors",
        precision="float16",
        **calibration,
    ):
        """Return nodes 1..5: checkpoint, two LoRAs, calibration, merge."""
        template = json.loads(TEMPLATE.read_text())
        nodes = {key: copy.deepcopy(template[key]) for key in "12345"}
        nodes["1"]["inputs"]["ckpt_name"] = "sd15.safetensors"
        nodes["2"]["inputs"].update(lora_name=first, prompts="a photo of a first thing")
        nodes["3"]["inputs"].update(
            lora_name=second, prompts="a photo of a second thing\na second thing in a park"
        )
        nodes["4"]["inputs"].update({**SMALL, **calibration})
        nodes["5"]["inputs"].update(
            precision=precision, target="delta"
        )  # the quicker one; workflows run the default
        return nodes

    def save(self, file_name: str, overwrite=False):
        inputs = {"merged": ["5", 3], "file_name": file_name, "overwrite": overwrite}
        return {"6": {"class_type": "IterISSave", "inputs": inputs}}

    def sample(self, prefix: str, model, clip, first_id: int = 20):
        """Return nodes that sample a latent and save it."""
        text, noise, sampler, save = (str(first_id + i) for i in range(4))
        encode = {"class_type": "CLIPTextEncode", "inputs": {"text": "a first thing", "clip": clip}}
        return {
            text: encode,
            noise: {
                "class_type": "EmptyLatentImage",
                "inputs": {"width": 64, "height": 64, "batch_size": 1},
            },
            sampler: {
                "class_type": "KSampler",
                "inputs": {
                    "model": model,
                    "positive": [text, 0],
                    "negative": [text, 0],
                    "latent_image": [noise, 0],
                    "seed": 7,
                    "steps": 2,
                    "cfg": 1.0,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 1.0,
                },
            },
            save: {
                "class_type": "SaveLatent",
                "inputs": {"samples": [sampler, 0], "filename_prefix": prefix},
            },
        }

    def load_lora(self, name: str, node_id: str = "10"):
        inputs = {
            "model": ["1", 0],
            "clip": ["1", 1],
            "lora_name": name,
            "strength_model": 1.0,
            "strength_clip": 1.0,
        }
        return {node_id: {"class_type": "LoraLoader", "inputs": inputs}}


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    for folder in ("checkpoints", "loras"):
        (base / "models" / folder).mkdir(parents=True)
    write_checkpoint(base / "models" / "checkpoints" / "sd15.safetensors")
    write_lora(base / "models" / "loras" / "first.safetensors", seed=1)
    write_lora(base / "models" / "loras" / "second.safetensors", seed=2)
    with ComfyServer(
        find_comfyui(cache_folder()), base, base / "server.log", device="cpu"
    ) as server:
        yield Host(base, server)


@pytest.fixture(scope="module")
def nodes():
    """Return a function that imports a module of nodes/, as part of a package whose core is the one
    imported above.
    """
    io = types.SimpleNamespace(ComfyNode=object, Custom=lambda name: name)
    fakes = {
        "comfy_api": types.ModuleType("comfy_api"),
        "comfy_api.latest": types.ModuleType("comfy_api.latest"),
    }
    fakes["comfy_api.latest"].io = io
    fakes["comfy_api.latest"].ui = types.SimpleNamespace()
    for name, folder in (("fakepack", ROOT), ("fakepack.nodes", ROOT / "nodes")):
        fakes[name] = types.ModuleType(name)
        fakes[name].__path__ = [str(folder)]
    fakes["fakepack.nodes.host"] = types.ModuleType("fakepack.nodes.host")
    fakes["fakepack.nodes"].host = fakes["fakepack.nodes.host"]
    for path in (ROOT / "nodes").glob("*.py"):  # also what nodes import when they run
        for name in re.findall(
            r"from \.\.(iteris_core[\w.]*) import", path.read_text(encoding="utf-8")
        ):
            importlib.import_module(name)
    core = {
        f"fakepack.{name}": module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "iteris_core"
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in (fakes | core).items():
            patch.setitem(sys.modules, name, module)
        yield lambda name: importlib.import_module(f"fakepack.nodes.{name}")
    for name in [name for name in sys.modules if name.startswith("fakepack")]:
        del sys.modules[name]
