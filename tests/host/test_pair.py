"""Wan 2.2's pair of models with a pair of files for each LoRA, in a real ComfyUI."""

import pytest
import torch
from comfy_host import SMALL, node
from safetensors.torch import load_file, save_file

LAYERS = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("self_attn.q", "cross_attn.v", "ffn.2")]


def write_lora(path, seed, prefix="diffusion_model."):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        d_in = 512 if layer.endswith("ffn.2") else 256
        factors = {"lora_B": (256, 2), "lora_A": (2, d_in)}
        for end, shape in factors.items():
            drawn = torch.randn(shape, generator=generator) * (0.5 if end == "lora_B" else 0.05)
            tensors[f"{prefix}{layer}.{end}.weight"] = drawn
    if path is not None:
        save_file(tensors, path)
    return tensors


def models(high="wan2.2_t2v_high_noise.safetensors", low="wan2.2_t2v_low_noise.safetensors"):
    return {
        "1": node("TinyWan", unet_name=high, seed=1),
        "2": node("TinyWan", unet_name=low, seed=2),
    }


def merge(rows, **models_of):
    settings = {**SMALL, "sample_runs": 2, "frames": 5, "cfg": 1.0, "protect_base": 0.0}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "loras": rows, "settings": ["4", 0]}
    merged = node("IterISMergeVideo", **inputs, model_low_noise=["2", 0])
    return {**models(**models_of), "4": node("IterISSettings", **settings), "5": merged}


def video(prefix, high, low):
    """Return nodes that draw a video of two latent frames with both models, as users do."""
    sampler = {"noise_seed": 3, "steps": 4, "cfg": 1.0, "sampler_name": "euler"}
    sampler |= {"scheduler": "simple", "positive": ["20", 0], "negative": ["20", 0]}

    def steps(model, latents, noise, first):
        of_noise = {"add_noise": noise, "return_with_leftover_noise": noise}
        both = {"start_at_step": first, "end_at_step": first + 2, **of_noise}
        return node("KSamplerAdvanced", **sampler, **both, model=model, latent_image=[latents, 0])

    return {
        "20": node("CLIPTextEncode", text="a sks dog", clip=["1", 1]),
        "21": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        "22": steps(high, "21", "enable", 0),
        "23": steps(low, "22", "disable", 2),
        "24": node("SaveLatent", samples=["23", 0], filename_prefix=prefix),
    }


@pytest.fixture(scope="module")
def files(host):
    """A LoRA of two files, and one of a file for both models."""
    write_lora(host.loras / "dog_high_noise.safetensors", 1)
    write_lora(host.loras / "dog_low_noise.safetensors", 2)
    parts = [
        write_lora(None, 3, "diffusion_model.transformer_1."),
        write_lora(None, 4, "diffusion_model.transformer_2."),
    ]
    save_file({**parts[0], **parts[1]}, host.loras / "ink.safetensors")
    return host


ROWS = "<lora:dog_high_noise> | a sks dog\n<lora:ink:0.5> style | a castle, ink"


def test_a_pair_is_merged_saved_and_loaded_by_stock_nodes_as_it_was_drawn(files):
    host = files
    nodes = {**merge(ROWS), **host.save("pair"), **video("merged", ["5", 0], ["5", 5])}
    outputs = host.run(nodes)["outputs"]
    saved = [host.output / "loras" / f"pair_{end}_noise.safetensors" for end in ("high", "low")]
    high, low = map(load_file, saved)
    assert set(high) == set(low) and len(high) == 2 * len(LAYERS)
    assert any(not torch.equal(high[key], low[key]) for key in high)
    report = outputs["5"]["iteris_report"][0]
    names = [lora["file"] for lora in report["settings"]["loras"]]
    assert names == ["dog_high_noise.safetensors", "dog_low_noise.safetensors", "ink.safetensors"]
    assert {entry["task"] for entry in report["layers"][0]["tasks"]} == {"dog", "ink"}
    assert len(report["layers"]) == 2 * len(LAYERS)
    said = outputs["5"]["text"][0].splitlines()
    assert said[0].startswith("dog in the style of ink: not judged")
    assert said[1].startswith("dog: uncertain, kept ") and said[2].startswith("ink: uncertain, ")
    loaders = {}
    for number, base, path in zip(("10", "11"), ("1", "2"), saved, strict=True):
        inputs = {"model": [base, 0], "lora_name": path.name, "strength_model": 1.0}
        loaders[number] = node("LoraLoaderModelOnly", **inputs)
    host.run({**models(), **loaders, **video("loaded", ["10", 0], ["11", 0])})
    host.run({**models(), **video("plain", ["1", 0], ["2", 0])})
    merged, loaded, plain = map(host.latent, ("merged", "loaded", "plain"))
    assert torch.equal(merged, loaded)
    assert (merged - plain).norm() > 0.01 * plain.norm()


def test_image_to_video_is_measured_with_the_picture_that_is_connected(files):
    """By ComfyUI's own WanImageToVideo; without one, as by the plain node, on videos that begin grey."""
    host = files
    write_lora(host.loras / "walk.safetensors", 5)
    workflow = merge("<lora:walk> | a sks dog", high="wan2.2_i2v_tiny")
    del workflow["5"]["inputs"]["model_low_noise"], workflow["2"]
    workflow["5"]["class_type"] = "IterISMerge"
    square = {"width": 64, "height": 64, "batch_size": 1}
    texts = {"positive": ["30", 0], "negative": ["30", 0], "vae": ["31", 0]}
    workflow |= {
        "7": node("IterISMergeVideo", **workflow["5"]["inputs"], start=["33", 0]),
        "30": node("CLIPTextEncode", text="", clip=["1", 1]),
        "31": node("TinyVAE"),
        "32": node("EmptyImage", **square, color=0xFF8000),
        "33": node("WanImageToVideo", **texts, **square, length=5, start_image=["32", 0]),
    }
    for merged, name in (("5", "grey"), ("7", "orange")):
        inputs = {"merged": [merged, 3], "file_name": name, "overwrite": False}
        workflow[f"{merged}0"] = node("IterISSave", **inputs)
    host.run(workflow)
    grey, orange = (
        load_file(host.output / "loras" / f"{name}.safetensors") for name in ("grey", "orange")
    )
    assert set(grey) == set(orange) and len(grey) == 2 * len(LAYERS)
    assert any(not torch.equal(grey[key], orange[key]) for key in grey)
