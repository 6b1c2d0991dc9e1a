"""The verdict on a merge: levels, two in one picture, what to do, and the line against stacking."""

import math
from dataclasses import replace

import pytest

from iteris_core.report.layers import Interference, LayerReport, TaskAtLayerReport
from iteris_core.report.records import MergeReport
from iteris_core.report.runs import RunFidelity, TaskFidelity
from iteris_core.report.verdict import (
    APART_FROM,
    GOOD_FROM,
    LOST_BELOW,
    TOGETHER_UP_TO,
    Advice,
    Against,
)


def own(name, error, strength=None, kind="own"):
    """Return a LoRA's figures; without a strength, it is only too weak."""
    return TaskFidelity(name, error, 1 - error if strength is None else strength, 4, kind)


def of_runs(name, *runs):
    """Return a LoRA's figures of runs (error, strength)."""
    return TaskFidelity.of(name, [RunFidelity(*run) for run in runs], len(runs))


def layer(leaks=(), cut=0.0, asked=True):
    """Return a layer with leaks (task, other, stacked, merged), and a cut that was asked for."""
    tasks = {}
    for task, other, stacked, merged in leaks:
        tasks.setdefault(task, []).append(Interference(other, stacked, merged))
    entries = [
        TaskAtLayerReport(task, 0.5, 1.0, 8, interference=tuple(found))
        for task, found in tasks.items()
    ]
    return LayerReport("x", 4, tuple(entries), cut=cut, is_asked=asked)


def report(*fidelity, layers=(), calibration=None, **more):
    settings = {"calibration": {"trajectories": 20, "held_out": 4, **(calibration or {})}}
    return MergeReport(tuple(layers), fidelity=fidelity, settings=settings, **more)


def advice(made):
    """Return what to do about the cat, which may be something for the whole merge."""
    (kept,) = [kept for kept in made.verdict.loras if kept.lora == "cat"]
    assert kept.advice is None or made.verdict.advice is None
    return kept.advice or made.verdict.advice


def test_the_level_follows_from_what_was_kept():
    for error, kept, level in (
        (0.0, 1.0, "good"),
        (1 - GOOD_FROM - 1e-6, GOOD_FROM, "good"),
        (1 - GOOD_FROM + 1e-6, GOOD_FROM, "weak"),
        (1 - LOST_BELOW - 1e-6, LOST_BELOW, "weak"),
        (1 - LOST_BELOW + 1e-6, LOST_BELOW, "lost"),
        (1.7, 0.0, "lost"),
        (math.nan, 0.0, "lost"),
        (math.inf, 0.0, "lost"),
    ):
        (found,) = report(own("cat", error)).verdict.loras
        assert (found.lora, found.level, found.between) == ("cat", level, None)
        assert found.kept == pytest.approx(kept, abs=2e-6)


def test_what_was_kept_is_the_mean_strength_of_the_pictures():
    for strengths, kept in (
        ((0.7, 0.9), 0.8),
        ((1.3, 0.7), 1.0),
        ((9.0, 0.1), 0.8),
        ((-9.0, 0.8), 0.4),
    ):
        runs = [(abs(1 - strength), strength) for strength in strengths]
        (found,) = report(of_runs("cat", *runs)).verdict.loras
        assert found.kept == pytest.approx(kept)


