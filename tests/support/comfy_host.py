"""A running ComfyUI with a small SD1.5-layout checkpoint, and workflows to post to it."""

import json
import re
from pathlib import Path

from checkpoint import write_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from waiting import HANGS

from demo.client import ComfyClient
from demo.server import ComfyServer

CHAIN = Path(__file__).parents[1] / "data" / "chain.json"
SMALL = {
    "sample_runs": 1,
    "sampling_steps": 2,
    "resolution": 64,
    "reproduce": "what the LoRA adds",  # the quicker one; workflows run the default
}


# Layers of both networks and of several blocks, and few.
FEW = "mid_block|down_blocks.*attn1_to_q|encoder_layers_(0|11)_self_attn"
MIDDLE = "mid_block.*(attn1_to_q|attn2_to_k)"
MIDDLE_LAYERS = 2


def write_few(path: Path, seed: int, layers: str = FEW, rank: int = 8) -> None:
    """Write a LoRA of those layers of the small checkpoint whose keys match a pattern."""
    write_lora(path, seed=seed, rank=rank)
    with safe_open(path, "pt") as file:
        kept = [key for key in file.keys() if re.search(layers, key)]  # noqa: SIM118 (no dict)
        tensors = {key: file.get_tensor(key).clone() for key in kept}
        metadata = file.metadata()
    save_file(tensors, path, metadata)


def node(kind: str, **inputs):
    return {"class_type": kind, "inputs": inputs}


class Host:
    """The server, its folders, and workflows to post to it."""

    def __init__(self, base: Path, server: ComfyServer):
        self.base = base
        self.server = server
        self.client = ComfyClient(server.address)
        self.loras = base / "models" / "loras"
        self.output = base / "output"

    def run(self, workflow, on_event=None):
        return self.client.run(workflow, on_event, timeout=HANGS)

    def cached_nodes(self, workflow) -> set[str]:
        """Run a workflow, and return the nodes that were taken from the cache."""
        told = []
        self.run(workflow, lambda event, data: told.append((event, data.get("nodes"))))
        return {node for event, nodes in told if event == "execution_cached" for node in nodes}

    def log(self) -> str:
        return self.server.log.read_text(errors="replace")

    def latent(self, name: str):
        return load_file(max(self.output.glob(f"{name}_*.latent")))["latent_tensor"]

    def merge(self, first="first.safetensors", second="second.safetensors", **settings):
        """Return nodes 1..5: checkpoint, two LoRAs, Merge settings, merge."""
        chain = json.loads(CHAIN.read_text())
        nodes = {key: chain[key] for key in "12345"}
        nodes["1"]["inputs"]["ckpt_name"] = "sd15.safetensors"
        nodes["2"]["inputs"].update(lora_name=first, prompts="a photo of a first thing")
        nodes["3"]["inputs"].update(
            lora_name=second, prompts="a photo of a second thing\na second thing in a park"
        )
        nodes["4"]["inputs"].update({**SMALL, **settings})
        return nodes

    def save(self, file_name: str, overwrite=False):
        return {"6": node("IterISSave", merged=["5", 3], file_name=file_name, overwrite=overwrite)}

    def sample(self, prefix: str, model, clip, first_id: int = 20):
        """Return nodes that sample a latent and save it."""
        text, noise, sampler, save = (str(first_id + i) for i in range(4))
        how = {"seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
        links = {"positive": [text, 0], "negative": [text, 0], "latent_image": [noise, 0]}
        return {
            text: node("CLIPTextEncode", text="a first thing", clip=clip),
            noise: node("EmptyLatentImage", width=64, height=64, batch_size=1),
            sampler: node("KSampler", model=model, **links, **how, denoise=1.0),
            save: node("SaveLatent", samples=[sampler, 0], filename_prefix=prefix),
        }

    def load_lora(self, name: str, node_id: str = "10"):
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        model = {"model": ["1", 0], "clip": ["1", 1]}
        return {node_id: node("LoraLoader", **model, lora_name=name, **strengths)}
