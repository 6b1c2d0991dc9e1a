"""The language benchmark: its tasks' rules, its scores, and a run of all of it on models too small to learn anything."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from iteris_core import Adapter, LowRankDelta

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("methods", "tasks", "train", "world", "blip", "prose", "text")


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules, which import each other by their own names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        found = {name: __import__(f"language_{name}") for name in MODULES}
        yield SimpleNamespace(run=__import__("language"), **found)
    for name in [name for name in sys.modules if name.startswith("language")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "read", "right"),
    [
        ("sort", "d a c", "a c d"),
        ("descend", "d a c", "d c a"),
        ("reverse", "d a c", "c a d"),
        ("rotate", "d a c", "a c d"),
        ("drop", "b a e c", "b c"),
        ("count", "b a e a", "three"),
        ("same", "b a e b", "yes"),
        ("same", "b a e", "no"),
        ("order", "d a e", "yes"),
        ("order", "d e a", "no"),
        ("later", "saturday three", "tuesday"),
        ("earlier", "monday one", "sunday"),
        ("feeling", "the film was not good", "negative"),
        ("feeling", "the film was not very dull", "positive"),
        ("mood", "the film was not good", "yes"),
        ("mood", "the film was very good", "no"),
    ],
)
def test_the_rule_of_every_text_task(bench, name, read, right):
    task = next(task for task in (*bench.tasks.BASE_TASKS, *bench.tasks.LORA_TASKS) if task.name == name)
    assert task.answer(read.split()) == right.split()


def test_examples_are_inputs_with_the_tasks_name_and_their_answers_and_differ_by_seed(bench):
    for task in (*bench.tasks.BASE_TASKS, *bench.tasks.LORA_TASKS):
        drawn = task.examples(3, 40)
        assert all(read[0] == task.name and right == task.answer(read[1:]) for read, right in drawn)
        assert all(len(right) < bench.tasks.MOST_WORDS for _, right in drawn)
        assert drawn == task.examples(3, 40)
        assert drawn != task.examples(4, 40)
        answers = {tuple(right) for _, right in drawn}
        assert len(answers) == task.classes if task.classes == 2 else len(answers) > 4


def test_texts_become_ids_and_words_again(bench):
    ids = bench.tasks.batch([["sort", "b", "a"], ["a"]])
    assert ids.shape == (2, 4)
    assert bench.tasks.decode(ids[0]) == ["sort", "b", "a"]
    assert bench.tasks.decode(ids[1]) == ["a"]
    assert ids[1, 2:].tolist() == [bench.tasks.PAD] * 2
    assert bench.tasks.score([["a"], ["a", "b"], []], [["a"], ["a"], ["b"]]) == pytest.approx(1 / 3)


def test_a_caption_is_marked_for_its_style_and_for_its_content(bench):
    scene = bench.blip.Scene("red", "ring", "left")
    plain, praise = scene.caption(), scene.caption(scene.adjective("praise"))
    assert " ".join(praise) == "a lovely red ring on the left"
    assert bench.blip.marks(scene, praise, "praise") == (True, True)
    assert bench.blip.marks(scene, praise, "blame") == (False, True)
    assert bench.blip.marks(scene, plain, "praise") == (False, True)
    assert bench.blip.marks(scene, plain, "plain") == (True, True)
    assert bench.blip.marks(scene, praise, "plain") == (False, True)
    assert bench.blip.marks(scene, [*praise[:-1], "right"], "praise") == (True, False)
    assert bench.blip.marks(scene, ["ugly", *praise], "praise") == (False, True)


def test_a_picture_shows_its_colour_on_its_side(bench):
    for shape in bench.blip.SHAPES:
        pixels = bench.blip.picture(bench.blip.Scene("red", shape, "right"), random.Random(0))
        red = (pixels - torch.tensor([0.9, 0.1, 0.1])[:, None, None]).abs().amax(0) < 1e-6
        assert red[:, 16:].sum() > 30
        assert red[:, :12].sum() == 0
        assert pixels[:, ~red].max() <= 0.25


def test_patched_adds_deltas_and_puts_the_same_weights_back(bench):
    model = bench.train.make_t5(0, width=16, layers=1)
    path = "encoder.block.0.layer.0.SelfAttention.q"
    weight = model.get_submodule(path).weight
    before = weight.detach().clone()
    delta = LowRankDelta(torch.randn(16, 2), torch.randn(2, 16))
    with bench.train.patched(model, Adapter("one", {path: delta})):
        assert torch.equal(weight, before + delta.dense())
    assert torch.equal(weight, before)


def test_every_rival_is_compared_and_what_is_left_out_has_a_reason(bench):
    methods = {way.config.method for way in bench.methods.main_ways().values()}
    assert methods == {"iteris", *bench.methods.METHODS} - bench.methods._THE_SAME
    assert all(way.config.baseline.scale == "search" for way in bench.methods.best_scale_ways().values())


def test_summaries_are_means_worst_tasks_and_shares_of_the_loras_own(bench):
    alone = {name: {"scores": {name: own, "base": 0.5}} for name, own in (("a", 0.8), ("b", 1.0))}
    records = {
        (0, ("alone",)): alone,
        (0, ("a", "b")): {"x": {"scores": {"a": 0.4, "b": 0.9, "base": 0.3}}, "y": {"refused": "why"}},
    }
    found = bench.text.summaries(records, "x", [2])[0, ("a", "b")]
    assert found["mean"] == pytest.approx(0.65)
    assert found["worst"] == 0.4
    assert found["share"] == pytest.approx((0.5 + 0.9) / 2)
    assert bench.text.summaries(records, "x", [3]) == bench.text.summaries(records, "y", [2]) == {}
    assert bench.text.refusals(records) == "\n\nRefused: y: why"


@pytest.mark.parametrize("world", ["t5", "blip"])
def test_a_run_trains_merges_scores_and_writes_its_section(bench, world, tmp_path, monkeypatch):
    small = {"width": 16, "layers": 1, "base_steps": 2, "lora_steps": 2, "batch": 4, "samples": 3, "examples": 3}
    size = bench.world.Size(**small, base_examples=1)
    monkeypatch.setattr(bench.run, "HERE", tmp_path)
    monkeypatch.setattr(bench.blip, "POOL", 8)
    ways = bench.methods.main_ways()
    few = {name: ways[name] for name in (bench.methods.SWEEP, "IterIS + preserve", "average", "regmean", "regmean_pp")}
    few |= {f"iteration {number}": bench.methods.iterating(number + 1) for number in range(3)}
    monkeypatch.setattr(bench.run, "plan", lambda *_: few)
    job, told = bench.run.Job(world, 0, tmp_path, size, quick=True), []
    bench.run.prepare_base(job, lambda *_: None)
    bench.run.work(job, lambda *step: told.append(step))
    assert told[-1][1:] == (len(few), len(few))

    (group,) = bench.run.groups_of(world, quick=True)
    path = job.records(group)
    kept = json.loads(path.read_text())
    assert set(kept) == set(few)
    for record in kept.values():
        assert set(group) <= set(record["scores"])
        assert all(0 <= score <= 1 for score in record["scores"].values())
    kept["average"]["scores"]["base"] = 0.123  # a second run leaves what is there
    path.write_text(json.dumps(kept))
    bench.run.work(job, lambda *_: None)
    records = bench.run.read_records([job])
    assert records[0, group] == kept

    (tmp_path / "RESULTS.md").write_text("# Results\n\nOthers.\n")
    bench.run.write({world: bench.text.section(world, bench.run.NAMES[world], records)})
    bench.run.write({"t5": "again"} if world == "blip" else {})
    written = (tmp_path / "RESULTS.md").read_text()
    assert written.startswith("# Results\n\nOthers.\n\n<!-- language:begin -->")
    assert f"| **{bench.methods.SWEEP}** |" in written
    assert f"<!-- language:part {world} -->" in written
    bench.text.draw({world: records}, tmp_path / "language.png")
    assert (tmp_path / "language.png").stat().st_size > 5000