def test_the_range_is_that_of_the_runs_and_of_two_more_in_which_it_fails():
    for errors, between, levels in (
        ([0.2] * 4, (0.6, 0.979), None),  # two more runs may hardly show it
        ([0.1, 0.3], (0.469, 1.0), None),  # two runs alone say little about their spread
        ([0.0, -0.4], (0.6, 1.0), None),  # more than all of it is not a doubt
        ([0.0], (0.467, 1.0), ("good", "weak", "lost")),  # one run is no surer than two
        ([0.0] * 2, (0.6, 1.0), ("good", "weak", "lost")),
        ([0.0] * 3, (0.68, 1.0), ("good",)),
        ([9.0, 0.1, 0.1, 0.1], (0.343, 1.0), ("good", "weak", "lost")),
        ([1.5] * 4, (0.0, 0.179), ("lost",)),
    ):
        (found,) = report(of_runs("cat", *((error, 1 - error) for error in errors))).verdict.loras
        assert found.between == pytest.approx(between, abs=2e-3)
        assert levels in (None, found.levels)
    made = report(of_runs("cat", (0.2, 0.8), (0.2, 0.8), (0.2, 0.8), (0.2, 0.8)))
    assert "kept 80 %" in str(made) and "60 to 98" in str(made)


def test_where_pictures_disagree_nothing_is_told_but_the_level_stays():
    for strengths, told, level in (
        ((0.0, 1.06), "cat: uncertain, kept 53 %, the check's pictures leave it open", "lost"),
        ((0.1, 1.5), "cat: uncertain, kept 80 %, the check's pictures leave it open", "good"),
        ((0.4, 0.66), "cat: likely lost, kept 53 % (19 to 87)", "lost"),
    ):
        made = report(of_runs("cat", *((abs(1 - share), share) for share in strengths)))
        (found,) = made.verdict.loras
        assert str(made).splitlines()[0].startswith(told)
        assert found.level == level


def test_on_a_transformer_only_lost_is_told():
    """There the figure told no good LoRA; level and figure stay as they are."""
    kept = {"a": 0.97, "b": 0.97, "c": (GOOD_FROM + LOST_BELOW) / 2, "d": 0.1}
    loras = [own(name, 1 - share) for name, share in kept.items()]
    loras[1] = of_runs("b", (0.03, 0.97), (0.03, 0.97))
    made = report(*loras, on_transformer=True)
    said = str(made).splitlines()
    assert said[:2] == ["a: uncertain, kept 97 %", "b: uncertain, kept 97 % (58 to 100)"]
    assert said[2] == "c: uncertain, kept 66 %"
    assert said[3].startswith("d: lost, kept 10 %: ")
    why = "on models other than SDXL and SD1.5 this figure does not tell a good LoRA: look at pictures"
    assert said[4] == why and said.count(why) == 1
    unet = replace(made, on_transformer=False)
    assert why not in str(unet)
    assert [found.words for found in unet.verdict.loras] == ["good", "likely good", "weak", "lost"]
    levels = [[found.level for found in each.verdict.loras] for each in (made, unet)]
    assert levels[0] == levels[1]
    assert why not in str(report(own("d", 0.9), on_transformer=True))
    for method in ("iteris", "ties"):
        bare = report(*loras[:3], on_transformer=True, method=method).verdict
        assert bare.advice is None and not any(found.advice for found in bare.loras)


def test_two_are_likely_in_one_picture_up_to_an_error():
    for errors, expected in (
        ((0.1,), None),
        ((TOGETHER_UP_TO, TOGETHER_UP_TO), "likely"),
        ((2 * TOGETHER_UP_TO - 1, 2.0), "likely"),  # the mean, of which each is at most 1
        ((TOGETHER_UP_TO + 0.01, APART_FROM - 0.01), "uncertain"),
        ((0.8, math.nan), "unlikely"),
    ):
        halves = [own(f"{k}", error, kind="together") for k, error in enumerate(errors)]
        made = report(own("cat", 0.1), own("dog", 0.1), *halves)
        assert made.verdict.together == expected
        look = "look at a picture of them; " * (expected == "uncertain")
        to_do = f": {look}to get two subjects into one picture, set scene_weight to 0.3"
        said = f"together in one picture: {expected}{to_do * (expected != 'likely')}"
        assert (f"both {said}" in str(made).splitlines()) == (expected is not None)
        three = replace(made, fidelity=(*made.fidelity, own("ink", 0.1)))
        assert (f"two of them {said}" in str(three).splitlines()) == (expected is not None)
        assert (made.verdict.together_advice is None) == (expected in (None, "likely"))
        met = replace(made, settings={"calibration": {"scene_weight": 0.3}})
        to_do = met.verdict.together_advice
        assert to_do == (None if expected in (None, "likely") else Advice("compare"))
        assert ("measured together; look for both" in str(met)) == (to_do is not None)


