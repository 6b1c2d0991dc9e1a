"""Several ways to merge, tried on the same sampling runs."""

import json
from dataclasses import replace

import pytest
from fake_host import as_used

from iteris_core import MergeConfig
from iteris_core.diffusion import job
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.choosing import loss, ways_of
from iteris_core.diffusion.job import MergeSettings, changed, merge_and_check
from iteris_core.diffusion.merging import SAMPLING_STAGE
from iteris_core.diffusion.recipe import read_recipe
from iteris_core.errors import ConfigError, SolveError
from iteris_core.report.records import TaskFidelity

CALIBRATION = Calibration(
    trajectories=4,
    timesteps=2,
    sampling_steps=4,
    resolution=64,
    cfg=3.0,
    held_out=2,
    preserve_captions=("a street", "a lake", "a cat", "a dog", "a tree"),
)


def merge(host, loras, **settings):
    steps = []
    result = merge_and_check(
        host,
        loras,
        CALIBRATION,
        MergeSettings(host.EXACT, **settings),
        lambda stage, done, total: steps.append(stage.name),
    )
    return result, steps


def test_the_best_way_on_unseen_prompts_is_kept_and_told(host):
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",))]
    result, steps = merge(host, loras, try_several=True)
    tried = result.report.tried
    assert [way.name for way in tried] == [way.name for way in ways_of(CALIBRATION, 2)]
    assert all(way.loss == loss(way.fidelity) for way in tried)
    best = min(tried, key=lambda way: way.loss)
    assert result.report.fidelity == best.fidelity
    assert result.report.notes[-1].text.endswith(f"kept: {best.name}")
    assert "reused" not in {note.kind for note in result.report.notes}  # of an earlier merge
    _, once = merge(host, loras)
    # teachers sample once for all ways
    assert steps.count(SAMPLING_STAGE) == once.count(SAMPLING_STAGE)


def test_each_way_is_the_merge_with_its_settings(host):
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",))]
    several, _ = merge(host, loras, try_several=True)
    for way, tried in zip(ways_of(CALIBRATION, 2), several.report.tried, strict=True):
        calibration, settings = changed(CALIBRATION, MergeSettings(host.EXACT), way.changes)
        alone = merge_and_check(host, loras, calibration, settings)
        assert [entry.output_error for entry in tried.fidelity] == [
            pytest.approx(entry.output_error, rel=1e-9) for entry in alone.report.fidelity
        ]


def test_the_recipe_is_that_of_the_way_that_was_kept(host):
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",))]
    result, _ = merge(host, loras, try_several=True)
    recipe = read_recipe("m.safetensors", json.dumps(result.report.settings))
    again = merge_and_check(host, loras, recipe.calibration, MergeSettings(recipe.config))
    assert host.largest_error(again.adapter, result.adapter) < 1e-9


def test_one_lora_is_not_compared_with_a_stack_of_itself(host):
    names = [way.name for way in ways_of(CALIBRATION, 1)]
    assert "stacking" not in names
    assert "no scenes" not in names


def test_ways_cannot_be_compared_without_unseen_samples(host):
    lora = as_used(host.lora("a"))
    with pytest.raises(
        ConfigError, match=r"try_several \(the preset Best\) needs samples .* held_out"
    ):
        merge_and_check(
            host,
            [lora],
            replace(CALIBRATION, held_out=0),
            MergeSettings(host.EXACT, try_several=True),
        )


def test_a_way_that_fails_is_left_out_and_told(host, monkeypatch):
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",))]
    merge_once = job.merge_diffusion

    def failing(model, loras, calibration, config, *listeners):
        if config.method == "np_lora":
            raise SolveError("no such subspace")
        return merge_once(model, loras, calibration, config, *listeners)

    monkeypatch.setattr(job, "merge_diffusion", failing)
    result, _ = merge(host, loras, try_several=True)
    names = [way.name for way in result.report.tried]
    assert "NP-LoRA" not in names
    assert len(names) == len(ways_of(CALIBRATION, 2)) - 1
    notes = [note.text for note in result.report.notes]
    assert "could not be tried: NP-LoRA (no such subspace)" in notes


def test_own_prompts_decide():
    own = [TaskFidelity("a", 0.3, 0.9, 2), TaskFidelity("b", 0.4, 0.9, 2)]
    others = [
        TaskFidelity("a beside another LoRA", 3.0, 0.1, 2, "together"),
        TaskFidelity("base", 3.0, None, 2, "base"),
    ]
    assert loss([*own, *others]) == pytest.approx((0.125) ** 0.5)


def test_ways_are_compared_with_iteris_only(host):
    settings = MergeSettings(MergeConfig(method="sum"), try_several=True)
    with pytest.raises(
        ConfigError, match=r"try_several \(the preset Best\) compares ways with iteris"
    ):
        merge_and_check(host, [host.lora("a")], CALIBRATION, settings)


def test_no_way_asks_for_more_weight_than_there_can_be():
    ways = ways_of(replace(CALIBRATION, preserve_weight=90.0), 2)
    more = next(way for way in ways if way.name == "the base model kept more")
    assert more.changes.calibration == {"preserve_weight": 100}
