"""The procedure that the speed benchmark measures the sweep against solves the same problem, by
other means.
"""

from itertools import islice

import pytest
import torch
import toy

from benchmarks.naive import algorithm_1


@pytest.fixture
def case():
    """Self-attention, cross-attention and a feed-forward layer, two adapters, one task each."""
    model = toy.build("attention")
    adapters = [model.adapter("a"), model.adapter("b", rank=1)]
    return model, adapters, toy.own_tasks(model, adapters)


def naive(case, iterations, **options):
    model, adapters, tasks = case
    network = model.network()
    samples = [[sample.teacher for sample in task.samples] for task in tasks]
    dense = [toy.dense(adapter) for adapter in adapters]
    solves = algorithm_1(
        network.modules, network.forward, dense, samples, rows_per_call=2, **options
    )
    return list(islice(solves, iterations))


@pytest.mark.parametrize("ridge", ["paper", "consistent"])
def test_every_solve_is_that_of_the_iterating_engine(case, ridge):
    for number, deltas in enumerate(naive(case, 4, ridge=ridge), 1):
        ours = toy.merge_toy(*case, engine="iterate", max_iter=number, tolerance=0.0, ridge=ridge)
        assert toy.largest_error(deltas, toy.dense(ours.adapter)) < 1e-9


def test_it_ends_where_the_sweep_is_at_once(case):
    model = case[0]
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    solves = naive(case, len(model.targets) + 1, ridge="consistent")
    ours = toy.dense(toy.merge_toy(*case).adapter)
    assert toy.largest_error(solves[0], ours) > 1e-3
    assert toy.largest_error(solves[-1], ours) < 1e-9
    assert all(
        torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items()
    )
    assert toy.hook_count(model.model) == 0


def test_a_1x1_convolution_is_a_linear_layer():
    model = toy.build("convolution")
    names = ["inlet", "outlet"]
    adapters = [model.adapter("a", paths=names), model.adapter("b", paths=names)]
    case = model, adapters, toy.own_tasks(model, adapters)
    ours = toy.dense(toy.merge_toy(*case).adapter)
    assert toy.largest_error(naive(case, 3, ridge="consistent")[-1], ours) < 1e-9
