"""The parts of the nodes that need no ComfyUI: its modules are stood in for, so these tests are
quick.
"""

import base64
import hashlib
import importlib.util
import io
import logging
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import iteris_core
from iteris_core import Adapter, AdapterError, ConfigError, IterisError, LowRankDelta, MergeReport
from iteris_core.diffusion.samples import PromptedAdapter
from iteris_core.files import kohya
from iteris_core.report.records import LayerReport, TaskAtLayerReport

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_one_that_is_installed():
    assert f'\nversion = "{iteris_core.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


# --- kinds that only the host knows ---


def added(nodes, apply, weight=None):
    weight = torch.ones(3, 2) if weight is None else weight
    return nodes("foreign").added_by_host(
        "file", "layer", {"layer.lokr_w1": torch.ones(1)}, weight, apply
    )


def test_zero_is_an_answer(nodes):
    assert torch.equal(added(nodes, lambda weight: weight), torch.zeros(3, 2))
    assert torch.equal(added(nodes, lambda weight: weight.add_(2)), torch.full((3, 2), 2.0))


@pytest.mark.parametrize("verbosity", [logging.INFO, logging.CRITICAL])
def test_an_error_that_the_host_only_logs_is_raised_with_its_text(nodes, verbosity):
    def fail_as_the_host_does(weight):
        logging.error("ERROR lokr layer: shapes do not fit")
        return weight

    root = logging.getLogger()
    before = root.level
    handlers = list(root.handlers)
    root.setLevel(verbosity)
    try:
        with pytest.raises(
            AdapterError,
            match=r"file: ComfyUI could not apply lokr_w1 to 'layer': ERROR lokr.*do not fit",
        ):
            added(nodes, fail_as_the_host_does)
        assert (root.level, root.handlers) == (verbosity, handlers)
    finally:
        root.setLevel(before)


def test_what_the_host_raises_does_not_know_or_reshapes_is_explained(nodes):
    def fail(weight):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    for apply, message in (
        (fail, "could not apply lokr_w1 to 'layer': AttributeError: 'NoneType'"),
        (lambda weight: None, "ComfyUI does not know what lokr_w1 do to 'layer'"),
        (lambda weight: torch.ones(4, 2), "(4, 2), which is (3, 2) in this model"),
    ):
        with pytest.raises(AdapterError, match=re.escape(message)):
            added(nodes, apply)


def test_a_cancel_goes_through(nodes):
    class Interrupt(Exception):
        pass

    def cancel(weight):
        raise Interrupt

    with pytest.raises(Interrupt):
        added(nodes, cancel)


# --- names of keys ---


def keys_of_a_small_model(nodes):
    modules = {
        "diffusion_model.mid.q": nn.Linear(4, 6),
        "diffusion_model.mid.conv": nn.Conv2d(2, 3, (3, 1)),
        "clip_l.transformer.text_model.q": nn.Linear(3, 3),
        "clip_l.transformer.text_model.norm": nn.LayerNorm(3),
        "clip_l.transformer.text_projection": nn.Linear(3, 3),
    }
    host_keys = {
        "lora_unet_mid_q": "diffusion_model.mid.q.weight",
        "lora_unet_mid_conv": "diffusion_model.mid.conv.weight",
        "diffusion_model.mid.conv.bias": "diffusion_model.mid.conv.bias",
        "lora_te_text_model_q": "clip_l.transformer.text_model.q.weight",
        "lora_te1_text_projection": "clip_l.transformer.text_projection.weight",
        "fused": ("diffusion_model.mid.q.weight", (0, 0, 3)),
    }
    return nodes("keys").model_keys(
        modules, host_keys, {"mid_block.q.weight": "mid.q.weight", "mid_block.q.bias": "mid.q.bias"}
    )


