"""What Compare draws: which prompts, in which ways, and what it refuses before any work."""

import types

import pytest
import torch
from fake_host import use
from iteris_pack.nodes import compare
from iteris_pack.nodes.compare import Compare
from iteris_pack.nodes.sockets import MergedLora

from iteris_core import Adapter, CalibrationError, ConfigError, IterisError, LowRankDelta
from iteris_core.diffusion.lora_use import LoadedLora

DOG = use("people/dog", ("a photo of a sks dog", "a sks dog runs"), trigger="a sks dog")
CAT = use("cat", ("a photo of a cat on a mat",), trigger="a cat", strength_model=0.8)
INK = use("ink", ("a house, ink style",), trigger="in ink style", kind="style", strength_clip=0.5)


def test_each_lora_has_a_row_below_one_in_which_they_meet():
    prompts, taken = compare.prompts_of("", [DOG, CAT, INK])
    assert prompts == [
        "a sks dog and a cat, in ink style",
        "a photo of a sks dog",
        "a photo of a cat on a mat",
        "a house, ink style",
    ]
    assert taken == []


def test_one_lora_meets_nobody():
    assert compare.prompts_of("\n \n", [DOG]) == (["a photo of a sks dog"], [])


def test_three_subjects_and_styles_alone_meet_too():
    bird = use("bird", ("a bird",))
    assert compare.meeting_of([DOG, CAT, bird]) == "a sks dog, a cat and a bird"
    assert compare.meeting_of([INK, INK]) == "in ink style, in ink style"


def test_each_line_of_the_users_is_a_row():
    text = "a dog\n\n  <lora:dog:0.8> a cat \n"
    assert compare.prompts_of(text, [DOG]) == (
        ["a dog", "a cat"],
        ["taken out of the prompts: <lora:dog:0.8>"],
    )


@pytest.mark.parametrize(
    ("text", "uses", "said"),
    [
        ("<lora:dog:1>", [DOG], "prompt has nothing to draw in it"),
        ("", [use("x", ())], "prompt has nothing to draw in it"),
        ("", [], "prompt has nothing to draw in it"),
        ("a {red|blue} dog", [DOG], r"the prompt 'a {red\|blue} dog' has '{red\|blue}'"),
    ],
)
def test_a_prompt_that_draws_nothing_or_several_things_is_refused(text, uses, said):
    with pytest.raises((ConfigError, CalibrationError), match=said):
        compare.prompts_of(text, uses)


def test_the_ways_are_named_and_worn_alike():
    dog, cat, ink = (Adapter(name, {}) for name in "abc")
    assert compare.ways_of([DOG, CAT, INK]) == [
        "base model",
        "dog",
        "cat 0.8/1",
        "ink 1/0.5",
        "stacked",
    ]
    assert compare.worn_of([dog, cat, ink]) == [[], [dog], [cat], [ink], [dog, cat, ink]]
    assert compare.ways_of([DOG]) == ["base model", "dog"]  # stacked would be the same
    assert compare.worn_of([dog]) == [[], [dog]]
    assert compare.ways_of([]) == ["base model"]


class Base:
    """A model that draws nothing."""

    family = types.SimpleNamespace(name="SD1.5", resolution=512, guidance=7.0)
    carried = False

    def __init__(self, *_):
        pass

    def carries(self, adapter):
        return self.carried

    def adapter(self, used, tensors, metadata):
        return Adapter(used.name, {})

    def forget_files(self):
        pass

    def patched(self, *adapters):
        return tuple(adapter.name for adapter in adapters), "clip"


@pytest.fixture
def merged(keys):
    delta = LowRankDelta(torch.ones(6, 1), torch.ones(1, 4))
    loras = [LoadedLora(lora, Adapter(lora.name, {})) for lora in (DOG, CAT)]
    loose = {lora.use.sha256: {"x": torch.ones(1)} for lora in loras}
    return MergedLora(
        Adapter("merged", {"diffusion_model.mid.q": delta}), keys, "{}", tuple(loras), loose
    )


