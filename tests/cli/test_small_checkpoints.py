"""The small checkpoints of the demo and their LoRAs, as files: names, shapes, content, metadata."""

import re
import sys
from pathlib import Path

import checkpoint
import checkpoint_sd3
import checkpoint_sdxl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from demo import drawn, parts
from demo.run import (
    WEIGHTS,
    DemoRequest,
    make_workflow,
    read_template,
)
from iteris_core.files.inspection import inspect_adapter

WRITERS = {"sd15": checkpoint, "sdxl": checkpoint_sdxl, "sd3": checkpoint_sd3}
UNET = "model.diffusion_model."
# What a kohya name begins with -> what the checkpoint's name of the same module begins with.
PREFIXES = {
    "sd15": {"lora_te_text_model_": "cond_stage_model.transformer.text_model."},
    "sdxl": {
        "lora_unet_": UNET,
        "lora_te1_text_model_": "conditioner.embedders.0.transformer.text_model.",
    },
    "sd3": {
        "lora_unet_": UNET,
        "lora_te1_text_model_": "text_encoders.clip_l.transformer.text_model.",
    },
}


@pytest.fixture(scope="module")
def shapes():
    return {name: dict(writer.checkpoint_shapes()) for name, writer in WRITERS.items()}


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_saved_file_is_read_as_what_it_was_made_of(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "single": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "eighth": torch.randn(2, 3, generator=generator).to(torch.float8_e5m2),
        "scalar": torch.tensor(2.5),
        "empty": torch.tensor([]),
    }
    hole = torch.empty((300, 400), dtype=torch.float16, device="meta")
    path = tmp_path / "folder" / "file.safetensors"
    parts.save(path, tensors | {"hole": hole, "last": hole[0]}, {"format": "pt"})
    read = load_file(path)
    assert set(read) == {*tensors, "hole", "last"}
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())
    assert torch.equal(read["hole"], torch.zeros(300, 400, dtype=torch.float16))
    assert torch.equal(read["last"], torch.zeros(400, dtype=torch.float16))
    assert metadata(path) == {"format": "pt"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems fill holes, or count otherwise")
def test_zeros_take_no_room_on_disk(tmp_path):
    path = tmp_path / "file.safetensors"
    parts.save(path, {"hole": torch.empty((1000, 5000), device="meta")}, {})
    status = path.stat()
    assert status.st_size > 20e6 and 512 * status.st_blocks < 1e6


@pytest.mark.parametrize("name", WRITERS)
def test_a_name_is_there_once(name, shapes):
    assert len(shapes[name]) == len(list(WRITERS[name].checkpoint_shapes()))
    modules = [module for module, _ in WRITERS[name].lora_modules()]
    assert len(set(modules)) == len(modules)


@pytest.mark.parametrize("name", WRITERS)
def test_lora_modules_have_the_shapes_of_the_checkpoint(name, shapes):
    weights = {
        weight.removesuffix(".weight").replace(".", "_"): shape
        for weight, shape in shapes[name].items()
    }
    compared = 0
    for module, shape in WRITERS[name].lora_modules():
        for prefix, replacement in PREFIXES[name].items():
            if module.startswith(prefix):
                assert weights[replacement.replace(".", "_") + module[len(prefix) :]] == shape
                compared += 1
    assert (
        compared == {"sd15": 72, "sdxl": 7 * 2 + 27 * 10 + 72, "sd3": 3 * 5 + 2 * 5 + 2 + 72}[name]
    )


def test_bigg_has_the_shapes_of_its_lora_modules(shapes):
    """OpenCLIP has q, k and v in one matrix."""
    prefix = "conditioner.embedders.1.model.transformer.resblocks"
    names = {"mlp_fc1": "mlp.c_fc", "mlp_fc2": "mlp.c_proj", "self_attn_out_proj": "attn.out_proj"}
    found = set()
    for module, shape in checkpoint_sdxl.lora_modules():
        if match := re.fullmatch(r"lora_te2_text_model_encoder_layers_(\d+)_(.*)", module):
            index, layer = match.groups()
            if layer in names:
                assert shapes["sdxl"][f"{prefix}.{index}.{names[layer]}.weight"] == shape
            else:
                assert re.fullmatch("self_attn_[qkv]_proj", layer)
                fused = shapes["sdxl"][f"{prefix}.{index}.attn.in_proj_weight"]
                assert fused == (3 * shape[0], shape[1])
            found.add((int(index), layer))
    assert len(found) == 32 * 6 and max(found)[0] == 31


def test_the_sdxl_has_what_a_host_knows_an_sdxl_by(shapes):
    unet = {
        name.removeprefix(UNET): shape
        for name, shape in shapes["sdxl"].items()
        if name.startswith(UNET)
    }
    depths = []
    for block in (1, 2, 4, 5, 7, 8):
        pattern = re.compile(rf"input_blocks\.{block}\.1\.transformer_blocks\.(\d+)\.")
        depths.append(len({match[1] for name in unet if (match := pattern.match(name))}))
    assert depths == [0, 0, 2, 2, 10, 10]
    assert unet["label_emb.0.0.weight"][1] == 2816
    assert unet["input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"][1] == 768 + 1280
    assert len(unet["input_blocks.4.1.proj_in.weight"]) == 2
    assert unet["input_blocks.0.0.weight"] == (320, 4, 3, 3)


def test_the_width_of_the_sd3_is_64_times_its_depth(shapes):
    blocks = {name.split(".")[3] for name in shapes["sd3"] if "joint_blocks" in name}
    assert shapes["sd3"][f"{UNET}x_embedder.proj.weight"] == (64 * len(blocks), 16, 2, 2)
    assert shapes["sd3"]["first_stage_model.taesd_decoder.1.weight"][1] == 16


def test_layers_between_are_zeros_and_the_rest_is_random():
    generator = torch.Generator().manual_seed(0)
    text = "conditioner.embedders.1.model.transformer.resblocks"
    blocks = f"{UNET}input_blocks.7.1.transformer_blocks"

    def is_zero(name):
        return parts.compact(name, (4, 4), generator).is_meta

    assert [k for k in range(32) if not is_zero(f"{text}.{k}.mlp.c_fc.weight")] == [0, 30, 31]
    assert [k for k in range(10) if not is_zero(f"{blocks}.{k}.ff.net.2.weight")] == [0, 9]
    clip_l = "conditioner.embedders.0.transformer.text_model.encoder.layers"
    assert [k for k in range(12) if not is_zero(f"{clip_l}.{k}.mlp.fc1.weight")] == [0, 10, 11]
    norm = parts.compact(f"{text}.5.ln_1.weight", (4,), generator)
    assert norm.float().tolist() == [1, 1, 1, 1]
    weight = parts.compact(f"{text}.0.mlp.c_fc.weight", (400, 100), generator)
    assert weight.dtype == torch.float8_e5m2
    assert weight.float().std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("name", "base", "modules"),
    [
        ("sd15", "SD1.5 (sd_v1)", 120),
        ("sdxl", "SDXL (stable-diffusion-xl-v1-base/lora)", 14 + 270 + 72 + 192),
        ("sd3", "SD3.5 (3-medium)", 99),
    ],
)
def test_a_lora_says_what_it_is_for_and_what_calls_it(name, base, modules, tmp_path):
    path = tmp_path / "lora.safetensors"
    WRITERS[name].write_lora(path, seed=7, rank=2)
    facts = inspect_adapter(path)
    assert facts.base == base
    assert facts.targets == modules
    assert facts.problems == ()
    assert facts.trigger_words == ("demo7",)
    assert metadata(path)["ss_network_dim"] == "2"
    assert metadata(path)["ss_network_alpha"] == "1.0"