def test_only_modules_that_can_be_saved_are_read(nodes):
    keys = keys_of_a_small_model(nodes)
    assert (
        keys.base_of_module["diffusion_model.mid.q"] == "lora_unet_mid_block_q"
    )  # the name that every program knows
    assert set(keys.module_of_base.values()) == {
        "diffusion_model.mid.q",
        "diffusion_model.mid.conv",
        "clip_l.transformer.text_model.q",
    }
    assert keys.module_of_base["base_model.model.unet.mid_block.q"] == "diffusion_model.mid.q"
    assert (
        keys.module_of_base["base_model.model.text_encoder.text_model.q"]
        == "clip_l.transformer.text_model.q"
    )
    assert set(keys.host_keys) == {
        "lora_unet_mid_q",
        "lora_unet_mid_conv",
        "lora_te_text_model_q",
        "lora_te1_text_projection",
    }
    assert keys.weight_shape("diffusion_model.mid.q") == (6, 4)
    assert keys.weight_shape("diffusion_model.mid.conv") == (3, 2, 3, 1)


@pytest.mark.parametrize("rest", ["text_projection.lora_{}.weight", "text_model.norm.{}_norm"])
def test_keys_of_modules_that_cannot_be_saved_are_unmatched(nodes, rest):
    keys = keys_of_a_small_model(nodes)
    odd = {
        rest.format(letter): torch.ones(3, 3) if "lora" in rest else torch.ones(3)
        for letter in ("AB" if "lora" in rest else "w")
    }
    good = {
        "lora_te_text_model_q.lora_up.weight": torch.ones(3, 1),
        "lora_te_text_model_q.lora_down.weight": torch.ones(1, 3),
    }
    adapter = kohya.parse(
        "file", good | odd, keys.module_of_base, keys.shapes, vector_sizes=keys.vector_sizes
    )
    assert adapter.unmatched == tuple(odd)
    assert len(kohya.to_tensors(adapter, keys.base_of_module, keys.kernels)) == 3


# --- files ---


def test_files_of_one_stem_have_names_of_their_own(nodes):
    name = nodes("loras.names").adapter_name
    assert [
        name(n) for n in ("cat.safetensors", "style/cat.safetensors", "style\\dog.v2.safetensors")
    ] == [
        "cat",
        "style/cat",
        "style/dog.v2",
    ]


def test_what_went_into_a_merge_is_known_by_its_hash(nodes, tmp_path, monkeypatch):
    file = tmp_path / "cat.safetensors"
    entries = nodes("loras.entries")
    file.write_bytes(b"abc")
    monkeypatch.setattr(entries.host, "lora_path", lambda name: file, raising=False)
    entry = nodes("sockets").LoraEntry(
        "style/cat.safetensors", 0.8, 0.5, ("a cat",), 2.0, "trained_words"
    )
    [content] = entries.each_once([entry])[0]
    used = entries.used(entry, "style/cat", content)
    assert (used.name, used.file, used.prompts_from) == (
        "style/cat",
        "style/cat.safetensors",
        "trained_words",
    )
    assert used.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    trained = nodes("sockets").LoraEntry(
        "trained", 1.0, 1.0, ("x",), 1.0, tensors={"a": torch.ones(2)}
    )
    save_file(trained.tensors, file)
    [content] = entries.each_once([trained])[0]
    assert content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert entries.used(trained, "trained", content).file is None


# --- progress and memory ---


def test_the_time_left_is_that_of_the_pace_since_the_stage_began_anew(nodes):
    clock = nodes("progress").StageClock()
    assert clock.told("UNet", 0, 10, 100.0) == "UNet 0/10"
    assert clock.told("UNet", 5, 10, 150.0) == "UNet 5/10, about 50 s left"
    assert clock.told("UNet", 0, 10, 200.0) == "UNet 0/10"  # the second sweep
    assert clock.told("UNet", 5, 10, 205.0) == "UNet 5/10, about 5 s left"
    assert clock.told("UNet", 6, 20, 300.0) == "UNet 6/20"  # another total
    assert clock.told("UNet", 7, 20, 301.0) == "UNet 7/20, about 13 s left"
    assert clock.told("UNet", 19, 20, 301.5) == "UNet 19/20"