@pytest.fixture
def run(replace_host, monkeypatch, merged):
    """Run the node on a model that draws nothing; returns what `host.draw` was asked for."""
    asked = []

    def draw(base, vae, ways, prompts, how, progress):
        asked.append(([model for model, _ in ways], prompts, how))
        progress(1, 2)
        return [[torch.full((16, 16, 3), 0.5)] * len(ways) for _ in prompts]

    shown = []
    replace_host(
        ComfyModel=Base,
        Drawing=lambda **fields: types.SimpleNamespace(**fields),
        check_vae=lambda vae, base: None,
        draw=draw,
        sampler_names=lambda: ["euler"],
        scheduler_names=lambda: ["simple"],
        stage_progress=lambda node_id: lambda *step: shown.append(step[1:]),
        show_text=lambda node_id, text: shown.append(text),
    )
    preview = types.SimpleNamespace(
        PreviewImage=lambda *_, **__: types.SimpleNamespace(as_dict=dict)
    )
    monkeypatch.setattr(compare, "ui", preview)
    hidden = types.SimpleNamespace(unique_id="1")
    monkeypatch.setattr(Compare, "hidden", hidden, raising=False)
    patcher = types.SimpleNamespace(model=None, patches={}, patcher=None, cond_stage_model=None)
    vae = types.SimpleNamespace(decode=None)
    given = {"model": patcher, "clip": patcher, "vae": vae, "merged": merged, "prompt": ""}
    given |= {"seed": 3, "steps": 2, "cfg": 0.0}

    def execute(**inputs):
        output = Compare.execute(**given | inputs)
        return output, *asked[-1], shown

    return execute


def test_base_each_alone_stacked_and_merged_are_drawn_and_shown(run):
    output, ways, prompts, how, shown = run()
    assert ways == [(), ("people/dog",), ("cat",), ("people/dog", "cat"), ("merged",)]
    assert prompts[0] == "a sks dog and a cat"
    assert (how.width, how.height, how.cfg, how.seed, how.steps) == (512, 512, 7.0, 3, 2)
    whole, of_merge = output.args
    assert whole.ndim == 4 and whole.shape[0] == 1
    assert of_merge.shape == (3, 16, 16, 3)
    assert shown == [(1, 2), output.ui["text"][0]]
    assert shown[-1].splitlines() == [
        *prompts,
        "seed 3, 2 steps, cfg 7, euler simple, 512 x 512",
    ]


def test_a_line_and_a_size_of_ones_own(run):
    _, _, prompts, how, _ = run(prompt="a dog", width=640, height=64, cfg=1.0)
    assert (prompts, how.width, how.height, how.cfg) == (["a dog"], 640, 64, 1.0)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"width": 500}, "width is 500; it must be a multiple of 16"),
        ({"height": 24}, "height is 24; it must be a multiple of 16"),
        ({"prompt": "a dog\n" * 81}, "81 prompts in 5 ways are 405 pictures, and 400 are the most"),
        ({"sampler": "none"}, "sampler is 'none', which is not in its list"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(run, replace_host, inputs, said):
    def never(*_):
        raise AssertionError

    replace_host(ComfyModel=never)
    with pytest.raises(ConfigError, match=said):
        run(**inputs)


def test_a_model_that_carries_the_merge_is_refused(run, monkeypatch):
    monkeypatch.setattr(Base, "carried", True)
    with pytest.raises(IterisError, match="carries the merged LoRA already"):
        run()


def test_a_model_of_another_family_is_refused(run, monkeypatch):
    family = types.SimpleNamespace(name="SDXL", resolution=1024, guidance=6.0)
    monkeypatch.setattr(Base, "family", family)
    with pytest.raises(IterisError, match=r"the MODEL is SDXL, and the merged LoRA is for SD1\.5"):
        run()