@pytest.mark.parametrize(
    ("others", "more", "expected"),
    [
        ((0.1, 0.1), {"method": "ties", "layers": [layer(cut=0.9)]}, Advice("method", ("ties",))),
        ((), {"layers": [layer(cut=0.46)]}, Advice("rank")),
        ((), {"layers": [layer(cut=0.44)], "on_transformer": True}, Advice("polish")),
        ((), {"layers": [layer(cut=0.44)]}, Advice("alone")),
        ((), {"layers": [layer(cut=0.5, asked=False)]}, Advice("alone")),  # was not asked for
        ((), {"calibration": {"polish": 100}, "on_transformer": True}, Advice("alone")),
        ((0.1,), {}, Advice("priority")),
        ((0.1, 0.1), {}, Advice("fewer")),
    ],
)
def test_a_lora_that_is_lost_gets_the_advice_that_helps_most(others, more, expected):
    made = report(own("cat", 0.9), *(own(f"{k}", e) for k, e in enumerate(others)), **more)
    assert advice(made) == expected
    assert made.alerts[0].startswith("cat: lost, kept 10 %")
    both = report(own("cat", 0.9), own("dog", 0.9)).verdict
    assert both.advice == Advice("alone") and not any(kept.advice for kept in both.loras)
    assert all(kept.advice is None for kept in made.verdict.loras if kept.lora != "cat")


def test_the_merge_against_the_stack():
    base = TaskFidelity("base model", math.inf, None, 4, "base")
    assert report(own("cat", 0.2), own("dog", 0.2), base).verdict.against == Against()
    pairs = [
        ("cat", "dog", 1.0, 0.1),
        ("dog", "cat", 1.4, -0.3),
        ("base model (preserve)", "cat", 9.0, 9.0),
    ]
    figures = [own("cat", 0.2), own("dog", 0.1)]
    figures.append(TaskFidelity("cat + dog", 0.9, 0.5, 4, "together"))
    figures.append(TaskFidelity("base model", 0.29, None, 4, "base"))
    # the median over layers counts
    layers = [layer(pairs), layer(pairs), layer([(*pair[:2], 9.0, 9.0) for pair in pairs])]
    made = report(*figures, layers=layers)
    assert [kept.lora for kept in made.verdict.loras] == ["cat", "dog"]
    assert made.verdict.against == Against(*map(pytest.approx, (0.2, 1.2, 0.29)))
    less = "the LoRAs disturb each other 83 % less than stacked"
    assert f"{less}; pictures of other things change 71 % less than stacked" in str(made)
    worse = TaskFidelity("base model", 1.29, None, 4, "base")
    made = report(*figures[:-1], worse, layers=layers)
    assert "pictures of other things change 29 % more than stacked" in str(made)


def test_a_merge_that_was_not_checked_says_so_and_how_to_check():
    made = report(layers=[layer([("cat", "dog", 1.0, 0.1), ("dog", "cat", 1.0, 0.1)])])
    assert made.verdict.advice is None, "a check that has not been made yet"
    made = replace(made, can_check=True)
    assert made.verdict.loras == ()
    assert made.verdict.advice == Advice("check")
    first, second = str(made).splitlines()[:2]
    assert first == "not checked on unseen prompts: set held_out to 1 or more"
    assert second == "the LoRAs disturb each other 90 % less than stacked"
    estimated = str(replace(made, is_measured=False)).splitlines()
    by_files = "by their files, the LoRAs disturb each other 90 % less than stacked"
    assert by_files in estimated, "a leak is measured"
