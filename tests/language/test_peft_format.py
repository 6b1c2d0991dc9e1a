"""PEFT adapter folders, read and written by our own code, against peft itself."""

import json
import shutil

import pytest
import tiny_language
import torch
from safetensors.torch import load_file, save_file

from iteris_core import Adapter, AdapterError, LowRankDelta
from iteris_core.files import peft

pytestmark = pytest.mark.slow

TASK = "SEQ_2_SEQ_LM"
Q = "encoder.block.0.layer.0.SelfAttention.q"
V = "decoder.block.1.layer.1.EncDecAttention.v"


OPTIONS = [
    {"use_rslora": True},
    {
        "rank_pattern": {"SelfAttention.q": 2},
        "alpha_pattern": {"layer.0.SelfAttention.q": 3, "v": 5},
    },
    {
        "rank_pattern": {"EncDecAttention.v": 1},
        "alpha_pattern": {r"^encoder\.block\.0\.layer\.0\.SelfAttention\.q": 1},
    },
    {"fan_in_fan_out": True},
    {"bias": "all"},  # T5 has no biases, so there is nothing to lose
    {"use_dora": True, "use_rslora": True, "alpha_pattern": {"v": 3}},
]


def same_answers(found, expected):
    return torch.allclose(found, tiny_language.logits(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_read_adapter_does_what_peft_does_with_it(t5_folder, tmp_path, options):
    base, targets = t5_folder / "base", ("q", "v", "wi")
    folder = tiny_language.adapter(base, tmp_path / "lora", 3, targets, **options)
    rewrite(folder, lambda tensors: {k: 1.3 * t if "magn" in k else t for k, t in tensors.items()})
    plain = tiny_language.t5()
    shapes = tiny_language.shapes(plain)
    adapter = peft.load(folder, shapes, lambda path: plain.get_submodule(path).weight)
    assert len(adapter.deltas) == 2 * 3 + 2 * 5
    expected = tiny_language.logits(tiny_language.peft(tiny_language.t5(), folder))
    assert not torch.allclose(tiny_language.logits(plain), expected, atol=1e-2)
    assert same_answers(expected, tiny_language.with_deltas(tiny_language.t5(), adapter.deltas))
    if "use_dora" in options:
        said = r"lora: '.*' is a DoRA, whose delta depends on the base model's weights"
        with pytest.raises(AdapterError, match=said):
            peft.load(folder, shapes)


def copied(source, tmp_path):
    shutil.rmtree(tmp_path / "broken", ignore_errors=True)
    return shutil.copytree(source, tmp_path / "broken")


def assert_refused(folder, said):
    with pytest.raises(AdapterError, match="broken: ") as error:
        peft.load(folder, tiny_language.shapes(tiny_language.t5()))
    assert said in str(error.value)


def rewrite(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: value.clone() for key, value in change(tensors).items()},
        folder / "adapter_model.safetensors",
    )


def configure(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def key_of(path, role):
    return f"base_model.model.{path}.lora_{role}.weight"


SETTINGS = [  # what adapter_config.json says, what the message names
    ({"use_dora": True}, "has 0 magnitudes of a DoRA where adapter_config.json and the model"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"peft_type": "IA3"}, "only LORA"),
    ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    ({"alora_invocation_tokens": [1]}, "trained with alora_invocation_tokens"),
    ({"r": 7}, "has rank 4, but adapter_config.json says 7"),
    ({"rank_pattern": {"(q": 4}}, "the pattern '(q', a regular expression ('(')"),
    ({"lora_alpha": "8"}, "must be a number"),
]


def test_settings_that_cannot_be_merged_are_refused(t5_folder, tmp_path):
    for settings, said in SETTINGS:
        folder = copied(t5_folder / "one", tmp_path)
        configure(folder, **settings)
        assert_refused(folder, said)


DOWN, UP = key_of(Q, "A"), key_of(Q, "B")
ZEROS = torch.zeros(4, 32)
WEIGHTS = [  # how the tensors are changed, what the message names
    (lambda t: {k: v for k, v in t.items() if k != UP}, f"{Q!r} has no up factor"),
    (lambda t: {**t, DOWN: t[DOWN] * torch.nan}, f"{Q!r} holds NaN"),
    (lambda t: {**t, DOWN: ZEROS[:, :31]}, "weight there is 32 x 32. The adapter was trained for"),
    (lambda t: {**t, f"{Q}.alpha": torch.ones(1)}, f"'{Q}.alpha' is not a factor of a LoRA"),
    (lambda t: {**t, DOWN: ZEROS[:3]}, "different ranks; the file is damaged. Download it again"),
    (lambda t: {**t, f"{Q}.lora_A.weight": t[DOWN]}, f"{Q!r} is described twice"),
    (lambda t: {**t, "base_model.model.lm_head.weight": ZEROS}, "modules_to_save"),
    (lambda t: {**t, f"base_model.model.{Q}.lora_magnitude_vector": ZEROS[0]}, "has 32 magnitudes"),
    (
        lambda t: {k.replace("er.block.1", "er.block.7"): v for k, v in t.items()},
        "6 of its 12 layers",
    ),
    (
        lambda t: {**t, "base_model.model.shared.lora_embedding_A": ZEROS},
        "is not a factor of a LoRA",
    ),
    (lambda t: {**t, f"base_model.model.{Q}.bias": ZEROS[0]}, "bias='none'"),
    (lambda t: {}, "0 of its 0 layers"),
]


def test_broken_weights_are_refused(t5_folder, tmp_path):
    for change, said in WEIGHTS:
        folder = copied(t5_folder / "one", tmp_path)
        rewrite(folder, change)
        assert_refused(folder, said)


def test_incomplete_folders_are_refused(t5_folder, tmp_path):
    shapes = tiny_language.shapes(tiny_language.t5())
    with pytest.raises(AdapterError, match="no such folder"):
        peft.load(tmp_path / "nowhere", shapes)
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        peft.load(tmp_path, shapes)
    folder = copied(t5_folder / "one", tmp_path)
    (folder / "adapter_model.safetensors").rename(tmp_path / "kept")
    said = r"no adapter_model\.safetensors .*; give the folder that PEFT's save_pretrained wrote"
    with pytest.raises(AdapterError, match=said):
        peft.load(folder, shapes)
    (tmp_path / "kept").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        peft.load(folder, shapes)
    for text, said in (("{", "cannot be read"), ("[]", "is not an object")):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(AdapterError, match=said):
            peft.load(folder, shapes)


def random_delta(rank):
    return LowRankDelta(torch.randn(32, rank) / 4, torch.randn(rank, 32) / 4)


def random_adapter(ranks):
    return Adapter("made", {path: random_delta(rank) for path, rank in ranks.items()})


def test_peft_loads_what_is_written_with_every_layers_rank(t5_folder, tmp_path):
    ranks = {Q: 5, V: 2, Q.replace("0", "1", 1): 2}
    adapter = random_adapter(ranks)
    peft.save(adapter, tmp_path / "out", str(t5_folder / "base"), TASK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    loaded = tiny_language.peft(tiny_language.t5(), tmp_path / "out")
    assert loaded.peft_config["default"].task_type == TASK
    modules = loaded.base_model.model.named_modules()
    assert {name for name, module in modules if hasattr(module, "lora_A")} == set(ranks)
    expected = tiny_language.logits(tiny_language.with_deltas(tiny_language.t5(), adapter.deltas))
    assert torch.allclose(tiny_language.logits(loaded), expected, rtol=0, atol=1e-5)
    again = peft.load(tmp_path / "out", tiny_language.shapes(tiny_language.t5()))
    assert all(
        torch.equal(again.deltas[path].up, delta.up) for path, delta in adapter.deltas.items()
    )


def test_convolutions_keep_their_kernel(tmp_path):
    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv(x)

    model = Pictures()
    delta = LowRankDelta(torch.randn(8, 2), torch.randn(2, 27))
    made = Adapter("made", {"conv": delta})
    peft.save(made, tmp_path / "out", "base", None, kernels={"conv": (3, 3)})
    found = peft.load(tmp_path / "out", {"conv": (8, 27)}).deltas["conv"]
    assert torch.equal(found.down, delta.down)
    x = torch.randn(1, 3, 5, 5)
    expected = model(x) + torch.nn.functional.conv2d(x, delta.dense().reshape(8, 3, 3, 3))
    assert torch.allclose(tiny_language.peft(model, tmp_path / "out")(x), expected, atol=1e-4)


def test_patterns_are_bound_where_one_path_is_the_end_of_another():
    ranks = {"q": 2, "a.q": 3, "b.q": 3, "a.b.q": 4}
    from peft.utils.other import get_pattern_key

    settings = peft.settings_of(random_adapter(ranks), "base", None)
    patterns = settings["rank_pattern"]
    for path, rank in ranks.items():
        assert patterns.get(get_pattern_key(patterns, path), settings["r"]) == rank
        assert peft.Scales.of(settings).at(path, rank) == 1


def test_what_peft_has_no_place_for_is_not_saved(tmp_path):
    with pytest.raises(AdapterError, match="no deltas"):
        peft.save(Adapter("made", {}), tmp_path / "out", "base", TASK)
    with pytest.raises(AdapterError, match="bias and norm"):
        deltas = {Q: LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))}
        biased = Adapter("made", deltas, vectors={"x.bias": torch.ones(2)})
        peft.save(biased, tmp_path / "out", "base", TASK)
    assert not list(tmp_path.iterdir())
