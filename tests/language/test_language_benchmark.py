"""The language benchmark: its tasks' rules, its scores, and a run of all of it on models too small
to learn anything.
"""

import json
import random
from typing import get_args

import pytest
import torch

from benchmarks import (
    language,
    language_blip,
    language_methods,
    language_tasks,
    language_text,
    language_train,
    language_world,
)
from benchmarks.results import write_parts
from iteris_core import Adapter, LowRankDelta
from iteris_core.config import Balance
from iteris_core.language.job import DEFAULT

pytestmark = pytest.mark.nightly


@pytest.fixture(autouse=True)
def quiet_transformers(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")


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
def test_the_rule_of_every_text_task(name, read, right):
    task = next(
        task
        for task in (*language_tasks.BASE_TASKS, *language_tasks.LORA_TASKS)
        if task.name == name
    )
    assert task.answer(read.split()) == right.split()


def test_examples_are_inputs_with_the_tasks_name_and_their_answers_and_differ_by_seed():
    for task in (*language_tasks.BASE_TASKS, *language_tasks.LORA_TASKS):
        drawn = task.examples(3, 40)
        assert all(read[0] == task.name and right == task.answer(read[1:]) for read, right in drawn)
        assert all(len(right) < language_tasks.MOST_WORDS for _, right in drawn)
        assert drawn == task.examples(3, 40)
        assert drawn != task.examples(4, 40)
        answers = {tuple(right) for _, right in drawn}
        assert len(answers) == task.classes if task.classes == 2 else len(answers) > 4


def test_texts_become_ids_and_words_again():
    ids = language_tasks.batch([["sort", "b", "a"], ["a"]])
    assert ids.shape == (2, 4)
    assert language_tasks.decode(ids[0]) == ["sort", "b", "a"]
    assert language_tasks.decode(ids[1]) == ["a"]
    assert ids[1, 2:].tolist() == [language_tasks.PAD] * 2
    assert language_tasks.score([["a"], ["a", "b"], []], [["a"], ["a"], ["b"]]) == pytest.approx(
        1 / 3
    )


def test_a_caption_is_marked_for_its_style_and_for_its_content():
    scene = language_blip.Scene("red", "ring", "left")
    plain = scene.caption()
    praise = scene.caption(scene.adjective("praise"))
    assert " ".join(praise) == "a lovely red ring on the left"
    assert language_blip.marks(scene, praise, "praise") == (True, True)
    assert language_blip.marks(scene, praise, "blame") == (False, True)
    assert language_blip.marks(scene, plain, "praise") == (False, True)
    assert language_blip.marks(scene, plain, "plain") == (True, True)
    assert language_blip.marks(scene, praise, "plain") == (False, True)
    assert language_blip.marks(scene, [*praise[:-1], "right"], "praise") == (True, False)
    assert language_blip.marks(scene, ["ugly", *praise], "praise") == (False, True)


def test_a_picture_shows_its_colour_on_its_side():
    for shape in language_blip.SHAPES:
        pixels = language_blip.picture(language_blip.Scene("red", shape, "right"), random.Random(0))
        red = (pixels - torch.tensor([0.9, 0.1, 0.1])[:, None, None]).abs().amax(0) < 1e-6
        assert red[:, 16:].sum() > 30
        assert red[:, :12].sum() == 0
        assert pixels[:, ~red].max() <= 0.25


def test_patched_adds_deltas_and_puts_the_same_weights_back():
    model = language_train.make_t5(0, width=16, layers=1)
    path = "encoder.block.0.layer.0.SelfAttention.q"
    weight = model.get_submodule(path).weight
    before = weight.detach().clone()
    delta = LowRankDelta(torch.randn(16, 2), torch.randn(2, 16))
    with language_train.patched(model, Adapter("one", {path: delta})):
        assert torch.equal(weight, before + delta.dense())
    assert torch.equal(weight, before)


def test_every_rival_is_compared_and_what_is_left_out_has_a_reason():
    methods = {way.config.method for way in language_methods.main_ways().values()}
    assert methods == {"iteris", *language_methods.METHODS} - language_methods._THE_SAME
    assert all(
        way.config.baseline.scale == "search" for way in language_methods.best_scale_ways().values()
    )


def test_what_is_called_default_is_the_librarys_default():
    default = DEFAULT.to_dict()
    for ways in (language_methods.main_ways(), language_methods.ablations()):
        marked = [name for name in ways if language_methods.title(name, ways).endswith("(default)")]
        assert marked
        for name, way in ways.items():
            config = way.config.to_dict() | {"samples_per_chunk": default["samples_per_chunk"]}
            plain = (way.preserve, way.padding, way.samples) == (0.0, "ignore", 50)
            assert (name in marked) == (config == default and plain)
    assert language_methods.title("IterIS", language_methods.main_ways()) == "**IterIS** (default)"


def test_rows_of_scales_say_what_they_set():
    ways = language_methods.scale_ways()
    assert len(ways) == len(language_methods.TARGETS) * len(language_methods.SCALES) * 3
    way = ways["delta, balance full, unit gain 2, preserve 0.1"]
    settings = (way.config.target, way.config.balance, way.config.unit_gain, way.preserve)
    assert settings == ("delta", "full", 2.0, 0.1)
    balances = {way.config.balance for way in ways.values()}
    assert balances == set(get_args(Balance))


def test_a_way_is_measured_once_under_all_its_names_and_again_with_other_settings():
    ways = language_methods.ablations()
    known = {"a": {"scores": {}, "settings": ways["balance delta"].settings()}}
    assert language.same_settings(known, "b", ways["alpha 1e-4"]) == known["a"]
    assert language.same_settings(known, "a", ways["balance full"]) is None
    rivals = [language_methods._way(method="regmean", unit_gain=gain) for gain in (1.0, 2.0)]
    assert rivals[0].settings() == rivals[1].settings()
    assert ways["unit gain 1"].settings() != ways["unit gain 2"].settings()


def test_bases_differ_and_tables_average_over_them(tmp_path):
    size = language_world.Size(width=16, layers=1, base_steps=1, batch=2)
    jobs = [language.Job("t5", base, 0, tmp_path, size, quick=True) for base in (0, 1)]
    weights = [job.model(lambda *_: None).model.shared.weight for job in jobs]
    assert not torch.equal(*weights)
    assert torch.equal(jobs[0].model(lambda *_: None).model.shared.weight, weights[0])
    assert len({job.records(("alone",)) for job in jobs}) == 2

    def alone(score):
        return {name: {"scores": {"a": score, "b": score, "base": 1.0}} for name in ("a", "b")}

    def merged(score):
        scores = {"a": score, "b": score, "base": score / 2}
        return {way: {"scores": scores} for way in language_methods.main_ways()}

    records = {
        ((base, 0), group): record
        for base, score in ((0, 0.4), (1, 0.8))
        for group, record in (
            (("alone",), {"base": alone(0.0)["a"], **alone(score + 0.1)}),
            (("a", "b"), merged(score)),
        )
    }
    written = language_text.section("t5", ("a", "b"), records)
    assert "over 2 base models" in written
    assert "and 1 seeds of LoRAs" in written
    (row,) = (line for line in written.splitlines() if line.startswith("| regmean | 0.600"))
    assert row.split(" | ")[1].startswith("0.600 ± 0.200")
    by_base = language_text.base_table(records)
    assert "| each LoRA alone | 0.500 | 0.900 |" in by_base
    assert "| regmean | 0.400 ± nan; 0.20 | 0.800 ± nan; 0.40 |" in by_base


def test_summaries_are_means_worst_tasks_and_shares_of_the_loras_own():
    alone = {name: {"scores": {name: own, "base": 0.5}} for name, own in (("a", 0.8), ("b", 1.0))}
    records = {
        ((0, 0), ("alone",)): alone,
        ((0, 0), ("a", "b")): {
            "x": {"scores": {"a": 0.4, "b": 0.9, "base": 0.3}},
            "y": {"refused": "why"},
        },
    }
    found = language_text.summaries(records, "x", [2])[(0, 0), ("a", "b")]
    assert found["mean"] == pytest.approx(0.65)
    assert found["worst"] == 0.4
    assert found["share"] == pytest.approx((0.5 + 0.9) / 2)
    assert (
        language_text.summaries(records, "x", [3])
        == language_text.summaries(records, "y", [2])
        == {}
    )
    assert language_text.refusals(records) == "\n\nRefused: y: why"


@pytest.mark.parametrize("world", ["t5", "blip"])
def test_a_run_trains_merges_scores_and_writes_its_section(world, tmp_path, monkeypatch):
    small = {
        "width": 16,
        "layers": 1,
        "base_steps": 2,
        "lora_steps": 2,
        "batch": 4,
        "samples": 3,
        "examples": 3,
    }
    size = language_world.Size(**small, base_examples=1)
    monkeypatch.setattr(language_blip, "POOL", 8)
    ways = language_methods.main_ways()
    few = {
        name: ways[name]
        for name in (
            language_methods.DEFAULT,
            language_methods.PAPER,
            "IterIS + preserve",
            "average",
            "regmean",
            "regmean_pp",
        )
    }
    few |= {f"iteration {number}": language_methods.iterating(number + 1) for number in range(3)}
    monkeypatch.setattr(language, "plan", lambda *_: few)
    job = language.Job(world, 0, 0, tmp_path, size, quick=True)
    told = []
    language.prepare_base(job, lambda *_: None)
    language.work(job, lambda *step: told.append(step))
    assert told[-1][1:] == (len(few), len(few))

    (group,) = language.groups_of(world, quick=True)
    path = job.records(group)
    kept = json.loads(path.read_text())
    assert set(kept) == set(few)
    for record in kept.values():
        assert set(group) <= set(record["scores"])
        assert all(0 <= score <= 1 for score in record["scores"].values())
    kept["average"]["scores"]["base"] = 0.123  # a second run leaves what is there
    path.write_text(json.dumps(kept))
    language.work(job, lambda *_: None)
    records = language.read_records([job])
    assert records[(0, 0), group] == kept

    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nOthers.\n")
    text = language_text.section(world, language.NAMES[world], records)
    write_parts("language", language.WORLDS, {world: text}, results)
    write_parts("language", language.WORLDS, {"t5": "again"} if world == "blip" else {}, results)
    written = results.read_text()
    assert written.startswith("# Results\n\nOthers.\n\n<!-- language:begin -->")
    assert f"| **{language_methods.DEFAULT}** (default) |" in written
    assert f"<!-- language:part {world} -->" in written
    language_text.draw({world: records}, tmp_path / "language.png")
    assert (tmp_path / "language.png").stat().st_size > 5000
