"""Random base model and LoRAs of the benchmark of pictures, and the workflows that use them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from demo.client import Json
from demo.parts import (
    CLIP_L,
    CLIP_L_LAYERS,
    Shapes,
    clip_l,
    clip_layers,
    initial,
    kohya_modules,
    prefixed,
    save,
    write_kohya_lora,
)

UNET, TEXT_ENCODER = "unet.safetensors", "text_encoder.safetensors"
MODEL, CLIP = ["1", 0], ["2", 0]
MERGE, SAMPLER = "5", "7"
STEPS = 20
GUIDANCE = 7.0
RANK = 16
SCALE = 0.3  # Frobenius norm of a layer's delta over its weight's


def sd15_unet() -> Shapes:
    """Yield name in diffusers and shape of every weight of Stable Diffusion 1.5's UNet."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=CLIP_L, attention_head_dim=8)
    for name, weight in unet.state_dict().items():
        yield name, tuple(weight.shape)


def sd15_lora() -> Shapes:
    """Yield name and shape of what kohya's trainer changes: attention blocks, text encoder."""
    attention = ((name, shape) for name, shape in sd15_unet() if ".attentions." in name)
    yield from kohya_modules("lora_unet_", attention)
    yield from kohya_modules("lora_te_text_model_", clip_layers(CLIP_L, CLIP_L_LAYERS))


def write_models(models: Path, loras: int) -> None:
    """Write SD1.5's UNet, its text encoder, and LoRAs, where ComfyUI looks for them."""
    for folder in ("diffusion_models", "text_encoders", "loras"):
        (models / folder).mkdir(parents=True)
    _write_random(models / "diffusion_models" / UNET, sd15_unet())
    text = prefixed({"text_model.": clip_l()})
    _write_random(models / "text_encoders" / TEXT_ENCODER, text)
    base = {"ss_base_model_version": "sd_v1"}
    for number in range(1, loras + 1):
        path = models / "loras" / lora_name(number)
        write_kohya_lora(path, sd15_lora(), base, seed=number, rank=RANK, scale=SCALE)


def _write_random(path: Path, shapes: Shapes) -> None:
    """Write random weights in fp16."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: initial(name, shape, generator).half() for name, shape in shapes}
    save(path, tensors, {"format": "pt"})


def lora_name(number: int) -> str:
    return f"lora{number}.safetensors"


def loaders() -> Json:
    """Return the nodes 1 and 2, which load the base model."""
    return {
        "1": _node("UNETLoader", unet_name=UNET, weight_dtype="default"),
        "2": _node("CLIPLoader", clip_name=TEXT_ENCODER, type="stable_diffusion"),
    }


def picture(resolution: int, seed: int, steps: int) -> Json:
    """Return a workflow that samples one picture's latents with guidance."""
    encode = partial(_node, "CLIPTextEncode", clip=CLIP)
    size = {"width": resolution, "height": resolution, "batch_size": 1}
    sampler = {"sampler_name": "euler", "scheduler": "normal", "cfg": GUIDANCE, "denoise": 1.0}
    links = {"model": MODEL, "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["6", 0]}
    return {
        **loaders(),
        "3": encode(text="a demo1 teapot, a demo2 chair"),
        "4": encode(text=""),
        "6": _node("EmptyLatentImage", **size),
        SAMPLER: _node("KSampler", seed=seed, steps=steps, **sampler, **links),
        "8": _node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="picture"),
    }


def merge(loras: int, resolution: int, seed: int) -> Json:
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
    return {**loaders(), **nodes, "6": saved}


def _node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}
