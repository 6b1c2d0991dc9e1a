"""Keep a workflow and a merged LoRA of this version, for the tests of later versions.

    PYTHONPATH=.:tests/support python tools/make_release.py

makes `tests/data/releases/VERSION`: two LoRAs, a merge of one as a row and one of the chain with small
settings as ComfyUI's frontend saves it and as it posts it, and the LoRA that this merge saves, with its
recipe. It needs a Chromium. Once a version is released, its folder stays as it is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import browser
from checkpoint import write_checkpoint
from comfy_host import write_few

from demo.client import ComfyClient
from demo.server import ComfyServer, cache_folder, find_comfyui
from iteris_core import __version__

ROOT = Path(__file__).parents[1]
RELEASES = ROOT / "tests" / "data" / "releases"
# node of the tests' chain -> what is set on it
WIDGETS = {
    1: {"ckpt_name": "sd15.safetensors"},
    2: {"lora_name": "released_first.safetensors", "strength_model": 0.9, "prompts": "a demo1 hat"},
    4: {
        "sample_runs": 1,
        "sampling_steps": 2,
        "resolution": 64,
        "seed": 7,
        "precision": "float32",
        "smoothing": 0.001,
    },
    5: {
        "loras": "<lora:released_second:1> style priority=1.5 | a demo2 hat",
        "preset": "Fast",
        "size": "rank",
        "size_value": 1,
    },
    6: {"file_name": "loras/released_merged"},
    7: {"text": "a demo1 hat"},
    9: {"width": 64, "height": 64},
    10: {"steps": 1},
}


def main() -> None:
    kept = RELEASES / __version__
    kept.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("first", "second"), 1):
        write_few(kept / f"released_{name}.safetensors", seed, "mid_block.*attn2", rank=1)
    chain = json.loads((ROOT / "tests" / "data" / "chain.json").read_text("utf-8"))
    chain["5"]["inputs"]["more_loras"] = ["2", 0]
    del chain["3"]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        write_checkpoint(base / "models" / "checkpoints" / "sd15.safetensors")
        (base / "models" / "loras").mkdir()
        for path in kept.glob("released_*.safetensors"):
            (base / "models" / "loras" / path.name).write_bytes(path.read_bytes())
        comfyui = find_comfyui(cache_folder())
        with (
            ComfyServer(comfyui, base, base / "server.log", device="cpu") as server,
            browser.chromium(browser.find_chromium()) as chromium,
        ):
            frontend = browser.Frontend(chromium, server.address)
            frontend.load(chain, "released")
            for node, values in WIDGETS.items():
                frontend.set_widgets(node, **values)
            write(kept / "workflow.json", frontend.workflow())
            write(kept / "workflow_api.json", frontend.prompt())
            ComfyClient(server.address).run(frontend.prompt())
        merged = base / "output" / "loras" / "released_merged.safetensors"
        (kept / merged.name).write_bytes(merged.read_bytes())


def write(path: Path, content: browser.Json) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
