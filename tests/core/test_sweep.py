"""The single sweep against the naive fixed point of Algorithm 1, and what any merge has to obey."""

from dataclasses import replace

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import AdapterError, Sample, Task, merge
from iteris_core.report.records import Note

NETWORKS = ["stack", "attention", "convolution", "in place"]
CHUNKS = [1, 5, 100]


def assert_fixed_point(result, net, adapters, tasks):
    expected = toy.naive_fixed_point(net, adapters, tasks)
    assert toy.largest_error(toy.dense(result.adapter), expected) < 1e-9


def assert_rows(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_sweep_is_the_fixed_point_of_the_published_loop(name):
    net = toy.build(name)
    adapters = [net.adapter("a"), net.adapter("b", rank=1)]
    tasks = toy.own_tasks(net, adapters)
    for size in CHUNKS:
        result = toy.merge_toy(net, adapters, tasks, samples_per_chunk=size)
        assert_fixed_point(result, net, adapters, tasks)


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("sweep", {"target": "delta"}),
        ("sweep", {"target": "full_output", "input_mix": 0.3, "balance": "full", "ridge": "paper"}),
        ("iterate", {"target": "full_output"}),
    ],
)
@pytest.mark.parametrize("samples", [1, 4])  # fewer tokens than a layer is wide, and more
def test_a_teachers_tokens_may_answer_to_others_of_its_student(engine, settings, samples):
    """Naively: what the teacher reads is gathered token by token, and paired with the student's."""
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    orders = [
        {"teacher_tokens": {"text": torch.tensor([2, 0, 0])}},
        {
            "teacher_tokens": {"text": torch.tensor([1, 2, 0])},
            "token_weights": {"text": torch.tensor([1.0, 0.0, 0.5])},
        },
        {},
    ]
    tasks = toy.own_tasks(net, adapters)
    for g, task in enumerate(tasks):
        rows = enumerate(net.make_row() for _ in range(samples))
        drawn = [Sample((x, c), (x, c.flip(0) / 2), **orders[(g + i) % 3]) for i, (x, c) in rows]
        tasks[g] = replace(task, samples=drawn)
    settings = {"rank": "full", **settings}
    result = toy.merge_toy(net, adapters, tasks, samples_per_chunk=3, engine=engine, **settings)
    expected = toy.naive_fixed_point(net, adapters, tasks, toy.exact(**settings))
    assert toy.largest_error(toy.dense(result.adapter), expected) < 1e-8


SETTINGS = [{"alpha": 1e-2}, {"alpha": 1e-3, "alpha_cross": 0.0}, {"balance": "uniform"}]
SETTINGS += [{"balance": "full"}, {"ridge": "paper", "alpha": 1e-2}, {"input_mix": 0.6}]
for more in ({}, {"input_mix": 0.3, "ridge": "paper"}, {"ridge": "paper", "alpha_cross": 1e-2}):
    SETTINGS.append({"target": "full_output", "rank": "full", **more})


@pytest.mark.parametrize("name", NETWORKS[:3])  # of the last, X and X~ are the same
def test_every_setting_means_in_the_sweep_what_it_means_in_the_loop(name):
    net, adapters, tasks = toy.pair(name)
    tasks.append(Task("preserve", net.samples(2), {}))
    plain = toy.dense(toy.merge_toy(net, adapters, tasks).adapter)
    for changes in SETTINGS:
        merged = toy.merge_toy(net, adapters, tasks, samples_per_chunk=3, **changes)
        expected = toy.naive_fixed_point(net, adapters, tasks, toy.exact(**changes))
        assert toy.largest_error(toy.dense(merged.adapter), expected) < 1e-9, changes
        assert toy.largest_error(toy.dense(merged.adapter), plain) > 1e-6, changes


@given(data=st.data())
def test_any_mix_of_any_adapters_reaches_the_fixed_point(data):
    net = toy.build("stack", seed=data.draw(st.integers(0, 1000), label="seed"))
    adapters = [
        net.adapter(f"adapter {k}", rank)
        for k, rank in enumerate(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    ]
    shares = st.sampled_from([-1.0, 0.0, 0.3, 1.0, 2.5])
    mixes = st.dictionaries(st.integers(0, len(adapters) - 1), shares)
    of_task = st.tuples(mixes, st.integers(1, 3), st.sampled_from([0.1, 1.0, 7.0]))
    drawn = data.draw(st.lists(of_task, min_size=1, max_size=4))
    tasks = [
        Task(f"task {g}", net.samples(2 + count), mix, weight)
        for g, (mix, count, weight) in enumerate(drawn)
    ]
    size = data.draw(st.integers(1, 9))
    found = toy.dense(toy.merge_toy(net, adapters, tasks, samples_per_chunk=size).adapter)
    for path, expected in toy.naive_fixed_point(net, adapters, tasks).items():
        assert (found[path] - expected).norm() <= 1e-9 * expected.norm() + 1e-12


def test_an_adapter_of_strength_0_is_no_adapter():
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("idle").scaled(0.0), net.adapter("c")]
    own, idle, other = toy.own_tasks(net, adapters)
    both = Task("both", net.samples(2), {2: 0.5, 1: 0.5})
    result = toy.merge_toy(net, adapters, [own, idle, other, both])
    fewer = [own, replace(other, mix={1: 1.0}), replace(both, mix={1: 0.5})]
    without = toy.merge_toy(net, [adapters[0], adapters[2]], fewer)
    assert toy.largest_error(toy.dense(result.adapter), toy.dense(without.adapter)) < 1e-12
    assert result.adapter.name == "a + c"
    text = "left out, since they change nothing here: idle"
    assert result.report.notes == (Note("left_out", text),)


def test_nothing_but_idle_adapters_is_an_error():
    net = toy.build("stack")
    adapters = [net.adapter("a").scaled(0.0)]
    with pytest.raises(AdapterError, match="every strength is 0"):
        toy.merge_toy(net, adapters, toy.own_tasks(net, adapters))


def test_outputs_are_those_of_patched_models_in_the_order_of_the_samples():
    net, adapters, tasks = toy.pair("convolution")
    adapters[1] = replace(adapters[1], unmatched=("stray",))
    tasks.append(Task("preserve", net.samples(2), {}))
    result = toy.merge_toy(net, adapters, tasks, samples_per_chunk=4)
    assert "b: 1 keys belong to no module" in str(result.report)
    student = toy.patched(net.model, toy.dense(result.adapter))
    teachers = [toy.patched(net.model, toy.dense(adapter)) for adapter in adapters] + [net.model]
    for task, teacher, rows in zip(tasks, teachers, result.outputs, strict=True):
        assert len(rows) == len(task.samples)
        for sample, (from_teacher, from_student) in zip(task.samples, rows, strict=True):
            assert_rows(from_teacher, toy.run(teacher, [sample.teacher])[0])
            assert_rows(from_student, toy.run(student, [sample.teacher])[0])


def test_a_network_that_returns_no_tensor_has_no_outputs():
    net = toy.build("stack")
    adapters = [net.adapter()]
    silent = net.network(lambda rows: {"sample": toy.run(net.model, rows)})
    assert merge(silent, adapters, toy.own_tasks(net, adapters), toy.exact()).outputs is None
