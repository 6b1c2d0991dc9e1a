"""A merge that fails says so, and one that holds does not."""

from iteris_core.report.layers import LayerReport, TaskAtLayerReport
from iteris_core.report.records import MergeReport
from iteris_core.report.runs import TaskFidelity


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


CASES = [  # task -> (residual, averaged, wears); the alarms
    ({"cat": (1.7, 0.5, True)}, [("cat", "nothing")]),
    ({"base": (1.6, 0.5, False)}, [("base", "stack")]),
    # the average must be nearer over all tasks before one is an alarm
    ({"cat": (0.6, 0.5, True), "base": (0.7, 0.6, False)}, [("cat", "average")]),
    ({"cat": (0.6, 0.5, True), "base": (0.1, 0.2, False)}, [("cat", "average")]),
    ({"cat": (0.6, 0.5, True), "base": (0.1, 0.6, False)}, []),
    # a difference that is not worth a word
    ({"cat": (0.04, 0.0, True)}, []),
    ({"cat": (0.505, 0.5, True)}, []),
    ({"cat": (1.1, 2.0, True)}, []),
]


def test_what_is_an_alarm_where_no_sample_was_held_out():
    for tasks, expected in CASES:
        assert alarms(layers=[layer("x", **tasks), layer("y", **tasks)]) == expected, tasks
        assert alarms(TaskFidelity("cat", 0.5, 1.0, 2), layers=[layer("x", **tasks)]) == []


def test_warnings_come_first_and_name_lora_layers_and_what_to_try():
    report = MergeReport((layer("x", cat=(1.5, 0.5, True)), layer("y", cat=(2.0, 0.5, True))))
    first, second, third = str(report).splitlines()[:3]
    assert first.startswith("WARNING: the merge fails cat: ")
    assert "(error 1.75 instead of 1.00, by the median; worst at y, x)" in first
    assert second.startswith("Try this: give more prompts or samples")
    assert third.startswith("2 layers merged")
    assert report.to_dict()["warnings"] == [first, second]
    paths = [f"diffusion_model.output_blocks.3.1.attn1.{name}" for name in ("to_q", "to_k")]
    layers = tuple(layer(path, cat=(1.7, 0.5, True)) for path in paths)
    assert "worst at OUT03)" in MergeReport(layers).warnings[0]  # their block, once
