"""What Compare draws: which prompts, in which ways, and what it refuses before any work."""

import dataclasses
import types

import pytest
import torch
from fake_host import use
from iteris_pack.nodes import compare
from iteris_pack.nodes.compare import Compare
from iteris_pack.nodes.pictures import table
from iteris_pack.nodes.sockets import MergedLora

from iteris_core import (
    Adapter,
    CalibrationError,
    ConfigError,
    IterisError,
    LowRankDelta,
    MergeReport,
)
from iteris_core.diffusion.lora_use import LoadedLora

DOG = use("people/dog", ("a photo of a sks dog", "a sks dog runs"), trigger="a sks dog")
CAT = use("cat", ("a photo of a cat on a mat",), trigger="a cat", strength_model=0.8)
INK = use("ink", ("a house, ink style",), trigger="in ink style", kind="style", strength_clip=0.5)


def named(text, uses):
    """Return each row's prompt, and the names of its pictures."""
    rows, taken = compare.rows_of(text, uses)
    names = compare.names_of(uses)
    return [(row.prompt, [names[way] for way in row.ways]) for row in rows], taken


def test_each_lora_has_a_row_of_its_own_ways_below_one_in_which_they_meet():
    """One LoRA meets nobody and is not stacked, and one without prompts has no row."""
    rows, taken = named("", [DOG, CAT, INK])
    assert rows == [
        ("a sks dog and a cat, in ink style", ["base model", "stacked", "merged"]),
        ("a photo of a sks dog", ["dog", "stacked", "merged"]),
        ("a photo of a cat on a mat", ["cat 0.8/1", "stacked", "merged"]),
        ("a house, ink style", ["ink 1/0.5", "stacked", "merged"]),
    ]
    assert taken == []
    alone = [("a photo of a sks dog", ["base model", "dog", "merged"])]
    assert named("\n \n", [DOG]) == (alone, [])
    rows, _ = named("", [use("silent", ()), CAT])
    assert rows == [("a photo of a cat on a mat", ["cat 0.8/1", "stacked", "merged"])]
    bird = use("bird", ("a bird",))
    assert compare.meeting_of([DOG, CAT, bird]) == "a sks dog, a cat and a bird"
    assert compare.meeting_of([INK, INK]) == "in ink style, in ink style"


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("a dog\n\n  <lora:dog:0.8> a cat \n", "<lora:dog:0.8>"),
        ("a dog\nBREAK\na cat", "BREAK"),
        ("a dog\n<lora:dog:0.8>\na cat", "<lora:dog:0.8>"),
        ("a dog\nNegative prompt: a fox\na cat", "Negative prompt: …"),
    ],
)
def test_each_line_of_the_users_that_is_a_prompt_is_a_row(text, taken):
    every = ["base model", "dog", "cat 0.8/1", "stacked", "merged"]
    said = f"taken out of the prompts: {taken}"
    assert named(text, [DOG, CAT]) == ([("a dog", every), ("a cat", every)], [said])


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
        compare.rows_of(text, uses)


def test_the_ways_are_named_and_worn_alike():
    dog, cat = (Adapter(name, {}) for name in "ab")
    assert compare.names_of([DOG, CAT]) == ["base model", "dog", "cat 0.8/1", "stacked", "merged"]
    assert compare.worn_of([dog, cat]) == [[], [dog], [cat], [dog, cat]]
    assert compare.names_of([DOG]) == ["base model", "dog", "merged"]  # stacked would be the same
    assert compare.worn_of([dog]) == [[], [dog]]


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

    def draw(base, vae, ways, wanted, how, progress):
        asked.append(([(ways[way][0], prompt) for way, prompt in wanted], how))
        progress(1, 2)
        return [torch.full((16, 16, 3), number / 20) for number in range(len(wanted))]

    def saved(images, cls):
        """Save nothing: a file is called as its picture is coloured."""
        with_workflow = "" if cls is None else " with its workflow"
        files = [f"{image[..., 0, 0, 0].item():.2f}{with_workflow}" for image in images]
        return types.SimpleNamespace(as_dict=lambda: {"images": files})

    def drawn_table(*what):
        tables.append(what)
        return table(*what)

    shown, tables = [], []
    replace_host(
        ComfyModel=Base,
        Drawing=types.SimpleNamespace,
        check_vae=lambda vae, base: None,
        draw=draw,
        find_model=lambda name: name if name.endswith("ckpt.safetensors") else None,
        sampler_names=lambda: ["euler"],
        scheduler_names=lambda: ["simple"],
        stage_progress=lambda node_id: lambda *step: shown.append(step[1:]),
        show_text=lambda node_id, text: shown.append(text),
    )
    monkeypatch.setattr(compare, "ui", types.SimpleNamespace(PreviewImage=saved))
    monkeypatch.setattr(compare, "table", drawn_table)
    hidden = types.SimpleNamespace(unique_id="1", prompt=None)
    monkeypatch.setattr(Compare, "hidden", hidden, raising=False)
    patcher = types.SimpleNamespace(model=None, patches={}, patcher=None, cond_stage_model=None)
    vae = types.SimpleNamespace(decode=None)
    given = {"model": patcher, "clip": patcher, "vae": vae, "merged": merged, "prompt": ""}
    given |= {"seed": 3, "steps": 2, "cfg": 0.0}

    def execute(**inputs):
        output = Compare.execute(**given | inputs)
        return output, *asked[-1], shown

    execute.tables = tables
    return execute


