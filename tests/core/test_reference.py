"""The method on one page: it is what the engines compute, and it stands alone."""

import copy
from itertools import islice

import pytest
import torch
import toy

from iteris_core.algebra import reference


@pytest.fixture
def case():
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b", rank=1)]
    return net, adapters, toy.own_tasks(net, adapters)


def solves(case, count, **settings):
    net, adapters, tasks = case
    found = reference.algorithm_1(
        net.model,
        lambda model, row: toy.run(model, [row]),
        [toy.dense(adapter) for adapter in adapters],
        [[sample.teacher for sample in task.samples] for task in tasks],
        **settings,
    )
    return list(islice(found, count))


WHOLE = {"target": "full_output"}
SETTINGS = [{}, {"ridge": "paper"}, {"alpha": 1e-2, "alpha_cross": 1e-3}, WHOLE]


@pytest.mark.parametrize("settings", [*SETTINGS, {**WHOLE, "ridge": "paper", "alpha_cross": 1e-3}])
def test_every_solve_is_that_of_the_iterating_engine(case, settings):
    engine = {"engine": "iterate", "rank": "full"}
    for number, deltas in enumerate(solves(case, 4, **settings), 1):
        ours = toy.merge_toy(*case, max_iter=number, **engine, **settings)
        assert toy.largest_error(toy.dense(ours.adapter), deltas) < 1e-9


def test_it_settles_where_the_sweep_is_at_once(case):
    net = case[0]
    before = copy.deepcopy(net.model.state_dict())
    first, *_, last = solves(case, len(net.targets) + 1)
    ours = toy.dense(toy.merge_toy(*case).adapter)
    assert toy.largest_error(ours, first) > 1e-3
    assert toy.largest_error(ours, last) < 1e-9
    assert all(torch.equal(before[key], tensor) for key, tensor in net.model.state_dict().items())
    assert toy.hook_count(net.model) == 0
