"""A merge that fails says so, and one that holds does not."""

import json
import math
from dataclasses import replace

import pytest
import torch
import toy

from iteris_core import Adapter, LowRankDelta, MergeConfig, Sample, Task, merge
from iteris_core.report.fidelity import fidelity
from iteris_core.report.records import (
    LayerReport,
    MergeReport,
    TaskAtLayerReport,
    TaskFidelity,
)


def merged_and_checked(net, adapters, tasks, held_out, **settings):
    """Return the report of a merge with its figures on samples that it has not seen."""
    config = MergeConfig(output_dtype=torch.float64, **settings)
    result = merge(net.network(), adapters, tasks, config)
    found = fidelity(net.network(), adapters, held_out, result.adapter)
    return replace(result.report, fidelity=found)


def pair(samples=8):
    net = toy.build("attention")
    adapters = [net.adapter("cat"), net.adapter("dog")]
    adapters = [adapter.scaled(0.5) for adapter in adapters]
    tasks = toy.own_tasks(net, adapters, samples)
    return net, adapters, tasks, toy.own_tasks(net, adapters, 8)


def apart(net, adapters, samples):
    """Return tasks whose inputs lie in two different corners, as those of two subjects do."""
    tasks = []
    for k, adapter in enumerate(adapters):
        rows = [net.make_row() for _ in range(samples)]
        for row in rows:
            for part in row:
                part.mul_(0.1)
                part[:, 2 * k : 2 * k + 2] += 3.0
        tasks.append(Task(adapter.name, [Sample(row) for row in rows], {k: 1.0}))
    return tasks


@pytest.mark.parametrize("seed", range(3))
def test_a_merge_that_holds_raises_no_alarm(seed):
    net = toy.build("attention", seed)
    adapters = [net.adapter("cat").scaled(0.2), net.adapter("dog").scaled(0.2)]
    report = merged_and_checked(net, adapters, apart(net, adapters, 30), apart(net, adapters, 8))
    assert all(entry.output_error < entry.averaged for entry in report.fidelity)
    assert report.alarms == replace(report, fidelity=()).alarms == ()
    assert report.warnings == []
    assert "\n9 layers merged" in str(report)


def test_a_ridge_far_too_small_for_the_samples_is_told_on_unseen_ones():
    net, adapters, tasks, held_out = pair(samples=1)
    report = merged_and_checked(net, adapters, tasks, held_out, alpha=1e-9)
    assert {alarm.than for alarm in report.alarms} == {"nothing"}
    assert {alarm.task for alarm in report.alarms} == {"cat", "dog"}
    assert all(alarm.unseen and alarm.error > 1 and alarm.other == 1 for alarm in report.alarms)
    worst = report.alarms[0].layers
    by_layer = {path: residual for residual, path in report.residuals(wears=True)["cat"]}
    assert list(worst) == sorted(by_layer, key=by_layer.get, reverse=True)[:3]


def test_a_ridge_that_leaves_nothing_of_the_loras_is_told_without_unseen_samples():
    net, adapters, tasks, held_out = pair()
    settings = {"alpha": 10.0, "alpha_cross": 0.0, "target": "delta", "unit_gain": 1.0}
    report = merged_and_checked(net, adapters, tasks, held_out, **settings)
    for checked in (report, replace(report, fidelity=())):
        assert [(alarm.task, alarm.than) for alarm in checked.alarms] == [
            ("cat", "average"),
            ("dog", "average"),
        ]
        assert all(alarm.other < alarm.error <= 1 for alarm in checked.alarms)
        assert {alarm.unseen for alarm in checked.alarms} == {bool(checked.fidelity)}


def test_strong_loras_that_want_opposite_things_are_told():
    net = toy.build("attention")
    strong = net.adapter("cat").scaled(3.0)
    opposite = replace(strong.scaled(-1.0), name="dog")
    tasks = toy.own_tasks(net, [strong, opposite], 8)
    held_out = toy.own_tasks(net, [strong, opposite], 8)
    report = merged_and_checked(net, [strong, opposite], tasks, held_out)
    assert report.alarms
    assert all(alarm.error > 1 for alarm in report.alarms)


# --- the rule, on figures ---


@pytest.mark.parametrize(("residual", "expected"), [(1.1, []), (1.6, ["nothing"])])
def test_residuals_of_layers_are_above_one_by_unit_gain_alone(residual, expected):
    layers = [layer("q", cat=(residual, 2.0, True), dog=(residual, 2.0, True))]
    assert alarms(layers=layers) == [(task, than) for task in ("cat", "dog") for than in expected]


def layer(path, **tasks):
    """Return a layer with task -> (residual, averaged, wears)."""
    entries = [
        TaskAtLayerReport(name, residual, 1.0, 8, wears, stacked=9.0, averaged=averaged)
        for name, (residual, averaged, wears) in tasks.items()
    ]
    return LayerReport(path, 2, tuple(entries))


