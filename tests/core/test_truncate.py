"""Cutting the rank: against dense algebra on the layer's own normal equations."""

import torch
import toy

from iteris_core import LowRankDelta
from iteris_core.algebra.truncate import (
    factored_spectrum,
    leading_spectrum,
    rank_for_energy,
    share_out_size,
)


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
    assert {p: d.rank for p, d in by_layer.adapter.deltas.items()} == {
        p: 1 if p == path else 4 for p in net.targets
    }


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
