"""`iteris inspect`: what an adapter is, told from its file alone."""

import json
from pathlib import Path

import tiny_language
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from iteris_core.cli.main import app
from iteris_core.files import peft
from iteris_core.files.inspection import inspect_adapter


def lora(base, rank=4, d_in=32, d_out=16, alpha=2.0):
    return {
        f"{base}.lora_down.weight": torch.randn(rank, d_in),
        f"{base}.lora_up.weight": torch.randn(d_out, rank),
        f"{base}.alpha": torch.tensor(alpha),
    }


def test_a_kohya_file(tmp_path):
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        **lora(attention, d_in=768),
        **lora("lora_unet_up_blocks_1_x", 8),
        **lora("lora_unet_up_blocks_1_y", 2),
    }
    conv = "lora_unet_mid_block_resnets_0_conv1"
    tensors |= {
        f"{conv}.lora_down.weight": torch.randn(3, 4, 3, 3),
        f"{conv}.lora_up.weight": torch.randn(5, 3, 1, 1),
    }
    loha = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    tensors |= {
        f"{loha}.hada_w{i}_{part}": torch.randn(*((9, 2) if part == "a" else (2, 7)))
        for i in (1, 2)
        for part in "ab"
    }
    tensors["lora_te_text_model_encoder_layers_4_mlp_fc1.lokr_w1"] = torch.randn(2, 2)
    tags = {"10_sks dog": {"sks dog": 12, "a photo": 3}}
    metadata = {
        "ss_tag_frequency": json.dumps(tags),
        "modelspec.trigger_phrase": "sks",
        "modelspec.merged_from": "dog, ink",
        "ss_base_model_version": "sd_v1",
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    facts = inspect_adapter(tmp_path / "a.safetensors")
    assert facts.base == "SD1.5 (sd_v1)"
    assert facts.layers == {"LoRA": 3, "LoCon": 1, "LoHa": 1, "LoKr": 1}
    assert facts.ranks == (2, 3, 4, 8)
    assert facts.trigger_words == ("sks", "sks dog", "a photo")
    assert facts.merged_from == ("dog", "ink")
    assert facts.problems == ()


def test_what_would_not_load_is_named(tmp_path):
    tensors = {
        **lora("lora_unet_a"),
        **lora("lora_unet_b"),
        "lora_unet_b.diff_b": torch.tensor([1.0, torch.nan]),
        "lora_unet_d.strange": torch.ones(1),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    strange, broken = inspect_adapter(tmp_path / "a.safetensors").problems
    assert strange == "'lora_unet_d.strange' is of unknown kind"
    assert "'lora_unet_b' holds NaN or infinite numbers in 'lora_unet_b.diff_b'" in broken


def test_the_weights_of_a_peft_adapter(t5_folder):
    facts = inspect_adapter(t5_folder / "two" / peft.WEIGHTS_FILE)
    assert facts.layers == {"LoRA": 2 * 6 + 2 * 10}
    assert (facts.ranks, facts.problems) == ((3,), ())


def test_a_peft_folder_is_called_by_its_name_from_inside(t5_folder, monkeypatch):
    shapes = tiny_language.shapes(tiny_language.t5())
    monkeypatch.chdir(t5_folder / "one")
    assert peft.load(Path("."), shapes).name == "one"


def test_texts_of_strangers_change_nothing_at_a_terminal(tmp_path):
    clipboard, link = "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;https://b\x1b\\\\"
    metadata = {
        "modelspec.trigger_phrase": f"sks{clipboard}\n  would not load: nothing",
        "ss_base_model_version": f"sd_v1{link}",
    }
    tensors = {**lora("lora_unet_a"), f"lora_unet_b{clipboard}.strange": torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.safetensors")])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert all(line.isprintable() for line in lines)
    assert "sks\\x1b]52;c;ZXZpbA==\\x07" in done.stdout  # it is shown what is there
    assert [line for line in lines if "would not load" in line][-1] == "  would not load: 1"


def test_the_command(t5_folder, tmp_path):
    def inspect(*arguments):
        return CliRunner().invoke(app, ["inspect", *map(str, arguments)])

    path = t5_folder / "one" / peft.WEIGHTS_FILE
    text = inspect(path)
    assert text.exit_code == 0
    assert "  ranks          4\n" in text.stdout
    assert "would not load: nothing" in text.stdout
    assert json.loads(inspect(path, "--json").stdout)["layers"] == {"LoRA": 12}
    missing = inspect(tmp_path / "no.safetensors")
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
