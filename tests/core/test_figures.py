"""A report's figures against plain matrices."""

import pytest
import toy

from iteris_core import Task


@pytest.mark.parametrize("settings", [{"samples_per_chunk": 1}, {"target": "full_output"}], ids=str)
def test_figures_are_those_of_the_students_inputs(settings):
    net = toy.build("one layer")
    adapters = [net.adapter("a"), net.adapter("b", rank=1)]
    # enough tokens for the Gram matrix, teacher and student reading different things
    samples = [[toy.Sample(net.make_row(), net.make_row()) for _ in range(3)] for _ in range(3)]
    tasks = [
        Task("a", samples[0], {0: 1.0, 1: 0.0}),  # b's share is none
        Task("b", samples[1], {1: 1.0}),
        Task("preserve", samples[2], {}),
    ]
    result = toy.merge_toy(net, adapters, tasks, **settings)
    merged = toy.dense(result.adapter)["layer"]
    deltas = [toy.dense(adapter)["layer"] for adapter in adapters]
    (layer,) = result.report.layers
    for task, own in zip(tasks, [deltas[0], deltas[1], None], strict=True):
        x, student = (
            net.dense_input([side(sample) for sample in task.samples], "layer")
            for side in (lambda sample: sample.teacher, lambda sample: sample.student)
        )
        wanted = student @ sum(deltas).T if own is None else x @ own.T
        told = next(entry for entry in layer.tasks if entry.task == task.name)
        # what the target asks for has the base weight in it where the whole output counts
        is_whole = settings.get("target") == "full_output"
        base = net.model.layer.weight.detach().double() * is_whole
        asked = (x - student) @ base.T + (0 if own is None else wanted)
        expected = ((asked - student @ merged.T).norm() / wanted.norm()).item()
        assert told.residual == pytest.approx(expected, rel=1e-6)
