"""A merge that fails says so, and one that holds does not."""

from dataclasses import replace

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


def test_a_merge_that_holds_raises_no_alarm():
    net = toy.build("attention")
    adapters = [net.adapter("cat").scaled(0.2), net.adapter("dog").scaled(0.2)]
    report = merged_and_checked(net, adapters, apart(net, adapters, 30), apart(net, adapters, 8))
    assert [kept.level for kept in report.verdict.loras] == ["good", "good"]
    assert replace(report, fidelity=()).alarms == ()
    assert report.warnings == []
    assert "\n9 layers merged" in str(report)


def test_a_ridge_that_leaves_nothing_of_the_loras_is_told_without_unseen_samples():
    net, adapters, tasks, held_out = pair()
    settings = {"alpha": 10.0, "alpha_cross": 0.0, "target": "delta", "unit_gain": 1.0}
    checked = merged_and_checked(net, adapters, tasks, held_out, **settings)
    assert {kept.level for kept in checked.verdict.loras} == {"lost"}
    assert checked.alarms == (), "there is one judge, and he has looked"
    report = replace(checked, fidelity=())
    assert [(alarm.task, alarm.than) for alarm in report.alarms] == [
        ("cat", "average"),
        ("dog", "average"),
    ]
    assert all(alarm.other < alarm.error <= 1 for alarm in report.alarms)


# --- the rule, on figures ---


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


def test_the_average_must_be_nearer_over_all_tasks_before_one_is_an_alarm():
    def of_base(residual, averaged):
        return [layer("x", cat=(0.6, 0.5, True), base=(residual, averaged, False))]

    assert alarms(layers=of_base(0.1, 0.6)) == []
    assert alarms(layers=of_base(0.7, 0.6)) == [("cat", "average")]
    assert alarms(layers=of_base(0.1, 0.2)) == [("cat", "average")]


def test_a_difference_that_is_not_worth_a_word_is_no_alarm():
    for residuals in ((0.04, 0.0), (0.505, 0.5), (1.1, 2.0)):
        assert alarms(layers=[layer("x", cat=(*residuals, True))]) == []


def test_residuals_serve_where_no_sample_was_held_out():
    failed = [layer("x", cat=(1.7, 0.5, True)), layer("y", cat=(1.6, 0.5, True))]
    assert alarms(layers=failed) == [("cat", "nothing")]
    assert alarms(TaskFidelity("cat", 0.5, 1.0, 2), layers=failed) == []
    beaten = [layer("x", cat=(0.8, 0.5, True), base=(0.5, 0.5, False))]
    assert alarms(layers=beaten) == [("cat", "average")]
    leaking = [layer("x", base=(1.6, 0.5, False))]
    assert alarms(layers=leaking) == [("base", "stack")]


def test_a_warning_names_the_blocks_of_layers_once():
    paths = [f"diffusion_model.output_blocks.3.1.attn1.{name}" for name in ("to_q", "to_k")]
    layers = tuple(layer(path, cat=(1.7, 0.5, True)) for path in paths)
    assert "worst at OUT03)" in MergeReport(layers).warnings[0]


def test_warnings_come_first_and_name_lora_layers_and_what_to_try():
    report = MergeReport((layer("x", cat=(1.5, 0.5, True)), layer("y", cat=(2.0, 0.5, True))))
    first, second, third = str(report).splitlines()[:3]
    assert first == (
        "WARNING: the merge fails cat: its layers are off by more than all that the LoRA does "
        "there (error 1.75 instead of 1.00, by the median; worst at y, x)"
    )
    assert second.startswith("Try this: give more prompts or samples")
    assert third.startswith("2 layers merged")
    assert report.to_dict()["warnings"] == [first, second]
    assert report.to_dict()["alarms"] == [
        {"task": "cat", "than": "nothing", "error": 1.75, "other": 1.0, "layers": ["y", "x"]}
    ]


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
