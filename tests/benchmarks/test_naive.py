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