def alarms(*fidelity, layers=()):
    report = MergeReport(tuple(layers), fidelity=fidelity)
    return [(alarm.task, alarm.than) for alarm in report.alarms]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(0.99, []), (1.5, ["nothing"]), (math.nan, ["nothing"]), (math.inf, ["nothing"])],
)
def test_an_output_worse_than_the_base_models_or_none_at_all_is_an_alarm(error, expected):
    assert alarms(TaskFidelity("cat", error, 0.9, 2)) == [("cat", than) for than in expected]


def test_the_base_model_may_change_less_than_by_stacking():
    assert alarms(TaskFidelity("base", 0.9, None, 2, "base")) == []
    assert alarms(TaskFidelity("base", 1.1, None, 2, "base")) == [("base", "stack")]


def test_the_average_must_be_nearer_over_all_tasks_before_one_is_an_alarm():
    cat = TaskFidelity("cat", 0.6, 0.9, 2, averaged=0.5)
    kept = TaskFidelity("base", 0.1, None, 2, "base", averaged=0.6)
    assert alarms(cat, kept) == []
    assert alarms(cat, replace(kept, output_error=0.7)) == [("cat", "average")]
    assert alarms(cat, replace(kept, averaged=0.2)) == [("cat", "average")]


def test_a_difference_that_is_not_worth_a_word_is_no_alarm():
    assert alarms(TaskFidelity("cat", 0.04, 1.0, 2, averaged=0.0)) == []
    assert alarms(TaskFidelity("cat", 0.505, 1.0, 2, averaged=0.5)) == []


def test_residuals_serve_where_no_sample_was_held_out():
    failed = [layer("x", cat=(1.7, 0.5, True)), layer("y", cat=(1.6, 0.5, True))]
    assert alarms(layers=failed) == [("cat", "nothing")]
    assert alarms(TaskFidelity("cat", 0.5, 1.0, 2), layers=failed) == []
    beaten = [layer("x", cat=(0.8, 0.5, True), base=(0.5, 0.5, False))]
    assert alarms(layers=beaten) == [("cat", "average")]
    leaking = [layer("x", base=(1.6, 0.5, False))]
    assert alarms(layers=leaking) == [("base", "stack")]


def test_an_adapter_that_is_alone_at_a_layer_is_not_compared_with_itself():
    entry = TaskAtLayerReport("cat", 0.5, 1.0, 8, stacked=0.0, averaged=0.0)
    assert alarms(layers=[LayerReport("x", 2, (entry,))]) == []


def test_a_warning_names_the_blocks_of_layers_once():
    paths = [f"diffusion_model.output_blocks.3.1.attn1.{name}" for name in ("to_q", "to_k")]
    layers = tuple(layer(path, cat=(1.7, 0.5, True)) for path in paths)
    report = MergeReport(layers, fidelity=(TaskFidelity("cat", 3.5, 0.1, 2),))
    assert "worst at OUT03)" in report.warnings[0]


def test_warnings_come_after_the_verdict_and_name_lora_layers_and_what_to_try():
    layers = (layer("x", cat=(1.3, 0.5, True)), layer("y", cat=(1.7, 0.5, True)))
    report = MergeReport(layers, fidelity=(TaskFidelity("cat", 3.5, 0.1, 2),))
    kept, first, second, third = str(report).splitlines()[:4]
    assert kept.startswith("cat: kept 0 %, lost")
    assert first == (
        "WARNING: the merge fails cat: it does worse than the base model without any LoRA (error "
        "3.50 instead of 1.00, on unseen samples; worst at y, x)"
    )
    assert second.startswith("Try this: give more prompts or samples")
    assert third.startswith("2 layers merged")
    assert report.to_dict()["warnings"] == [first, second]
    assert report.to_dict()["alarms"] == [
        {
            "task": "cat",
            "than": "nothing",
            "error": 3.5,
            "other": 1.0,
            "unseen": True,
            "layers": ["y", "x"],
        }
    ]


def test_figures_that_are_not_finite_are_null_in_json():
    report = MergeReport((), fidelity=(TaskFidelity("cat", math.inf, math.nan, 2),))
    (entry,) = json.loads(json.dumps(report.to_dict(), allow_nan=False))["fidelity"]
    assert (entry["output_error"], entry["strength"]) == (None, None)


def test_alarms_are_those_of_the_report_as_it_is():
    """Nothing is stored that a later check could leave behind."""
    report = MergeReport((layer("x", cat=(1.3, 0.5, True)),))
    assert report.alarms
    assert not replace(report, fidelity=(TaskFidelity("cat", 0.2, 1.0, 2),)).alarms


def test_an_adapter_of_one_layer_with_one_delta_is_no_failure():
    net = toy.build("one layer")
    adapter = Adapter(
        "a", {"layer": LowRankDelta(torch.randn(4, 2).double(), torch.randn(2, 6).double())}
    )
    result = merge(net.network(), [adapter], [Task("a", net.samples(3), {0: 1.0})])
    assert result.report.alarms == ()
