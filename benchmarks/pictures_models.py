"""Random base models of the real sizes and LoRAs of the benchmark of pictures, and the workflows
that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from demo.client import Json
from demo.parts import (
    CLIP_L,
    CLIP_L_LAYERS,
    Shapes,
    clip,
    clip_layers,
    initial,
    kohya_modules,
    layer,
    prefixed,
    save,
    write_kohya_lora,
)

UNET = "unet.safetensors"
MODEL, CLIP = ["1", 0], ["2", 0]
MERGE, SAMPLER = "5", "7"
STEPS = 20
GUIDANCE = 7.0
RANK = 16
SCALE = 0.3  # Frobenius norm of a layer's delta over its weight's


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP of a model.

    Args:
        kohya: What kohya's names of its modules begin with.
        width, layers: Its size.
        projects: Whether it has a projection of its pooled output.
    """

    kohya: str
    width: int
    layers: int
    projects: bool = False

    @property
    def file(self) -> str:
        return f"{self.kohya}.safetensors"

    def shapes(self) -> Shapes:
        """Yield its weights, by their names in transformers."""
        yield from prefixed({"text_model.": clip(self.width, self.layers)})
        if self.projects:
            yield from layer("text_projection", self.width, self.width, bias=False)


@dataclass(frozen=True)
class Model:
    """A model of the real size.

    Args:
        unet: What diffusers' UNet gets.
        version: What kohya's trainer writes of it into a LoRA.
    """

    unet: Mapping[str, Any]
    texts: tuple[TextEncoder, ...]
    version: str

    def unet_shapes(self) -> Shapes:
        """Yield name in diffusers and shape of every weight of the UNet."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel(**self.unet)
        for name, weight in unet.state_dict().items():
            yield name, tuple(weight.shape)

    def lora(self) -> Shapes:
        """Yield name and shape of what kohya's trainer changes: attention blocks, texts."""
        attention = ((name, shape) for name, shape in self.unet_shapes() if ".attentions." in name)
        yield from kohya_modules("lora_unet_", attention)
        for text in self.texts:
            layers = clip_layers(text.width, text.layers)
            yield from kohya_modules(f"{text.kohya}_text_model_", layers)

    def write(self, models: Path, loras: int) -> None:
        """Write the model and LoRAs where ComfyUI looks for them."""
        for folder in ("diffusion_models", "text_encoders", "loras"):
            (models / folder).mkdir(parents=True)
        _write_random(models / "diffusion_models" / UNET, self.unet_shapes())
        for text in self.texts:
            _write_random(models / "text_encoders" / text.file, text.shapes())
        base = {"ss_base_model_version": self.version}
        for number in range(1, loras + 1):
            path = models / "loras" / lora_name(number)
            write_kohya_lora(path, self.lora(), base, seed=number, rank=RANK, scale=SCALE)

    def loaders(self) -> Json:
        """Return the nodes 1 and 2, which load it."""
        files = [text.file for text in self.texts]
        text = (
            _node("CLIPLoader", clip_name=files[0], type="stable_diffusion")
            if len(files) == 1
            else _node("DualCLIPLoader", clip_name1=files[0], clip_name2=files[1], type="sdxl")
        )
        return {"1": _node("UNETLoader", unet_name=UNET, weight_dtype="default"), "2": text}


SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MODELS = {
    "sd15": Model(
        {"cross_attention_dim": CLIP_L, "attention_head_dim": 8},
        (TextEncoder("lora_te", CLIP_L, CLIP_L_LAYERS),),
        "sd_v1",
    ),
    "sdxl": Model(
        SDXL_UNET,
        (
            TextEncoder("lora_te1", CLIP_L, CLIP_L_LAYERS),
            TextEncoder("lora_te2", 1280, 32, projects=True),
        ),
        "sdxl_base_v1-0",
    ),
}


def _write_random(path: Path, shapes: Shapes) -> None:
    """Write random weights in fp16."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: initial(name, shape, generator).half() for name, shape in shapes}
    save(path, tensors, {"format": "pt"})


def lora_name(number: int) -> str:
    return f"lora{number}.safetensors"


def picture(model: Model, resolution: int, seed: int, steps: int) -> Json:
    """Return a workflow that samples one picture's latents with guidance."""
    encode = partial(_node, "CLIPTextEncode", clip=CLIP)
    size = {"width": resolution, "height": resolution, "batch_size": 1}
    sampler = {"sampler_name": "euler", "scheduler": "normal", "cfg": GUIDANCE, "denoise": 1.0}
    links = {"model": MODEL, "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["6", 0]}
    return {
        **model.loaders(),
        "3": encode(text="a demo1 teapot, a demo2 chair"),
        "4": encode(text=""),
        "6": _node("EmptyLatentImage", **size),
        SAMPLER: _node("KSampler", seed=seed, steps=steps, **sampler, **links),
        "8": _node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="picture"),
    }


def merge(model: Model, loras: int, resolution: int, seed: int) -> Json:
    """Return a workflow that merges LoRAs with the nodes' defaults, and saves the result.

    Args:
        loras: Their number.
        resolution: Side in pixels of the pictures that are measured.
        seed: Seed of the merge, and number of the saved file.
    """
    triggers = [f"demo{number}" for number in range(1, loras + 1)]
    rows = "\n".join(
        f"<lora:{lora_name(number)}> | a {trigger} teapot | a {trigger} on a table"
        for number, trigger in enumerate(triggers, 1)
    )
    nodes = {
        "4": _node("IterISSettings", resolution=resolution, seed=seed),
        MERGE: _node("IterISMerge", model=MODEL, clip=CLIP, loras=rows, settings=["4", 0]),
    }
    saved = _node("IterISSave", merged=[MERGE, 3], file_name=f"loras/merged{seed}", overwrite=False)
    return {**model.loaders(), **nodes, "6": saved}


def _node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}
