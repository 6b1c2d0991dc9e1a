"""Base models that are damaged or not trusted: one line says why, and nothing of theirs is run."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from iteris_core import ConfigError
from iteris_core.base_models import load_processor, load_tokenizer
from iteris_core.language.t5 import load_base

Q = "encoder.block.1.layer.0.SelfAttention.q.weight"


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def without(*keys):
    kept = lambda tensors: {k: t for k, t in tensors.items() if k not in keys}  # noqa: E731
    return lambda folder: change_weights(folder, kept)


def short(folder):
    change_weights(folder, lambda tensors: {**tensors, Q: tensors[Q][:3].clone()})


def cut_off(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


class Trap:
    def __reduce__(self):
        return open, ("trap", "w")


def as_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Trap()}))


def as_code(folder):
    settings = json.loads((folder / "config.json").read_text())
    names = dict.fromkeys(["AutoConfig", "AutoTokenizer"], "evil.Config")
    settings |= {"model_type": "evil", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(settings))
    code = "open('trap', 'w')\nfrom transformers import PretrainedConfig as Config\n"
    (folder / "evil.py").write_text(code)


@pytest.fixture
def folder(t5_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # to whoever asks whether to run the model's code
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    return shutil.copytree(t5_folder / "base", tmp_path / "base")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without(Q), f"1 of its weights, such as {Q}, are missing"),
        (without("shared.weight"), "4 of its weights"),  # all that are tied to it
        (short, "a model cannot be loaded"),
        (cut_off, "a model cannot be loaded"),
        (as_pickle, "a model cannot be loaded from there ("),
        (as_code, "a model cannot be loaded"),
        (lambda f: (f / "config.json").write_text("[]"), "a model cannot be loaded"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(folder, damage, said):
    damage(folder)
    with pytest.raises(ConfigError) as error:
        load_base(str(folder))
    assert said in str(error.value)
    assert str(error.value).count("\n") == 0
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_weights_that_are_tied_are_saved_once_only(folder):
    names = {"shared.weight": "lm_head.weight"}
    change_weights(folder, lambda tensors: {names.get(k, k): t for k, t in tensors.items()})
    saved = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_base(str(folder)).shared.weight, saved)


def test_no_code_of_a_tokenizer_is_run(folder):
    as_code(folder)
    for load in (load_tokenizer, load_processor):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load(str(folder))
    assert not (folder.parent / "trap").exists()
