"""Kinds that the host applies, and bases that it quantises; all kinds: `check_spellings.py`."""

import torch
from safetensors.torch import load_file, save_file

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
UNET = f"{BLOCK}_attn1_to_q"


def random(*shape, scale=0.05):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def lokr(base):
    blocks = {"lokr_w1": random(4, 4, scale=0.5), "lokr_w2": random(80, 80)}
    return {f"{base}.{name}": tensor for name, tensor in blocks.items()} | {
        f"{base}.alpha": torch.tensor(1.0)
    }


def merge_alone(host, name: str):
    nodes = host.merge(first=name, precision="float32", protect_base=0.0, sample_runs=2)
    nodes["2"]["inputs"].update(strength_model=0.8, strength_clip=0.8)
    nodes["5"]["inputs"]["more_loras"] = ["2", 0]
    del nodes["3"]
    return nodes


def test_an_untrained_layer_is_a_delta_of_zero_and_large_layers_can_be_full_differences(host):
    """Saved so, they are the same in the stock loader, in less room than their factors."""
    other = f"{BLOCK}_attn1_to_k"
    untrained = {f"{other}.lokr_w1": random(4, 4), f"{other}.lokr_w2": torch.zeros(80, 80)}
    save_file(lokr(UNET) | untrained, host.loras / "large.safetensors")
    nodes = merge_alone(host, "large.safetensors")
    low_rank, whole = host.save("loras/low_rank"), host.save("loras/whole")
    whole["6"]["inputs"]["large_layers"] = "full difference (.diff)"
    both = {**nodes, **low_rank, "7": whole["6"], **host.sample("outputs", ["5", 0], ["5", 1])}
    outputs = host.run(both)["outputs"]
    for node in "67":
        assert outputs[node]["text"][1].startswith("read back: 2 of 2 modules, largest difference")
    files = {name: host.output / "loras" / f"{name}.safetensors" for name in ("whole", "low_rank")}
    saved = load_file(files["low_rank"])
    assert not (saved[f"{other}.lora_up.weight"] @ saved[f"{other}.lora_down.weight"]).any()
    assert f"{UNET}.diff" in load_file(files["whole"])
    assert files["whole"].stat().st_size < 0.6 * files["low_rank"].stat().st_size
    host.run({"1": nodes["1"], **host.sample("base", ["1", 0], ["1", 1])})
    model, base = host.latent("outputs"), host.latent("base")
    for name in files:
        loader = host.load_lora(f"{name}.safetensors")
        host.run({"1": nodes["1"], **loader, **host.sample(name, ["10", 0], ["10", 1])})
        assert (host.latent(name) - model).abs().max() <= 1e-4 * (model - base).abs().max()


def test_a_base_in_fp8_is_merged_to_a_lower_rank_through_its_own_forward(host):
    """How weights are stored does not matter: only modules' inputs and outputs are used."""
    folder = host.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    checkpoint = load_file(host.base / "models" / "checkpoints" / "sd15.safetensors")
    prefix = "model.diffusion_model."
    unet = {key: tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}
    save_file(unet, folder / "unet.safetensors")
    nodes = host.merge(negative_share=0.0)
    inputs = {"unet_name": "unet.safetensors", "weight_dtype": "fp8_e4m3fn"}
    nodes["9"] = {"class_type": "UNETLoader", "inputs": inputs}
    nodes["4"]["inputs"]["reproduce"] = "whole output"
    nodes["5"]["inputs"].update(model=["9", 0], size="rank", size_value=4.0)
    report = host.run(
        {**nodes, **host.save("loras/fp8"), **host.sample("fp8", ["5", 0], ["5", 1])}
    )["outputs"]["5"]["iteris"][0]["report"]
    assert {layer["rank"] for layer in report["layers"]} == {4}
    assert all(0 <= layer["cut"] < 1 for layer in report["layers"])
    assert torch.isfinite(host.latent("fp8")).all()
