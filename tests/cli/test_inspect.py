"""`iteris inspect`: what an adapter is, told from its file alone."""

import json
from pathlib import Path

import tiny_language
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from iteris_core.cli.main import app
from iteris_core.files import peft


def lora(base, rank=4, d_in=32, d_out=16, alpha=2.0):
    return {
        f"{base}.lora_down.weight": torch.randn(rank, d_in),
        f"{base}.lora_up.weight": torch.randn(d_out, rank),
        f"{base}.alpha": torch.tensor(alpha),
    }


def inspect(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_a_kohya_file(tmp_path):
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {**lora(attention, d_in=768), **lora("lora_unet_up_blocks_1_x", 8)}
    tags = {"10_sks dog": {"sks dog": 12, "a photo": 3}}
    metadata = {
        "ss_tag_frequency": json.dumps(tags),
        "modelspec.trigger_phrase": "sks",
        "modelspec.merged_from": "dog, ink",
        "ss_base_model_version": "sd_v1",
    }
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata)
    assert inspect(path).stdout.splitlines() == [
        str(path),
        "  base           SD1.5 (sd_v1)",
        "  largest rank   8",
        "  trigger words  sks, sks dog, a photo",
        "  merged from    dog, ink",
    ]


def test_a_peft_folder_is_called_by_its_name_from_inside(t5_folder, monkeypatch):
    shapes = tiny_language.shapes(tiny_language.t5())
    monkeypatch.chdir(t5_folder / "one")
    assert peft.load(Path("."), shapes).name == "one"


def test_texts_of_strangers_change_nothing_at_a_terminal(tmp_path):
    clipboard, link = "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;https://b\x1b\\\\"
    metadata = {
        "modelspec.trigger_phrase": f"sks{clipboard}\n  merged from    nothing",
        "ss_base_model_version": f"sd_v1{link}",
    }
    save_file(lora("lora_unet_a"), tmp_path / "a.safetensors", metadata)
    done = inspect(tmp_path / "a.safetensors")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all(line.isprintable() for line in lines)
    assert "sks\\x1b]52;c;ZXZpbA==\\x07" in done.stdout  # it is shown what is there


def test_the_command(t5_folder, tmp_path):
    text = inspect(t5_folder / "one" / peft.WEIGHTS_FILE)
    assert text.exit_code == 0
    assert "  largest rank   4\n" in text.stdout and "it is no merge" in text.stdout
    missing = inspect(tmp_path / "no.safetensors")
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
