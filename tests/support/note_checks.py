"""Learned tokens (textual inversion) in prompts, and what other nodes change about a MODEL, with
ComfyUI's own classes.

    python tests/support/note_checks.py COMFYUI

writes one line of JSON.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import family_checks

# isort: split
import comfy.lora
import comfy_extras.nodes_freelunch
import comfy_extras.nodes_model_advanced
import tiny_hosts
import torch
from iteris_pack.nodes import host as pack_host
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.loras.chosen import unread_in
from iteris_pack.nodes.loras.on_model import is_carried, notes_on_model
from safetensors.torch import save_file
from torch import Tensor

from iteris_core import MergeConfig
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_and_check

VECTORS = 2
CALIBRATION = replace(
    family_checks.SMALL, scene_weight=0.3, negative_prompt="blurry, embedding:NotThere"
)
CONFIG = MergeConfig(output_dtype=torch.float32, samples_per_chunk=2)


class Read:
    """What a host's text encoders read: caption -> its learned vectors."""

    def __init__(self, host: ComfyModel) -> None:
        self.vectors: dict[str, int] = {}
        self._tokenize = host.texts.tokenize
        host.texts.tokenize = self.tokenize

    def tokenize(self, caption: str) -> Sequence[Any]:
        pieces = self._tokenize(caption)
        self.vectors[caption] = sum(
            isinstance(token, Tensor) for piece in pieces for token, _ in piece["l"]
        )
        return pieces


def written(host: ComfyModel, caption: str) -> Tensor:
    with host.text_encoder() as text:
        return host.encoded(caption, text.forward(host.tokenize(caption))).tokens


def changed(host: ComfyModel) -> dict[str, Any]:
    """Return what is noted of a MODEL and a CLIP that went through nodes of ComfyUI."""
    tensors = family_checks.lora_of(host, 1, "kohya")
    lora = family_checks.loaded(host, "dog", tensors, "a dog", strength=0.5, blocks="OUT:0.5")
    other = family_checks.loaded(host, "cat", family_checks.lora_of(host, 2, "kohya"), "a cat")
    model = host.model.clone()
    clip = host.clip.clone()
    loaded = comfy.lora.load_lora(tensors, host.keys.table, log_missing=False)
    for patcher in (model, clip):
        patcher.add_patches(loaded, 0.8)
    patches = pack_host.patches_of(model, clip)
    twice = [is_carried(patches, one) for one in (lora, other)]
    (model,) = comfy_extras.nodes_freelunch.FreeU().patch(model, 1.1, 1.2, 0.9, 0.2)
    model.set_model_attn2_replace(lambda q, k, v, extra: q, "output", 1)
    advanced = comfy_extras.nodes_model_advanced
    (model,) = advanced.ModelSamplingDiscrete().patch(model, "lcm", False)
    (model,) = advanced.RescaleCFG().patch(model, 0.7)
    clip.clip_layer(-2)
    changes = pack_host.base_changes(model, clip)
    plain = pack_host.base_changes(host.model, host.clip)
    return {
        "twice": twice,
        "carried": [
            (note.kind, note.text)
            for note in notes_on_model(patches, changes, [lora, other], [], is_guided=True)
        ],
        "plain": list(notes_on_model({}, plain, [lora], ["x_lcm.safetensors"], is_guided=True)),
    }


def main() -> None:
    torch.set_num_threads(1)
    tiny = tiny_hosts.TINY["SD1.5"]
    clip = tiny_hosts.clip_of(tiny)
    width = tiny_hosts.CLIP["hidden_size"]
    with tempfile.TemporaryDirectory() as folder:
        vectors = torch.randn(VECTORS, width, generator=torch.Generator().manual_seed(5))
        save_file({"emb_params": vectors}, Path(folder) / "sks.safetensors")
        clip.tokenizer.clip_l.embedding_directory = [folder]
        clip.tokenizer.clip_l.embedding_size = width
        host = ComfyModel(tiny_hosts.model_of(tiny), clip)
        read = Read(host)
        prompt = "a photo of embedding:sks dog"
        loras = [
            family_checks.loaded(
                host, name, family_checks.lora_of(host, seed, "diffusers"), of_lora, trigger=trigger
            )
            for name, seed, of_lora, trigger in (
                ("dog", 1, prompt, "a embedding:sks dog"),
                ("cat", 2, "a red embedding:NotThere, cat", ""),
            )
        ]
        notes = [note.text for note in unread_in(host, CALIBRATION)]
        result = merge_and_check(Job.of(host, loras, CALIBRATION, MergeSettings(CONFIG)))
        tokens = clip.tokenize(prompt)
        theirs = clip.encode_from_tokens(tokens)
        found = {
            "read": read.vectors,
            "kinds": [entry.kind for entry in result.report.fidelity],
            "errors": [entry.output_error for entry in result.report.fidelity],
            "notes": notes,
            "unlike the host": (written(host, prompt) - theirs[0]).abs().max().item(),
            "unlike the word": (written(host, "a photo of sks dog") - theirs[0]).abs().max().item(),
            "unknown": host.unknown_embeddings(
                f"{prompt}, embedding:gone, (embedding:lost.v2:1.2)"
            ),
            "positions": list(host.token_positions(prompt)),
            **changed(host),
        }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
