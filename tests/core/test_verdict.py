"""The verdict on a merge: levels, what to do, and the line against stacking."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from iteris_core.diffusion.calibration import Calibration
from iteris_core.report.records import (
    Interference,
    LayerReport,
    MergeReport,
    TaskAtLayerReport,
    TaskFidelity,
    Tried,
)
from iteris_core.report.verdict import GOOD_FROM, LOST_BELOW, Advice, Against

RESULTS = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"


def own(name, error, strength=1.0, averaged=None):
    return TaskFidelity(name, error, strength, 4, averaged=averaged)


def layer(leaks=(), cut=0.0, asked=True):
    """Return a layer with leaks (task, other, stacked, merged), and a cut that was asked for."""
    tasks = {}
    for task, other, stacked, merged in leaks:
        tasks.setdefault(task, []).append(Interference(other, stacked, merged))
    entries = [
        TaskAtLayerReport(task, 0.5, 1.0, 8, interference=tuple(found))
        for task, found in tasks.items()
    ]
    return LayerReport("x", 4, tuple(entries), cut=cut, plain_cut=0.9 if asked else None)


def report(*fidelity, layers=(), calibration=None, **more):
    settings = {"calibration": {"trajectories": 20, "held_out": 4, **(calibration or {})}}
    return MergeReport(tuple(layers), fidelity=fidelity, settings=settings, **more)


def advice(made, lora="cat"):
    """Return what to do about a LoRA, which may be something for the whole merge."""
    (kept,) = [kept for kept in made.verdict.loras if kept.lora == lora]
    assert kept.advice is None or made.verdict.advice is None
    return kept.advice or made.verdict.advice


@pytest.mark.parametrize(
    ("error", "kept", "level"),
    [
        (0.0, 1.0, "good"),
        (1 - GOOD_FROM, GOOD_FROM, "good"),
        (1 - GOOD_FROM + 1e-6, GOOD_FROM, "weak"),
        (1 - LOST_BELOW, LOST_BELOW, "weak"),
        (1 - LOST_BELOW + 1e-6, LOST_BELOW, "lost"),
        (0.96, 0.04, "lost"),
        (1.7, 0.0, "lost"),
        (math.nan, 0.0, "lost"),
        (math.inf, 0.0, "lost"),
    ],
)
def test_the_level_follows_from_the_error(error, kept, level):
    (found,) = report(own("cat", error)).verdict.loras
    assert (found.lora, found.level) == ("cat", level)
    assert found.kept == pytest.approx(kept, abs=2e-6)
    assert (found.advice is None) == (level == "good")


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.8, 1.0])
def test_of_a_merge_that_is_only_too_weak_its_strength_was_kept(strength):
    (found,) = report(own("cat", 1 - strength, strength)).verdict.loras
    assert found.kept == pytest.approx(strength)


# --- how sure it is ---


@pytest.mark.parametrize(
    ("runs", "error", "deviation", "between", "levels"),
    [
        (4, 0.2, 0.01, (0.7765, 0.8235), ("good",)),
        (4, 0.2, 0.03, (0.7295, 0.8705), ("good", "weak")),
        (4, 0.3, 0.03, (0.6295, 0.7705), ("good", "weak")),
        (4, 0.72, 0.02, (0.233, 0.327), ("weak", "lost")),
        (2, 0.5, 0.1, (0.0, 1.0), ("good", "weak", "lost")),  # Student's t of one degree: 6.3
        (100, 0.5, 0.1, (0.319, 0.681), ("weak",)),
        (4, 1.5, 0.1, (0.0, 0.0), ("lost",)),
    ],
)
def test_a_range_that_reaches_over_a_bound_names_both_levels(
    runs, error, deviation, between, levels
):
    entry = TaskFidelity("cat", error, 1.0, runs, runs=runs, deviation=deviation)
    (found,) = report(entry).verdict.loras
    assert found.between == pytest.approx(between)
    assert found.levels == levels


def test_the_range_is_told_behind_what_was_kept():
    entry = TaskFidelity("cat", 0.2, 1.0, 4, runs=4, deviation=0.03)
    first, *_ = str(report(entry)).splitlines()
    assert first == "cat: kept 80 % (73 to 87), likely good"


@pytest.mark.parametrize("error", [0.2, math.nan])
def test_without_a_spread_there_is_no_range(error):
    (found,) = report(own("cat", error)).verdict.loras
    assert (found.between, found.levels) == (None, (found.level,))


# --- what to do ---

DISTURBED = own("cat", 0.6, 0.9)
WEAK = own("cat", 0.6, 0.45)


def test_a_rival_is_told_first():
    made = report(DISTURBED, method="ties", calibration={"trajectories": 1})
    assert advice(made) == Advice("method", ("ties",))


def test_a_rival_that_was_tried_beside_iteris_is_not():
    tried = (Tried("these settings", 0.9, ()), Tried("NP-LoRA", 0.6, ()))
    assert advice(report(DISTURBED, method="np_lora", tried=tried)) == Advice("prompts")


@pytest.mark.parametrize(("runs", "kind"), [(1, "runs"), (4, "runs"), (5, "prompts")])
def test_few_sampling_runs(runs, kind):
    assert advice(report(DISTURBED, calibration={"trajectories": runs})) == Advice(kind)


def test_a_cut_that_costs_most():
    assert advice(report(DISTURBED, layers=[layer(cut=0.31)])) == Advice("rank")
    assert advice(report(DISTURBED, layers=[layer(cut=0.29)])) == Advice("prompts")
    unasked = report(DISTURBED, layers=[layer(cut=0.5, asked=False)])
    assert advice(unasked) == Advice("prompts"), "full_output is cut to the sum of the ranks"


def test_weaker_than_the_others_or_all_weak():
    assert advice(report(WEAK, own("dog", 0.2))) == Advice("weight")
    assert advice(report(WEAK, own("dog", 0.55, 0.45))) == Advice("stronger")
    assert advice(report(WEAK)) == Advice("stronger")


@pytest.mark.parametrize("error", [1.2, math.nan, math.inf])
def test_worse_than_without_any_lora(error):
    assert advice(report(own("cat", error, 1.4))) == Advice("weaker")


def test_another_lora_that_gets_into_its_prompts_is_named():
    def leaking(of_dog, of_ink):
        pairs = [("cat", "dog", 1.0, of_dog), ("cat", "ink", 1.0, of_ink), ("dog", "cat", 1.0, 0.9)]
        return report(DISTURBED, own("dog", 0.1), own("ink", 0.1), layers=[layer(pairs)])

    assert advice(leaking(0.2, 0.4)) == Advice("apart", ("ink",))
    assert advice(leaking(0.4, -0.1)) == Advice("apart", ("dog",))
    assert advice(leaking(0.2, 0.2)) == Advice("fewer")


def test_without_any_of_these_it_is_the_prompts():
    assert advice(report(DISTURBED)) == Advice("prompts")
    assert advice(report(DISTURBED, own("dog", 0.1))) == Advice("prompts")
    assert advice(report(DISTURBED, own("dog", 0.1), own("ink", 0.1))) == Advice("fewer")


def test_only_what_is_not_good_gets_advice():
    made = report(DISTURBED, own("dog", 0.1))
    assert advice(made, "dog") is None
    assert report(own("cat", 0.1), method="ties").verdict.advice is None


def test_what_explains_the_loss_of_all_is_said_once():
    made = report(DISTURBED, own("dog", 0.9, 0.1), method="ties")
    assert str(made).splitlines()[:3] == [
        "cat: kept 40 %, weak",
        "dog: kept 10 %, lost",
        "merge with iteris instead of ties",
    ]


# --- against what is done without a merge ---


def test_the_merge_against_the_stack_and_the_average():
    pairs = [
        ("cat", "dog", 1.0, 0.1),
        ("dog", "cat", 1.4, -0.3),
        ("base model (preserve)", "cat", 9.0, 9.0),
    ]
    made = report(
        own("cat", 0.2, averaged=0.5),
        own("dog", 0.1, averaged=0.9),
        TaskFidelity("cat + dog", 0.9, 0.5, 4, "together", averaged=0.9),
        TaskFidelity("base model", 0.29, None, 4, "base", averaged=0.5),
        layers=[layer(pairs)],
    )
    assert [kept.lora for kept in made.verdict.loras] == ["cat", "dog"]
    expected = Against(*map(pytest.approx, (0.2, 1.2, 0.29, 0.3)))
    assert made.verdict.against == expected


def test_nobody_stacks_one_lora():
    made = report(own("cat", 0.2), TaskFidelity("base model", 0.9, None, 4, "base"))
    assert made.verdict.against == Against()


def test_a_change_of_the_base_model_that_is_no_number_is_left_out():
    base = TaskFidelity("base model", math.inf, None, 4, "base")
    assert report(own("cat", 0.2), own("dog", 0.2), base).verdict.against == Against()


# --- without a check ---


def test_a_merge_that_was_not_checked_says_so_and_how_to_check():
    made = report(layers=[layer([("cat", "dog", 1.0, 0.1), ("dog", "cat", 1.0, 0.1)])])
    assert made.verdict.advice is None, "a check that has not been made yet"
    made = replace(made, settings={"calibration": {"held_out": 0}})
    assert made.verdict.loras == ()
    assert made.verdict.advice == Advice("check")
    first, second = str(made).splitlines()[:2]
    assert first == "not checked on unseen prompts: set held_out to 1 or more"
    assert second == "the LoRAs leak into each other 10 %, stacked 100 %"


def test_a_merge_that_cannot_be_checked_does_not_say_so():
    assert str(MergeReport(())) == "0 layers merged, rank 0 to 0"


# --- what is said ---


def test_the_verdict_comes_first():
    made = report(
        own("cat", 0.17, averaged=0.4),
        own("ink", 0.96, 0.11, averaged=0.6),
        TaskFidelity("base model", 0.29, None, 4, "base", averaged=0.5),
        layers=[layer([("cat", "ink", 1.02, 0.12), ("ink", "cat", 1.02, 0.12)])],
    )
    lines = str(made).splitlines()
    assert lines[:3] == [
        "cat: kept 83 %, good",
        "ink: kept 4 %, lost: raise its weight",
        "the LoRAs leak into each other 12 %, stacked 102 %; the base model changes 29 % of what "
        "stacking changes; a plain average keeps 50 %",
    ]
    assert [lines[3]] == made.warnings[:1], "it does worse than the average"


def test_a_lost_lora_is_never_silent():
    made = report(own("cat", 0.2), own("ink", 0.96, 0.11), own("dog", 0.5))
    assert made.warnings == []
    assert made.alerts == ["ink: kept 4 %, lost: raise its weight"]
    failed = report(own("ink", 1.5, 0.11))
    assert failed.alerts == ["ink: kept 0 %, lost: lower the strengths", *failed.warnings]


def test_the_json_carries_it():
    made = report(own("cat", 0.5, 0.9), own("ink", math.nan), layers=[layer()])
    again = json.loads(json.dumps(made.to_dict(), allow_nan=False))["verdict"]
    prompts, weaker = ({"kind": kind, "names": []} for kind in ("prompts", "weaker"))
    assert again["loras"] == [
        {**one, "between": None, "levels": [one["level"]], "unread": 0.0}
        for one in (
            {"lora": "cat", "kept": 0.5, "level": "weak", "advice": prompts},
            {"lora": "ink", "kept": 0.0, "level": "lost", "advice": weaker},
        )
    ]
    assert set(again["against"]) == {"leak", "leak_stacked", "base", "average"}
    assert again["advice"] is None
    rival = report(own("cat", 0.5), method="sum").to_dict()["verdict"]
    assert rival["advice"] == {"kind": "method", "names": ["sum"]}


def test_names_with_braces_are_said_as_they_are():
    pairs = [("cat", "{0}{x}", 1.0, 0.5), ("{0}{x}", "cat", 1.0, 0.1)]
    said = str(report(DISTURBED, own("{0}{x}", 0.1), layers=[layer(pairs)]))
    assert "lower the strength of {0}{x}, which" in said


def test_the_usual_number_of_runs_is_that_of_the_calibration():
    made = report(own("cat", 0.5), calibration={"trajectories": 1})
    (said,) = re.findall(r"(\d+) are usual", str(made))
    assert int(said) == Calibration().trajectories


def test_the_bounds_are_those_of_the_results():
    text = RESULTS.read_text(encoding="utf-8")
    (section,) = re.findall(r"### The levels of the verdict\n(.*?)\n### ", text, re.DOTALL)
    assert f"below {LOST_BELOW:g}" in section and f"from {GOOD_FROM:g} on" in section
