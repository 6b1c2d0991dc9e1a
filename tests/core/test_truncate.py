"""Cutting the rank: against dense algebra on the layer's own normal equations."""

import pytest
import torch
import toy

from iteris_core import LowRankDelta
from iteris_core.algebra.truncate import (
    factored_spectrum,
    leading_spectrum,
    rank_for_energy,
    share_out_size,
)


@pytest.fixture
def net():
    return toy.build("one layer")


def merged_and_system(net, rank_of_each=2, **settings):
    """Return the merge of two adapters, and S and the uncut optimum by dense algebra."""
    adapters = [net.adapter("a", rank_of_each), net.adapter("b", rank_of_each)]
    tasks = toy.own_tasks(net, adapters)
    result = toy.merge_toy(net, adapters, tasks, **settings)
    uncut = toy.merge_toy(
        net, adapters, tasks, **{**settings, "rank": "sum", "kept_energy": None, "size": None}
    )
    layers = uncut.report.layers[0]
    system = torch.zeros(6, 6).double()
    for task, entry in zip(tasks, layers.tasks, strict=True):
        x = net.dense_input([sample.teacher for sample in task.samples], "layer").flatten(0, -2)
        gram = x.T @ x
        system += entry.weight * (gram + 1e-4 * gram.norm() * torch.eye(6).double())
    return result, toy.dense(uncut.adapter)["layer"], system


def excess(delta, optimum, system):
    difference = delta - optimum
    return torch.trace(difference @ system @ difference.T)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_lower_rank_is_the_dense_optimum_and_beats_a_plain_svd(net, rank):
    result, optimum, system = merged_and_system(net, rank=rank)
    found = result.adapter.deltas["layer"]
    half = torch.linalg.cholesky(system).T @ optimum.T  # (W L)^T
    u, s, vh = torch.linalg.svd(half, full_matrices=False)
    best = torch.linalg.solve(
        torch.linalg.cholesky(system).T, (u[:, :rank] * s[:rank]) @ vh[:rank]
    ).T
    assert found.rank == rank
    torch.testing.assert_close(found.dense(), best, rtol=1e-8, atol=1e-8)
    u, s_plain, vh = torch.linalg.svd(optimum)
    plain = (u[:, :rank] * s_plain[:rank]) @ vh[:rank]
    total = excess(torch.zeros_like(optimum), optimum, system)
    layer = result.report.layers[0]
    assert layer.cut == pytest.approx(
        (excess(best, optimum, system) / total).sqrt().item(), rel=1e-6
    )
    assert layer.plain_cut == pytest.approx(
        (excess(plain, optimum, system) / total).sqrt().item(), rel=1e-6
    )
    assert layer.cut <= layer.plain_cut


def test_a_full_output_target_is_cut_to_the_sum_of_the_ranks_in_the_same_metric(net):
    adapters = [net.adapter("a", 1), net.adapter("b", 1)]
    tasks = toy.own_tasks(net, adapters)
    whole = toy.merge_toy(net, adapters, tasks, target="full_output", rank="full")
    cut = toy.merge_toy(net, adapters, tasks, target="full_output")
    assert cut.adapter.deltas["layer"].rank == 2
    assert 0 <= cut.report.layers[0].cut < 1
    # one layer: teacher and student read the same, so there is no drift and the answer is of low
    # rank anyway
    torch.testing.assert_close(
        cut.adapter.deltas["layer"].dense(),
        whole.adapter.deltas["layer"].dense(),
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("name", ["stack", "attention", "convolution"])
def test_later_layers_make_up_for_a_cut(name):
    net = toy.build(name)
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters, samples=8)
    inside = toy.merge_toy(net, adapters, tasks, rank=2)
    outside = toy.merge_toy(net, adapters, tasks)
    assert all(delta.rank <= 2 for delta in inside.adapter.deltas.values())
    last = net.targets[-1]
    assert (toy.dense(inside.adapter)[last] - toy.dense(outside.adapter)[last]).norm() > 1e-6


def test_ranks_per_layer_and_by_kept_energy():
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters, samples=4)
    path = "self_attention.q"
    by_layer = toy.merge_toy(net, adapters, tasks, rank={path: 1})
    assert {p: d.rank for p, d in by_layer.adapter.deltas.items()} == {
        p: 1 if p == path else 4 for p in net.targets
    }
    some = toy.merge_toy(net, adapters, tasks, kept_energy=0.9)
    most = toy.merge_toy(net, adapters, tasks, kept_energy=0.9999)
    assert all(layer.cut**2 <= 0.1 + 1e-9 for layer in some.report.layers)
    assert sum(layer.rank for layer in some.report.layers) < sum(
        layer.rank for layer in most.report.layers
    )


@pytest.mark.parametrize("target", ["delta", "full_output"])
def test_a_total_size_is_kept_and_used(target):
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters, samples=4)
    result = toy.merge_toy(net, adapters, tasks, size=250, target=target)
    size = sum(delta.up.numel() + delta.down.numel() for delta in result.adapter.deltas.values())
    assert 250 - 12 < size <= 250
    assert min(delta.rank for delta in result.adapter.deltas.values()) >= 1


def test_size_goes_where_it_gains_most():
    spectra = {"steep": torch.tensor([10.0, 0.1]), "flat": torch.tensor([3.0, 2.9])}
    shapes = {"steep": (4, 4), "flat": (4, 4)}
    assert share_out_size(spectra, shapes, {"steep": 100.0, "flat": 17.0}, 24) == {
        "steep": 1,
        "flat": 2,
    }


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


def test_the_factored_spectrum_is_the_dense_one():
    half = torch.randn(9, 3).double()
    up = torch.randn(7, 3).double()
    spectrum = factored_spectrum(half, up)
    torch.testing.assert_close(spectrum.values, torch.linalg.svdvals(half @ up.T)[:3])
    torch.testing.assert_close((spectrum.left * spectrum.values) @ spectrum.right.T, half @ up.T)
    assert rank_for_energy(spectrum, 1.0) == 3
    assert rank_for_energy(spectrum, 1e-9) == 1


def test_a_dense_matrix_becomes_factors_of_its_numerical_rank():
    weight = torch.randn(8, 2) @ torch.randn(2, 6)
    delta = LowRankDelta.from_dense(weight)
    assert delta.rank == 2
    torch.testing.assert_close(delta.dense(), weight, rtol=1e-4, atol=1e-5)