def test_a_lora_has_the_asked_scale_seed_and_modules(tmp_path):
    files = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.safetensors"
        checkpoint_sdxl.write_lora(path, seed, rank=4, scale=0.3, only="te2_.*layers_0_mlp_fc1")
        files.append(load_file(path))
    module = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    assert set(files[0]) == {
        f"{module}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    ups = [tensors[f"{module}.lora_up.weight"].float() for tensors in files]
    assert not torch.equal(*ups)
    delta = ups[0] @ files[0][f"{module}.lora_down.weight"].float() * (2 / 4)
    weight = parts.initial("mlp.fc1.weight", (5120, 1280), torch.Generator().manual_seed(0))
    assert delta.norm().item() == pytest.approx(0.3 * weight.norm().item(), rel=0.2)


def test_weights_in_8_bit_are_read_within_half_a_step():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(7, 5, 3, 3, generator=generator),
        "linear.weight": torch.randn(4, 6, generator=generator) * 1e-3,
        "norm.weight": torch.randn(5, generator=generator),
    }
    read = dict(drawn.from_8_bit(drawn.in_8_bit(weights)))
    assert read.keys() == weights.keys()
    for name, tensor in weights.items():
        largest = tensor.abs().flatten(1).amax(1) if tensor.ndim > 1 else tensor.abs().amax()
        step = (largest / 127).view(-1, *[1] * (tensor.ndim - 1))
        assert ((read[name].float() - tensor).abs() <= 0.51 * step + 1e-3 * tensor.abs()).all()


def test_the_trained_checkpoint_is_whole(tmp_path):
    weights = WEIGHTS
    path = tmp_path / "drawn.safetensors"
    drawn.write_checkpoint(path, weights)
    tensors = load_file(path)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    modules = {key.split(".")[0] for name in drawn.LORAS for key in load_file(weights / name)}
    known = {
        f"lora_unet_{name.replace(block, module).removesuffix('.weight').replace('.', '_')}"
        for block, module in drawn.TRANSFORMERS.items()
        for name, _ in drawn.unet_shapes()
        if name.startswith(f"{block}.")
    }
    assert modules < known
    assert sum(file.stat().st_size for file in weights.iterdir()) < 40e6


@pytest.mark.parametrize(("family", "side"), [("sd15", 512), ("sdxl", 1024)])
def test_a_picture_of_the_users_model_has_the_size_of_its_family(family, side):
    loras = ["a.safetensors", "b.safetensors"]
    request = DemoRequest(
        Path("out"), Path("c.safetensors"), tuple(map(Path, loras)), ("a", "b"), family=family
    )
    workflow = make_workflow(read_template(), request, "c.safetensors", loras)
    (size,) = (
        node["inputs"] for node in workflow.values() if node["class_type"] == "IterISCompare"
    )
    assert (size["width"], size["height"]) == (side, side)
