"""Fidelity at the end of the network, against patched copies of the model."""

import pytest
import torch
import toy

from iteris_core import CalibrationError, Task
from iteris_core.report.fidelity import fidelity

NETWORKS = ["stack", "attention", "convolution"]


def outputs(net, adapters, mix, rows):
    shapes = {path: net.model.get_submodule(path).weight.flatten(1).shape for path in net.targets}
    model = toy.patched(net.model, toy.mixed(adapters, mix, shapes))
    return torch.cat([toy.run(model, [row]) for row in rows])


def mean_error(teacher, student, reference):
    errors = [
        ((s - t).norm() / (t - r).norm()).item()
        for t, s, r in zip(teacher, student, reference, strict=True)
    ]
    return sum(errors) / len(errors)


@pytest.mark.parametrize("name", NETWORKS)
def test_error_and_strength_are_those_of_patched_models(name):
    net = toy.build(name)
    adapters = [net.adapter("a"), net.adapter("b")]
    merged = net.adapter("merged", rank=3)
    tasks = [Task("both", net.samples(3), {0: 0.5, 1: 1.0}), Task("preserve", net.samples(2), {})]
    own, preserve = fidelity(net.network(), adapters, tasks, merged, samples_per_chunk=2)
    assert toy.hook_count(net.model) == 0
    rows = [sample.teacher for sample in tasks[0].samples]
    teacher, student, base = (
        outputs(net, [*adapters, merged], mix, rows) for mix in (tasks[0].mix, {2: 1.0}, {})
    )
    assert own.output_error == pytest.approx(mean_error(teacher, student, base), rel=1e-9)
    strengths = [
        (((s - b) * (t - b)).sum() / (t - b).square().sum()).item()
        for t, s, b in zip(teacher, student, base, strict=True)
    ]
    assert own.strength == pytest.approx(sum(strengths) / 3, rel=1e-9)
    assert [run.strength for run in own.runs] == pytest.approx(strengths, rel=1e-9)
    assert own.samples == 3
    rows = [sample.teacher for sample in tasks[1].samples]
    base, student, stacked = (
        outputs(net, [*adapters, merged], mix, rows) for mix in ({}, {2: 1.0}, {0: 1.0, 1: 1.0})
    )
    leak = mean_error(base, student, stacked)
    assert (preserve.output_error, preserve.strength) == (pytest.approx(leak, rel=1e-9), None)
    assert [run.strength for run in preserve.runs] == [None, None]


def test_outputs_that_are_not_finite_are_refused():
    net = toy.build("stack")
    network = net.network(lambda rows: toy.run(net.model, rows) * float("nan"))
    with pytest.raises(CalibrationError, match=r"task 'a'.*not finite"):
        fidelity(network, [net.adapter()], [Task("a", net.samples(1), {0: 1.0})], net.adapter())


def test_a_model_that_writes_all_its_outputs_into_one_tensor_is_compared_with_itself_no_more():
    net = toy.build("stack")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = [Task("a", net.samples(2), {0: 1.0})]
    buffer = toy.run(net.model, [sample.teacher for sample in tasks[0].samples])

    def into_one(rows):
        return buffer[: len(rows)].copy_(toy.run(net.model, rows))

    found, expected = (
        fidelity(net.network(forward), adapters, tasks, adapters[1], samples_per_chunk=1)
        for forward in (into_one, None)
    )
    assert found == expected
