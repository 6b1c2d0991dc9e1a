"""Adapters of every kind in the host: merged alone, without a preserve task, they must do what the
stock loader makes them do.
"""

import torch
from safetensors.torch import load_file, save_file

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
UNET = f"{BLOCK}_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
RESNET = "lora_unet_mid_block_resnets_0"


def random(*shape, scale=0.05):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def lokr(base):
    blocks = {"lokr_w1": random(4, 4, scale=0.5), "lokr_w2": random(80, 80)}
    return {f"{base}.{name}": tensor for name, tensor in blocks.items()} | {
        f"{base}.alpha": torch.tensor(1.0)
    }


def every_kind():
    """Return a file in which each layer has another kind of adapter."""
    dora, loha, whole = (f"{BLOCK}_attn1_to_{name}" for name in ("k", "v", "out_0"))
    locon, tucker = (f"{RESNET}_conv{number}" for number in "12")
    return lokr(UNET) | {
        f"{dora}.lora_up.weight": random(320, 4),
        f"{dora}.lora_down.weight": random(4, 320, scale=0.3),
        f"{dora}.alpha": torch.tensor(4.0),
        f"{dora}.dora_scale": 1 + random(320, 1, scale=0.3).abs(),
        f"{loha}.hada_w1_a": random(320, 3, scale=0.3),
        f"{loha}.hada_w1_b": random(3, 320, scale=0.3),
        f"{loha}.hada_w2_a": random(320, 3, scale=0.3),
        f"{loha}.hada_w2_b": random(3, 320, scale=0.3),
        f"{whole}.diff": random(320, 320, scale=0.02),
        f"{TEXT}.diff_b": random(768, scale=0.02),
        f"{locon}.lora_up.weight": random(320, 4, 1, 1),
        f"{locon}.lora_down.weight": random(4, 320, 3, 3),
        f"{tucker}.lora_up.weight": random(320, 4, 1, 1, scale=0.3),
        f"{tucker}.lora_mid.weight": random(4, 4, 3, 3, scale=0.3),
        f"{tucker}.lora_down.weight": random(4, 320, 1, 1, scale=0.3),
    }


def merge_alone(host, name: str, strength: float = 0.8):
    nodes = host.merge(first=name, precision="float32", protect_base=0.0, sample_runs=2)
    nodes["2"]["inputs"].update(strength_model=strength, strength_clip=strength)
    nodes["5"]["inputs"]["more_loras"] = ["2", 0]
    del nodes["3"]
    return nodes


def test_alone_they_do_what_the_stock_loader_makes_them_do(host):
    save_file(every_kind(), host.loras / "kinds.safetensors")
    nodes = merge_alone(host, "kinds.safetensors")
    loader = host.load_lora("kinds.safetensors")
    loader["10"]["inputs"].update(strength_model=0.8, strength_clip=0.8)
    host.run({**nodes, **host.save("loras/kinds"), **host.sample("merged", ["5", 0], ["5", 1])})
    host.run({"1": nodes["1"], **loader, **host.sample("stock", ["10", 0], ["10", 1])})
    host.run({"1": nodes["1"], **host.sample("base", ["1", 0], ["1", 1])})
    merged, stock, base = map(host.latent, ("merged", "stock", "base"))
    assert (stock - base).norm() > 1e-3 * base.norm()
    assert (merged - stock).norm() < 0.01 * (stock - base).norm()


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
    """Only the inputs and outputs of modules are used, so how weights are stored does not
    matter.
    """
    folder = host.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    checkpoint = load_file(host.base / "models" / "checkpoints" / "sd15.safetensors")
    prefix = "model.diffusion_model."
    unet = {key: tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}
    save_file(unet, folder / "unet.safetensors")
    nodes = host.merge(latents_per_run=1, negative_share=0.0)
    inputs = {"unet_name": "unet.safetensors", "weight_dtype": "fp8_e4m3fn"}
    nodes["9"] = {"class_type": "UNETLoader", "inputs": inputs}
    nodes["4"]["inputs"]["reproduce"] = "whole output"
    nodes["5"]["inputs"].update(model=["9", 0], size="rank", size_value=4.0)
    report = host.run(
        {**nodes, **host.save("loras/fp8"), **host.sample("fp8", ["5", 0], ["5", 1])}
    )["outputs"]["5"]["iteris_report"][0]
    assert {layer["rank"] for layer in report["layers"]} == {4}
    assert all(layer["is_asked"] and 0 <= layer["cut"] < 1 for layer in report["layers"])
    assert torch.isfinite(host.latent("fp8")).all()
