"""Fidelity at the end of the network, against patched copies of the model."""

import pytest
import torch
import toy

from iteris_core import Adapter, CalibrationError, Sample, Task
from iteris_core.report.fidelity import Comparison, fidelity

NETWORKS = ["stack", "attention", "convolution"]


def outputs(net, adapters, mix, rows):
    shapes = {path: net.model.get_submodule(path).weight.flatten(1).shape for path in net.targets}
    model = toy.patched(net.model, toy.mixed(adapters, mix, shapes))
    return torch.cat([toy.run(model, [row]) for row in rows])


def mean_error(teacher, student, reference):
    """Return the mean relative error over rows, each of them a run."""
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


def test_every_run_counts_alike_however_large_its_squares_are():
    net = toy.build("stack")
    adapters = [net.adapter("a"), net.adapter("b")]
    merged = net.adapter("merged", rank=3)
    large = [Sample([100 * part for part in net.make_row()]) for _ in range(2)]
    samples = [*large, *net.samples(3)]

    def measured(samples, sizes):
        comparison = Comparison(lambda g, i: samples[i].teacher, runs=[sizes])
        (found,) = fidelity(
            net.network(),
            adapters,
            [Task("a", samples, {0: 1.0})],
            merged,
            samples_per_chunk=3,
            comparison=comparison,
        )
        return found

    found = measured(samples, [2, 1, 2])
    runs = [measured(samples[a:b], [b - a]) for a, b in ((0, 2), (2, 3), (3, 5))]
    errors = [run.output_error for run in runs]
    assert [run.error for run in found.runs] == pytest.approx(errors, rel=1e-9)
    assert found.output_error == pytest.approx(sum(errors) / 3, rel=1e-9)
    assert found.strength == pytest.approx(sum(run.strength for run in runs) / 3, rel=1e-9)
    assert max(errors) > 1.1 * min(errors)


def test_an_adapter_is_true_to_itself_and_the_base_model_to_nobody():
    net = toy.build("attention")
    adapter = net.adapter("a")
    task = Task("a", net.samples(2), {0: 1.0})
    (same,) = fidelity(net.network(), [adapter], [task], adapter)
    assert (same.output_error, same.strength) == (0.0, pytest.approx(1.0))
    (nothing,) = fidelity(net.network(), [adapter], [task], Adapter("nothing", {}))
    assert (nothing.output_error, nothing.strength) == (pytest.approx(1.0), 0.0)


def test_the_student_reads_its_own_text_and_the_base_model_what_it_is_told():
    net = toy.build("stack")
    adapter = net.adapter("a")
    first = net.make_row()
    second = net.make_row()
    task = Task("a", [Sample(first, second)], {0: 1.0})
    comparison = Comparison(lambda g, i: second)
    (found,) = fidelity(net.network(), [adapter], [task], adapter, comparison=comparison)
    teacher = outputs(net, [adapter], {0: 1.0}, [first])
    student, base = (outputs(net, [adapter], mix, [second]) for mix in ({0: 1.0}, {}))
    assert found.output_error == pytest.approx(
        ((student - teacher).norm() / (teacher - base).norm()).item(), rel=1e-9
    )


def test_rows_of_all_tasks_share_calls_and_the_same_row_is_run_once():
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    merged = net.adapter("merged")
    first = net.make_row()
    second = net.make_row()
    # both teachers read other texts, and all other rows the same one
    tasks = [Task(name, [Sample(first, second)], {k: 1.0}) for k, name in enumerate("ab")]
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return toy.run(net.model, rows)

    comparison = Comparison(lambda g, i: second)
    found = fidelity(net.network(counted), adapters, tasks, merged, comparison=comparison)
    assert calls == [4]
    alone = [
        fidelity(net.network(), adapters, [task], merged, comparison=comparison)[0]
        for task in tasks
    ]
    for together, of_one in zip(found, alone, strict=True):
        assert together.output_error == pytest.approx(of_one.output_error, rel=1e-9)
        assert together.strength == pytest.approx(of_one.strength, rel=1e-9)


def test_a_network_without_outputs_is_refused():
    net = toy.build("stack")
    silent = net.network(lambda rows: None)
    with pytest.raises(CalibrationError, match="returns no tensor"):
        fidelity(silent, [net.adapter()], [Task("a", net.samples(1), {0: 1.0})], net.adapter())


def test_outputs_that_are_not_finite_are_refused():
    net = toy.build("stack")
    broken = net.network(lambda rows: toy.run(net.model, rows) * float("nan"))
    with pytest.raises(CalibrationError, match=r"task 'a'.*not finite"):
        fidelity(broken, [net.adapter()], [Task("a", net.samples(1), {0: 1.0})], net.adapter())


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