def test_results_are_kept_up_to_a_size_of_all_models_together(monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "memory", ROOT / "nodes" / "host" / "latent_cache.py"
    )
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    monkeypatch.setattr(memory, "MOST_BYTES", 100)
    kept = [(torch.zeros(5), torch.zeros(5))]  # 40 bytes
    patchers = [
        types.SimpleNamespace(
            model=Adapter(name, {}), model_options={}, object_patches={}, patches_uuid=name
        )
        for name in "ab"
    ]
    for patcher in patchers:
        patcher.model = type("Model", (), {})()
    first, second = map(memory.memory_of, patchers)
    first |= {"x": kept, "y": kept}
    first["x"] = kept  # again: the size stays
    assert (list(first), first.size) == (["y", "x"], 80)
    second["z"] = kept
    assert (list(first), list(second)) == (["x"], ["z"])
    second["w"] = kept
    assert (list(first), list(second), first.size, second.size) == ([], ["z", "w"], 0, 80)
    second["big"] = [torch.zeros(100)]
    assert (list(second), second.size) == ([], 0)


# --- the report ---


def test_a_report_without_matplotlib_is_still_told(nodes, monkeypatch):
    layer = LayerReport("net.a", 1, (TaskAtLayerReport("cat", 0.1, 1.0, 3),))
    report = nodes("report")
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    pictures, [note] = report.drawn(MergeReport((layer,)), None)
    assert pictures.ndim == 4 and pictures.shape[-1] == 3
    assert "python -m pip install matplotlib" in note
    with pytest.raises(IterisError, match="has no layers"):
        report.drawn(MergeReport(()), None)


# --- saving ---


@pytest.mark.parametrize(
    ("channels", "color"),
    [(1, (128, 128, 128)), (2, (128, 128, 128)), (3, (128, 0, 255)), (4, (128, 0, 255))],
)
def test_a_cover_of_any_channels(nodes, channels, color):
    picture = (
        torch.tensor([0.5, 0.0, 1.0, 0.2])[:channels]
        if channels > 2
        else torch.tensor([0.5, 1.0])[:channels]
    )
    uri = nodes("loras.names").jpeg_uri(picture.expand(8, 8, channels))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.mode == "RGB"
    assert max(abs(a - b) for a, b in zip(image.getpixel((4, 4)), color, strict=True)) < 8


def test_a_loras_folder_that_is_a_link_is_below_the_output_folder(nodes, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "output" / "loras").symlink_to(tmp_path / "disk")
    free_path = nodes("loras.names").free_path
    assert (
        free_path(tmp_path / "output", "loras/a", False)
        == tmp_path / "output" / "loras" / "a.safetensors"
    )
    (tmp_path / "disk" / "a.safetensors").touch()
    assert free_path(tmp_path / "output", "loras/a", False).name == "a_02.safetensors"
    with pytest.raises(IterisError, match="is outside ComfyUI's output folder"):
        free_path(tmp_path / "output", "loras/../../a", False)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_bad_file_does_not_replace_a_good_one(nodes, tmp_path, overwrite):
    path = tmp_path / "a.safetensors"
    draft_of = nodes("save").draft_of
    if overwrite:
        path.write_text("good")
    with pytest.raises(IterisError), draft_of(path, overwrite) as draft:
        draft.write_text("bad")
        raise IterisError("it did not turn out well")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["good"] * overwrite
    with draft_of(path, overwrite) as draft:
        draft.write_text("better")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["better"]


# --- ranks ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((8, 0.9, 0), "rank is 8 and kept_energy is 0.9, but"),
        ((0, 0.5, 20), "kept_energy is 0.5 and size_mb is 20, but"),
        ((4, 0.99, 1.5), "rank is 4 and kept_energy is 0.99 and size_mb is 1.5, but"),
    ],
)
def test_only_one_way_to_choose_ranks(nodes, values, words):
    with pytest.raises(
        ConfigError,
        match=re.escape(words) + ".*Set one, and leave the others off: rank 0, kept_energy 1",
    ):
        nodes("settings").check_ranks(*values)


