"""Adapters of every kind in the host: merged alone, without a preserve task, each must do what the
stock loader makes it do.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.client import WorkflowFailed

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
CONV = "lora_unet_mid_block_resnets_0_conv1"


def random(*shape, scale=0.05):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def lokr():
    return {
        f"{UNET}.lokr_w1": random(4, 4, scale=0.5),
        f"{UNET}.lokr_w2": random(80, 80),
        f"{UNET}.alpha": torch.tensor(1.0),
    }


def dora():
    factors = {
        f"{UNET}.lora_up.weight": random(320, 4),
        f"{UNET}.lora_down.weight": random(4, 320, scale=0.3),
    }
    return factors | {
        f"{UNET}.alpha": torch.tensor(4.0),
        f"{UNET}.dora_scale": 1 + random(320, 1, scale=0.3).abs(),
    }


def loha():
    return {
        f"{UNET}.hada_{w}_{ab}": random(*((320, 3) if ab == "a" else (3, 320)), scale=0.3)
        for w in ("w1", "w2")
        for ab in "ab"
    }


def locon():
    return {
        f"{CONV}.lora_up.weight": random(320, 4, 1, 1),
        f"{CONV}.lora_down.weight": random(4, 320, 3, 3),
    }


def tucker():
    return {
        f"{CONV}.lora_up.weight": random(320, 4, 1, 1, scale=0.3),
        f"{CONV}.lora_mid.weight": random(4, 4, 3, 3, scale=0.3),
        f"{CONV}.lora_down.weight": random(4, 320, 1, 1, scale=0.3),
    }


def difference():
    return {f"{UNET}.diff": random(320, 320, scale=0.02), f"{TEXT}.diff_b": random(768, scale=0.02)}


KINDS = {kind.__name__: kind for kind in (lokr, dora, loha, locon, tucker, difference)}


def merge_alone(host, name: str, strength: float = 0.8):
    nodes = host.merge(first=name, precision="float32", protect_base=0.0, sample_runs=2)
    nodes["2"]["inputs"].update(strength_model=strength, strength_clip=strength)
    nodes["5"]["inputs"]["more_loras"] = ["2", 0]
    del nodes["3"]
    return nodes


@pytest.mark.parametrize("kind", KINDS)
def test_alone_it_does_what_the_stock_loader_makes_it_do(host, kind):
    save_file(KINDS[kind](), host.loras / f"{kind}.safetensors")
    nodes = merge_alone(host, f"{kind}.safetensors")
    loader = host.load_lora(f"{kind}.safetensors")
    loader["10"]["inputs"].update(strength_model=0.8, strength_clip=0.8)
    host.run({**nodes, **host.save(f"loras/{kind}"), **host.sample("merged", ["5", 0], ["5", 1])})
    host.run({"1": nodes["1"], **loader, **host.sample("stock", ["10", 0], ["10", 1])})
    host.run(
        {
            "1": nodes["1"],
            **host.load_lora(f"{kind}.safetensors", "11"),
            **host.sample("base", ["1", 0], ["1", 1]),
        }
    )
    merged = host.latent("merged")
    stock = host.latent("stock")
    base = host.latent("base")
    assert (stock - base).norm() > 1e-3 * base.norm()
    assert (merged - stock).norm() < 0.01 * (stock - base).norm()


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model.unet.", ""])
def test_peft_keys_are_read_although_the_host_ignores_them(host, prefix):
    up = random(320, 4)
    down = random(4, 320)
    path = f"{prefix}mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{path}.lora_B.weight": up,
            f"{path}.lora_A.weight": down,
            f"{text}.lora_B.weight": random(768, 4),
            f"{text}.lora_A.weight": random(4, 768),
        },
        host.loras / "peft.safetensors",
    )
    outputs = host.run(
        {**merge_alone(host, "peft.safetensors"), **host.save("loras/from_peft", overwrite=True)}
    )["outputs"]
    assert outputs["5"]["iteris_report"][0]["unmatched"] == {}
    saved = load_file(host.output / "loras" / "from_peft.safetensors")
    assert set(saved) == {
        f"{base}.{end}"
        for base in (UNET, TEXT)
        for end in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    found = saved[f"{UNET}.lora_up.weight"] @ saved[f"{UNET}.lora_down.weight"]
    assert (
        found - 0.8 * up @ down
    ).norm() < 0.1 * found.norm()  # exact where the inputs reach; alpha decides elsewhere


@pytest.mark.parametrize("ending", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_a_dora_with_peft_keys_is_read_with_its_magnitudes(host, ending):
    up = random(320, 4)
    down = random(4, 320, scale=0.3)
    magnitude = 1 + random(320, scale=0.3).abs()
    path = "base_model.model.unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{path}.lora_B.weight": up,
        f"{path}.lora_A.weight": down,
        f"{path}.{ending}": magnitude,
    }
    save_file(tensors, host.loras / "peft_dora.safetensors")
    outputs = host.run(
        {
            **merge_alone(host, "peft_dora.safetensors"),
            **host.save("loras/peft_dora", overwrite=True),
        }
    )["outputs"]
    assert outputs["5"]["iteris_report"][0]["unmatched"] == {}
    saved = load_file(host.output / "loras" / "peft_dora.safetensors")
    weight = load_file(host.base / "models" / "checkpoints" / "sd15.safetensors")[
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    ].float()
    adapted = weight + up @ down
    expected = 0.8 * (magnitude[:, None] * adapted / adapted.norm(dim=1, keepdim=True) - weight)
    found = saved[f"{UNET}.lora_up.weight"] @ saved[f"{UNET}.lora_down.weight"]
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert (
        0.8 * up @ down - expected
    ).norm() > 0.3 * expected.norm()  # what it would be without them


def test_an_untrained_layer_is_a_delta_of_zero(host):
    other = UNET.replace("to_q", "to_k")
    untrained = {f"{other}.lokr_w1": random(4, 4), f"{other}.lokr_w2": torch.zeros(80, 80)}
    save_file(lokr() | untrained, host.loras / "untrained.safetensors")
    outputs = host.run(
        {**merge_alone(host, "untrained.safetensors"), **host.save("loras/untrained")}
    )["outputs"]
    assert outputs["6"]["text"][1].startswith("read back: 2 of 2 modules, largest difference")
    saved = load_file(host.output / "loras" / "untrained.safetensors")
    assert not (saved[f"{other}.lora_up.weight"] @ saved[f"{other}.lora_down.weight"]).any()


def test_large_layers_can_be_saved_as_full_differences(host):
    """The same in the stock loader, in less room than their factors."""
    save_file(lokr(), host.loras / "large.safetensors")
    nodes = merge_alone(host, "large.safetensors")
    low_rank = host.save("loras/low_rank")
    whole = host.save("loras/whole")
    whole["6"]["inputs"]["large_layers"] = "full difference (.diff)"
    both = {**nodes, **low_rank, "7": whole["6"], **host.sample("outputs", ["5", 0], ["5", 1])}
    outputs = host.run(both)["outputs"]
    assert outputs["7"]["text"][1].startswith("read back: 1 of 1 modules, largest difference")
    assert set(load_file(host.output / "loras" / "whole.safetensors")) == {f"{UNET}.diff"}
    sizes = [
        (host.output / "loras" / f"{name}.safetensors").stat().st_size
        for name in ("whole", "low_rank")
    ]
    assert sizes[0] < 0.6 * sizes[1]
    for name in ("whole", "low_rank"):
        loader = host.load_lora(f"{name}.safetensors")
        host.run({"1": nodes["1"], **loader, **host.sample(name, ["10", 0], ["10", 1])})
    host.run({"1": nodes["1"], **host.sample("base", ["1", 0], ["1", 1])})
    model = host.latent("outputs")
    base = host.latent("base")
    for name in ("whole", "low_rank"):
        assert (host.latent(name) - model).abs().max() <= 1e-4 * (model - base).abs().max()


def test_a_lower_rank_and_the_full_output_target(host):
    nodes = host.merge()
    nodes["4"]["inputs"]["reproduce"] = "whole output"
    nodes["5"]["inputs"].update(size="rank", size_value=4.0)
    report = host.run({**nodes, **host.save("loras/rank4")})["outputs"]["5"]["iteris_report"][0]
    assert {layer["rank"] for layer in report["layers"]} == {4}
    assert all(0 <= layer["cut"] <= layer["plain_cut"] * (1 + 1e-6) for layer in report["layers"])


def test_a_kind_that_nobody_reads_is_refused(host):
    save_file({f"{UNET}.set_weight": random(320, 320)}, host.loras / "set.safetensors")
    with pytest.raises(WorkflowFailed, match="replacement of the weight"):
        host.run({**merge_alone(host, "set.safetensors"), **host.save("loras/set")})


def test_a_base_in_fp8_is_merged_through_its_own_forward(host):
    """Only the inputs and outputs of modules are used, so how weights are stored does not
    matter.
    """
    folder = host.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    checkpoint = load_file(host.base / "models" / "checkpoints" / "sd15.safetensors")
    unet = {
        key: tensor
        for key, tensor in checkpoint.items()
        if key.startswith("model.diffusion_model.")
    }
    save_file(unet, folder / "unet.safetensors")
    nodes = host.merge(latents_per_run=1, negative_share=0.0)
    inputs = {"unet_name": "unet.safetensors", "weight_dtype": "fp8_e4m3fn"}
    nodes["9"] = {"class_type": "UNETLoader", "inputs": inputs}
    nodes["4"]["inputs"]["reproduce"] = "whole output"
    nodes["5"]["inputs"]["model"] = ["9", 0]
    host.run({**nodes, **host.save("loras/fp8"), **host.sample("fp8", ["5", 0], ["5", 1])})
    assert torch.isfinite(host.latent("fp8")).all()