def test_nine_pictures_of_two_loras_are_drawn_and_shown(run):
    output, drawn, how, shown = run()
    both = ("people/dog", "cat")
    prompts = ["a sks dog and a cat", "a photo of a sks dog", "a photo of a cat on a mat"]
    assert drawn == [
        *((worn, prompts[0]) for worn in [(), both, ("merged",)]),
        *((worn, prompts[1]) for worn in [("people/dog",), both, ("merged",)]),
        *((worn, prompts[2]) for worn in [("cat",), both, ("merged",)]),
    ]
    assert (how.width, how.height, how.cfg, how.seed, how.steps) == (512, 512, 7.0, 3, 2)
    whole, of_merge = output.args
    assert whole.ndim == 4 and whole.shape[0] == 1
    assert of_merge[:, 0, 0, 0].tolist() == pytest.approx([2 / 20, 5 / 20, 8 / 20])
    [cost] = output.ui["iteris_drawn"]
    assert cost.pop("seconds") >= 0
    assert cost == {"pictures": 9, "steps": 2, "size": [0, 0], "own": 9, "line": 5}
    assert shown == [(1, 2), output.ui["text"][0]]
    facts = "SD1.5, 512 x 512, 2 steps, cfg 7, euler simple, seed 3"
    assert shown[-1].splitlines() == [*prompts, facts]
    rows = output.ui["iteris_tiles"]  # for the page, each picture by itself
    assert [row["prompt"] for row in rows] == prompts
    assert [row["names"][0] for row in rows] == ["base model", "dog", "cat 0.8/1"]
    files = [file for row in rows for file in row["pictures"]]
    assert files == [f"{number / 20:.2f}" for number in range(9)], "without their workflow"


def test_a_line_and_a_size_of_ones_own(run):
    output, drawn, how, _ = run(prompt="a dog", width=640, height=64, cfg=1.0)
    assert [prompt for _, prompt in drawn] == ["a dog"] * 5
    assert (how.width, how.height, how.cfg) == (640, 64, 1.0)
    [cost] = output.ui["iteris_drawn"]
    assert (cost["pictures"], cost["own"], cost["size"]) == (5, 9, [640, 64])


def test_a_comparison_says_by_what_it_was_drawn(run, monkeypatch):
    prompt = {
        "1": {"inputs": {"model": ["2", 0], "merged": ["5", 3], "prompt": "other ckpt"}},
        "2": {"inputs": {"model": ["3", 0], "lora_name": "turbo.safetensors"}},
        "3": {"inputs": {"ckpt_name": "sd\\my_ckpt.safetensors"}},
        "5": {"inputs": {"model": ["4", 0]}},
        "4": {"inputs": {"ckpt_name": "of_the_merge_ckpt.safetensors"}},
    }
    monkeypatch.setattr(Compare.hidden, "prompt", prompt)
    names = ["b_ckpt.safetensors", "x/a_ckpt.safetensors", "cat", "b_ckpt.safetensors"]
    assert compare.base_name(names) == "b_ckpt + a_ckpt"
    output, *_ = run(width=640, height=64, caption="  Dog meets cat ")
    _, title, verdict, facts = run.tables[-1]
    assert facts == ["my_ckpt", "640 x 64", "2 steps", "cfg 7", "euler simple", "seed 3"]
    assert output.ui["text"][0].endswith(f"\n{', '.join(facts)}")
    assert (title, verdict) == ("Dog meets cat", [])
    run(caption=" ")
    assert run.tables[-1][1] == ""


def test_a_comparison_says_what_the_check_has_found(run, merged):
    found = [
        types.SimpleNamespace(lora="people/dog", level="good"),
        types.SimpleNamespace(lora="cat", level="lost"),
    ]

    class Report(MergeReport):
        verdict = types.SimpleNamespace(loras=found)

    run(merged=dataclasses.replace(merged, report=Report(())))
    assert run.tables[-1][2] == ["dog good", "cat lost"]
    run(merged=dataclasses.replace(merged, report=MergeReport(())))
    assert run.tables[-1][2] == [], "a merge without a check"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"width": 500}, "width is 500; it must be a multiple of 16"),
        ({"height": 24}, "height is 24; it must be a multiple of 16"),
        ({"prompt": "a dog\n" * 81}, "81 prompts are 405 pictures, and 400 are the most"),
        ({"sampler": "none"}, "sampler is 'none', which is not in its list"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(run, replace_host, inputs, said):
    def never(*_):
        raise AssertionError

    replace_host(ComfyModel=never)
    with pytest.raises(ConfigError, match=said):
        run(**inputs)


def test_a_model_that_carries_the_merge_or_is_of_another_family_is_refused(run, monkeypatch):
    with monkeypatch.context() as carrying:
        carrying.setattr(Base, "carried", True)
        with pytest.raises(IterisError, match="carries the merged LoRA already"):
            run()
    family = types.SimpleNamespace(name="SDXL", resolution=1024, guidance=6.0)
    monkeypatch.setattr(Base, "family", family)
    with pytest.raises(IterisError, match=r"the MODEL is SDXL, and the merged LoRA is for SD1\.5"):
        run()