@pytest.mark.parametrize("values", [(0, 1.0, 0.0), (8, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 30.0)])
def test_one_way_to_choose_ranks_is_fine(nodes, values):
    nodes("settings").check_ranks(*values)


def test_a_size_becomes_weights_and_must_have_room_for_rank_one(nodes):
    merge = nodes("settings")
    adapter = Adapter("a", {"x": LowRankDelta(torch.ones(1000, 4), torch.ones(4, 2000))})
    loras = [PromptedAdapter(adapter, ("p",))] * 2
    assert merge.weights_in(1.0, torch.float16, loras) == (1_000_000 - 500) // 2
    assert merge.weights_in(1.0, torch.float32, loras) == (1_000_000 - 500) // 4
    with pytest.raises(
        ConfigError, match=r"size_mb is 0\.001; .* rank 1 in all 1 layers, takes 0\.0 MB"
    ):
        merge.weights_in(0.001, torch.float16, loras)


# --- reading back ---


@pytest.fixture
def merged(nodes):
    adapter = Adapter(
        "merged",
        {
            "diffusion_model.mid.q": LowRankDelta(torch.randn(6, 2), torch.randn(2, 4)),
            "diffusion_model.mid.conv": LowRankDelta(torch.randn(3, 2), torch.randn(2, 6)),
        },
        vectors={"clip_l.transformer.text_model.q.bias": torch.randn(3)},
    )
    return nodes("sockets").MergedLora(adapter, keys_of_a_small_model(nodes), "{}")


def loader_of(merged, change=lambda parameter, value: value):
    """Return what the host's loader would, from what was meant."""
    meant = {
        f"{path}.weight": delta.dense() for path, delta in merged.adapter.deltas.items()
    } | dict(merged.adapter.vectors)
    return lambda path, keys: (
        lambda parameter, shape: change(parameter, meant[parameter].reshape(shape))
    )


def test_a_whole_file_is_read_back(nodes, merged, monkeypatch):
    save = nodes("save")
    monkeypatch.setattr(save.host, "stock_loader", loader_of(merged), raising=False)
    text = save.read_back(Path("draft.safetensors"), merged, "x.safetensors")
    assert text == "read back: 2 of 2 modules, 1 biases and norms, largest difference 0"


@pytest.mark.parametrize(
    "change", [lambda value: None, lambda value: value * 1.1, lambda value: value * float("nan")]
)
@pytest.mark.parametrize(
    "lost", ["diffusion_model.mid.conv.weight", "clip_l.transformer.text_model.q.bias"]
)
def test_a_file_that_lost_something_is_an_error(nodes, merged, monkeypatch, lost, change):
    save = nodes("save")
    loader = loader_of(
        merged, lambda parameter, value: change(value) if parameter == lost else value
    )
    monkeypatch.setattr(save.host, "stock_loader", loader, raising=False)
    with pytest.raises(
        IterisError,
        match=rf"x\.safetensors: read back .* 1 of 3 weights are missing or differ, such as '{lost}'",
    ):
        save.read_back(Path("draft.safetensors"), merged, "x.safetensors")


# --- inputs that grow ---


def test_an_older_host_has_no_inputs_that_grow_and_a_newer_one_is_asked_for_optional_ones(
    nodes, monkeypatch
):
    sockets = nodes("sockets")
    assert sockets.growing("more", None, "") == []
    autogrow = types.SimpleNamespace(
        TemplatePrefix=lambda *told: told, Input=lambda *told, **more: (*told, more)
    )
    monkeypatch.setattr(sockets.io, "Autogrow", autogrow, raising=False)
    socket = types.SimpleNamespace(Input=lambda name, **told: (name, told))
    [(name, template, told)] = sockets.growing("more", socket, "more of them")
    assert (name, told) == ("more", {"optional": True, "tooltip": "more of them"})
    assert template[:3] == (("loras", {"optional": True, "tooltip": "more of them"}), "loras", 0)
