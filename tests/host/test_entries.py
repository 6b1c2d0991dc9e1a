"""What goes into a merge and what decides whether it runs again: without ComfyUI, so these tests
are quick.
"""

import dataclasses
import hashlib
import json
import types

import pytest
import torch
from safetensors.torch import save_file

from iteris_core import Adapter, ConfigError, IterisError, LowRankDelta
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.recipe import UsedLora, read_recipe
from iteris_core.diffusion.samples import PromptedAdapter


def test_one_content_is_one_lora_at_the_sum_of_the_strengths(nodes, tmp_path, monkeypatch):
    """Two files of one content, and a third one; a row that is off adds neither prompts nor
    weight.
    """
    entries = nodes("loras.entries")
    entry = nodes("sockets").LoraEntry
    monkeypatch.setattr(entries.host, "lora_path", lambda name: tmp_path / name, raising=False)
    for name, content in (("cat", b"1"), ("copy of cat", b"1"), ("dog", b"2")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    loras, notes = entries.each_once(
        [
            entry("cat.safetensors", 0.5, 0.25, ("a", "b"), 1.0, "trained_words"),
            entry("dog.safetensors", 1.0, 1.0, ("d",), 1.0),
            entry(
                "copy of cat.safetensors", 1.0, 0.5, ("b", "c"), 2.0, trigger="a cat", kind="style"
            ),
            entry("cat.safetensors", 0.0, 0.0, ("off",), 9.0),
        ]
    )
    cat, dog = loras.values()
    assert (cat.lora_name, cat.strength_model, cat.strength_clip, cat.prompts) == (
        "cat.safetensors",
        1.5,
        0.75,
        ("a", "b", "c"),
    )
    assert (cat.weight, cat.prompts_from, cat.trigger, cat.kind) == (2.0, "", "a cat", "style")
    assert dog.strength_model == 1.0
    assert [note[:70] for note in notes] == [
        "cat and copy of cat: the same LoRA 3 times, so it is merged once, at t"
    ]
    assert "1.5 / 0.75" in notes[0]


def test_loras_of_one_name_are_numbered(nodes):
    entries = nodes("loras.entries")
    sockets = nodes("sockets")
    base = types.SimpleNamespace(
        adapter=lambda name, tensors, metadata, *strengths: Adapter(name, {})
    )
    loras = [
        sockets.LoraEntry(name, 1.0, 1.0, ("x",), 1.0, tensors={})
        for name in ("trained", "cat", "trained")
    ]
    assert [lora.adapter.name for lora in entries.read(base, loras)] == [
        "trained (1)",
        "cat",
        "trained (3)",
    ]


def test_scenes_come_with_the_loras_and_only_one_kind_of_them(nodes):
    entries = nodes("loras.entries")
    sockets = nodes("sockets")
    scenes = sockets.Scenes(0.2, True, ("{first} and {second}",))
    plain = sockets.LoraEntry("a", 1.0, 1.0, ("x",), 1.0)
    with_scenes = dataclasses.replace(plain, scenes=scenes)
    assert entries.scenes_of([plain]) is None
    assert entries.scenes_of([plain, with_scenes, with_scenes]) is scenes
    calibration = scenes.applied_to(Calibration(seed=7))
    assert (calibration.scene_weight, calibration.scene_pictures, calibration.seed) == (
        0.2,
        True,
        7,
    )
    assert calibration.companions == Calibration().companions
    other = dataclasses.replace(plain, scenes=dataclasses.replace(scenes, scene_weight=0.3))
    with pytest.raises(
        ConfigError, match="the LoRAs come from 2 'Scene prompts' nodes with different settings"
    ):
        entries.scenes_of([with_scenes, other])


@pytest.fixture
def cats(nodes, tmp_path, monkeypatch):
    """Return entries of two files, of which only the first names its trigger words."""
    prompts = nodes("loras.prompts")
    entry = nodes("sockets").LoraEntry
    monkeypatch.setattr(prompts.host, "lora_path", lambda name: tmp_path / name, raising=False)
    monkeypatch.setattr(prompts.host, "find_lora", lambda name: tmp_path / name, raising=False)
    save_file(
        {"a": torch.ones(1)}, tmp_path / "cat.safetensors", {"modelspec.trigger_phrase": "sks cat"}
    )
    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")
    return [
        entry(f"{name}.safetensors", 1.0, 1.0, ("a photo of it",), 1.0) for name in ("cat", "bare")
    ]


def test_a_subjects_trigger_words_are_filled_in_from_its_file(nodes, cats):
    with_triggers = nodes("scene").with_triggers
    named = with_triggers(cats, "cat: a {trigger}", "bare: in ink style")
    assert [(entry.kind, entry.trigger) for entry in named] == [
        ("subject", "a sks cat"),
        ("style", "in ink style"),
    ]
    with pytest.raises(
        IterisError,
        match=r"styles: bare\.safetensors is called 'in \{trigger\}', and its file names",
    ):
        with_triggers(cats, "", "bare: in {trigger}")
    with pytest.raises(IterisError, match=r"^styles, line 1: which LoRA is it for"):
        with_triggers(cats, "cat: a cat", "stray")
    with pytest.raises(
        IterisError, match="cat is called 'a cat' in subjects and 'in cat style' in styles"
    ):
        with_triggers(cats, "cat: a cat", "cat: in cat style")


def test_a_lora_without_strength_needs_no_prompts(nodes, cats):
    prompts = nodes("loras.prompts")
    assert prompts.entry_of_file("bare.safetensors", 0.0, 0.0, ()).prompts == ()
    with pytest.raises(IterisError, match="has no prompts"):
        prompts.entry_of_file("bare.safetensors", 0.0, 0.1, ())


# --- what a second queueing finds changed ---


def test_a_name_that_comes_through_a_link_does_not_break_the_cache(nodes, cats):
    for node in (nodes("lora").LoraToMerge, nodes("recipe").LoadRecipe):
        assert node.fingerprint_inputs(lora_name=None) == "linked"
    assert nodes("lora").LoraToMerge.fingerprint_inputs(lora_name="cat.safetensors") not in (
        "linked",
        "missing",
    )


def test_saving_a_merge_changes_nothing_for_a_stack(nodes, monkeypatch, tmp_path):
    stack = nodes("stack")
    files = {"cat.safetensors": tmp_path / "cat", "dog.safetensors": tmp_path / "output" / "dog"}
    (tmp_path / "output").mkdir()
    for name, attribute in (
        ("lora_names", lambda: list(files)),
        ("find_lora", files.get),
        ("is_output", lambda path: path.parent.name == "output"),
    ):
        monkeypatch.setattr(stack.host, name, attribute, raising=False)
    texts = ("", None, "<lora:dog>")
    before = [stack.LoraStack.fingerprint_inputs(text=text) for text in texts]
    files["dog.safetensors"].write_bytes(b"1")
    files["new.safetensors"] = tmp_path / "output" / "new"
    after = [stack.LoraStack.fingerprint_inputs(text=text) for text in texts]
    assert before[:2] == after[:2] and before[2] != after[2]
    files["cat.safetensors"].write_bytes(b"1")
    assert stack.LoraStack.fingerprint_inputs(text="") != after[0]


def test_a_saved_merge_that_a_connected_stack_names_is_noticed_when_it_changes(
    nodes, monkeypatch, tmp_path
):
    stack = nodes("stack")
    files = {name: tmp_path / "output" / name for name in ("used", "other")}
    (tmp_path / "output").mkdir()
    for name, attribute in (
        ("lora_names", lambda: list(files)),
        ("find_lora", files.get),
        ("is_output", lambda path: True),
    ):
        monkeypatch.setattr(stack.host, name, attribute, raising=False)
    monkeypatch.setattr(stack, "_FIRST_SEEN", {})
    files["used"].write_bytes(b"1")
    before = stack.LoraStack.fingerprint_inputs(text="")
    stack.remember(["used"])
    files["other"].write_bytes(b"1")
    assert (
        stack.LoraStack.fingerprint_inputs(text="") == before
    )  # a second run is taken from the cache
    files["used"].write_bytes(b"22")
    changed = stack.LoraStack.fingerprint_inputs(text="")
    stack.remember(["used"])  # it runs again, and after that it is taken from the cache
    assert changed != before and stack.LoraStack.fingerprint_inputs(text="") == changed


def test_a_recipe_changes_with_the_files_that_it_names(nodes, monkeypatch, tmp_path):
    recipe = nodes("recipe")
    files = {name: tmp_path / name for name in ("merged", "cat", "dog")}
    for name, attribute in (
        ("lora_names", lambda: list(files)),
        ("find_lora", files.get),
        ("lora_path", files.get),
    ):
        monkeypatch.setattr(recipe.host, name, attribute, raising=False)
    lora = {
        "file": "cat",
        "name": "cat",
        "sha256": "",
        "strength_model": 1.0,
        "strength_clip": 1.0,
        "prompts": [],
    }
    told = {"loras": [lora], "calibration": {}, "config": {"alpha": 1.0}}
    save_file({"a": torch.ones(1)}, files["merged"], {"iteris.recipe": json.dumps(told)})
    found = [recipe.LoadRecipe.fingerprint_inputs(lora_name="merged")]
    for name in ("dog", "cat"):
        files[name].write_bytes(b"1")
        found.append(recipe.LoadRecipe.fingerprint_inputs(lora_name="merged"))
    assert found[0] == found[1] != found[2]
    files["moved cat"] = files.pop("cat")
    assert recipe.LoadRecipe.fingerprint_inputs(lora_name="merged") != found[2]


def test_a_file_that_is_only_called_alike_is_not_the_recipes(nodes, monkeypatch, tmp_path):
    recipe = nodes("recipe")
    files = {"cat_two.safetensors": tmp_path / "cat_two", "my cat.safetensors": tmp_path / "my"}
    for name, attribute in (
        ("lora_names", lambda: list(files)),
        ("find_lora", files.get),
        ("lora_path", files.get),
    ):
        monkeypatch.setattr(recipe.host, name, attribute, raising=False)
    for path in files.values():
        path.write_text(path.name)
    lora = UsedLora("cat", "cat.safetensors", hashlib.sha256(b"my").hexdigest(), 1.0, 1.0, ())
    entry, told = recipe.source_of("merged", lora)
    assert (entry.lora_name, told) == ("my cat.safetensors", "")
    with pytest.raises(
        IterisError, match=r"its LoRA 'cat\.safetensors' is not in the loras folders"
    ):
        recipe.source_of("merged", dataclasses.replace(lora, sha256="another"))


# --- what a recipe says about how to solve ---


def test_widgets_and_recipe_say_the_same(nodes):
    settings = nodes("settings")
    adapter = Adapter("a", {"x": LowRankDelta(torch.ones(1000, 4), torch.ones(4, 2000))})
    widgets = {
        "alpha": 1e-3,
        "precision": "bfloat16",
        "rank": 0,
        "kept_energy": 0.9,
        "size_mb": 0.0,
        "target": "full_output",
    }
    meant = settings.from_widgets(
        [PromptedAdapter(adapter, ("p",))], method="svd", correct_strength=True, **widgets
    )
    assert (meant.config.kept_energy, meant.config.output_dtype, meant.config.rank) == (
        0.9,
        torch.bfloat16,
        "sum",
    )
    used = dataclasses.asdict(UsedLora("a", "a.safetensors", "", 1.0, 1.0, ("p",)))
    recipe = {
        "loras": [used],
        "calibration": {},
        "config": meant.config.to_dict(),
        "strength_correction": 1.1,
    }
    found = read_recipe("file", json.dumps(recipe))
    assert (found.config, found.is_corrected) == (meant.config, meant.correct_strength)


def test_the_base_model_is_what_the_workflow_names_before_the_merge(nodes):
    prompt = {
        "1": {"inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"inputs": {"model": ["1", 0], "lora": "x"}},
        "3": {"inputs": {"ckpt_name": "other"}},
        "5": {"inputs": {"model": ["2", 0], "clip": ["gone", 1], "tasks": ["3", 0]}},
    }
    assert set(nodes("workflow").texts_upstream(prompt, "5", ("model", "clip"))) == {
        "sd15.safetensors",
        "x",
        "gone",
    }
    assert list(nodes("workflow").texts_upstream({}, "5", ("model",))) == []


def test_loras_that_the_model_carries_are_told(nodes):
    lora = types.SimpleNamespace(name="lora", loaded_keys={"a"})
    patches = {
        "net.a.weight": [(1.0, lora, 1.0, None, None)],
        "net.b.weight": [(1.0, ("diff", ()), 1.0, None, None)],
    }
    [note] = nodes("merge").carried(patches)
    assert note.startswith(
        "MODEL and CLIP carry 1 LoRA already, which count as part of the base model"
    )
    assert nodes("merge").carried({}) == []
    other = types.SimpleNamespace(
        name="lora", loaded_keys={"b"}
    )  # in another order at another weight: no order of all
    both = [
        [(1.0, value, 1.0, None, None) for value in order]
        for order in ((lora, other), (other, lora))
    ]
    [note] = nodes("merge").carried(dict(zip("ab", both, strict=True)))
    assert note.startswith("MODEL and CLIP carry 2 LoRAs already")
