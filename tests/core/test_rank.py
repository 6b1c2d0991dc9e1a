"""Cutting the answer to a lower rank: the optimum of the merge's own objective."""

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import Task
from iteris_core.algebra.truncate import leading_spectrum


def merge_one_layer(seed=0, **settings):
    net = toy.build("one layer", seed)
    adapters = [net.adapter("a"), net.adapter("b", rank=1)]
    tasks = [*toy.own_tasks(net, adapters), Task("preserve", net.samples(2), {})]
    tasks = [
        Task(task.name, [toy.Sample(s.teacher, net.make_row()) for s in task.samples], task.mix)
        for task in tasks
    ]
    result = toy.merge_toy(net, adapters, tasks, **settings)
    dense = [adapter.deltas["layer"].dense() for adapter in adapters]
    dense.append(torch.zeros_like(dense[0]))
    at_layer = []
    for task, delta in zip(tasks, dense, strict=True):
        x, student = (
            [getattr(s, side)[0] for s in task.samples] for side in ("teacher", "student")
        )
        at_layer.append(toy.DenseTask(torch.cat(x), torch.cat(student), delta, 1.0))
    config = toy.exact(**{k: settings[k] for k in ("target", "alpha") if k in settings})
    system, right = toy.normal_equations(net.model.layer.weight, at_layer, config)
    uncut = torch.linalg.solve(system, right).T
    return result.adapter.deltas["layer"], result.report.layers[0], system, uncut


def best_of_rank(answer, system, rank):
    """Return the delta of this rank that is nearest in the objective's metric, and the lost share."""
    root = torch.linalg.cholesky(system)
    u, values, vh = torch.linalg.svd(answer @ root, full_matrices=False)
    cut = (u[:, :rank] * values[:rank]) @ vh[:rank]
    lost = values[rank:].norm() / values.norm()
    return torch.linalg.solve_triangular(root.T, cut.T, upper=True).T, lost.item()


@given(
    seed=st.integers(0, 1000),
    rank=st.integers(1, 2),
    target=st.sampled_from(["delta", "full_output"]),
)
def test_a_lower_rank_is_the_best_of_that_rank(seed, rank, target):
    delta, report, system, answer = merge_one_layer(seed, rank=rank, target=target)
    expected, lost = best_of_rank(answer, system, rank)
    assert delta.rank == report.rank == rank
    torch.testing.assert_close(delta.dense(), expected, rtol=1e-8, atol=1e-8)
    assert report.cut == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("kept_energy", [0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("target", ["delta", "full_output"])
def test_the_smallest_rank_that_keeps_the_energy_is_chosen(kept_energy, target):
    """Of a full output no more than the sum of the ranks."""
    delta, _, system, answer = merge_one_layer(target=target, kept_energy=kept_energy)
    kept = [1 - best_of_rank(answer, system, rank)[1] ** 2 for rank in (1, 2)]
    enough = [rank for rank in (1, 2) if kept[rank - 1] >= kept_energy]
    assert delta.rank == (enough[0] if enough else 3)
    assert (torch.linalg.matrix_rank(answer) > 3) == (target == "full_output")


def test_later_layers_make_up_for_a_cut():
    net, adapters, tasks = toy.pair("attention", 8)
    inside = toy.merge_toy(net, adapters, tasks, rank=2)
    outside = toy.merge_toy(net, adapters, tasks)
    assert all(delta.rank <= 2 for delta in inside.adapter.deltas.values())
    last = net.targets[-1]
    assert (toy.dense(inside.adapter)[last] - toy.dense(outside.adapter)[last]).norm() > 1e-6


def test_ranks_per_layer():
    net, adapters, tasks = toy.pair("attention", 4)
    path = "self_attention.q"
    by_layer = toy.merge_toy(net, adapters, tasks, rank={path: 1})
    ranks = {p: d.rank for p, d in by_layer.adapter.deltas.items()}
    assert ranks == dict.fromkeys(net.targets, 4) | {path: 1}


def test_the_randomised_svd_agrees_with_the_dense_one():
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(300, 300).double())[0]
    right = torch.linalg.qr(torch.randn(260, 260).double())[0]
    values = torch.arange(1, 261).double().pow(-1.0)
    half = (left[:, :260] * values) @ right.T
    spectrum = leading_spectrum(half, 12)
    torch.testing.assert_close(spectrum.values, values[:12], rtol=1e-6, atol=0)
    rest = half - (spectrum.left * spectrum.values) @ spectrum.right.T
    assert rest.norm() <= (1 + 1e-6) * values[12:].norm()
