"""The rivals against naive float64 references, written from their formulas on dense deltas."""

import dataclasses
from typing import get_args

import pytest
import torch

from iteris_core import BaselineOptions, Task
from iteris_core.baselines import METHODS
from iteris_core.config import Method


@pytest.fixture(scope="module")
def net(toy):
    """A network of cross-attention, three adapters, one of which does not change every layer, a preserve task."""
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b", 1), net.adapter("c", 2, net.targets[:7])]
    tasks = [*toy.own_tasks(net, adapters), Task("preserve", net.samples(3), {}, 0.5)]
    tasks[1] = dataclasses.replace(tasks[1], weight=2.0)
    return net, adapters, tasks


def merged(toy, net, method, rank="sum", **options):
    model, adapters, tasks = net
    return toy.merge_toy(model, adapters, tasks, method=method, rank=rank, baseline=BaselineOptions(**options))


def dense_deltas(toy, net):
    """Return path -> (N, d_out, d_in), zeros where an adapter changes nothing."""
    model, adapters, _ = net
    shapes = {path: tuple(model.model.get_submodule(path).weight.shape) for path in model.targets}
    each = [toy.mixed(adapters, {k: 1.0}, shapes) for k in range(len(adapters))]
    return {path: torch.stack([deltas[path] for deltas in each]) for path in model.targets}


def test_every_name_in_the_settings_is_a_method_and_the_other_way_round():
    assert {"iteris", *METHODS} == set(get_args(Method))


@pytest.mark.parametrize(
    ("method", "coefficients"),
    [("average", [1 / 3] * 3), ("sum", [1.0] * 3), ("weighted", [0.25, 0.5, 0.25]), ("svd", [1.0] * 3)],
)
def test_linear_methods_lose_nothing(toy, net, method, coefficients):
    result = merged(toy, net, method)
    weights = torch.tensor(coefficients, dtype=torch.float64)
    expected = {path: torch.einsum("n,noi->oi", weights, deltas) for path, deltas in dense_deltas(toy, net).items()}
    assert toy.largest_error(toy.dense(result.adapter), expected) < 1e-12
    assert all(layer.cut == 0 for layer in result.report.layers)


def naive_ties(deltas, density, sign="total"):
    """Return TIES of (N, d_out, d_in), entry by entry."""
    kept = []
    for delta in deltas:
        entries = delta.flatten().tolist()
        largest = sorted(range(len(entries)), key=lambda i, entries=entries: -abs(entries[i]))[: int(density * len(entries))]
        kept.append([entry if i in largest else 0.0 for i, entry in enumerate(entries)])
    out = []
    for entries in zip(*kept, strict=True):
        votes = sum(entries) if sign == "total" else sum((e > 0) - (e < 0) for e in entries)
        agree = [e for e in entries if (e > 0 if votes >= 0 else e < 0)]
        out.append(sum(agree) / max(1, len(agree)))
    return torch.tensor(out, dtype=torch.float64).reshape(deltas.shape[1:])


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(toy, net, density, sign):
    found = merged(toy, net, "ties", "full", density=density, sign=sign)
    expected = {path: naive_ties(deltas, density, sign) for path, deltas in dense_deltas(toy, net).items()}
    assert toy.largest_error(toy.dense(found.adapter), expected) < 1e-12


def naive_regmean(toy, net, b, students=None):
    """Return RegMean on the teachers' inputs, or on the inputs of a student that wears these deltas."""
    model, adapters, tasks = net
    left, right = {}, {}
    shapes = {path: tuple(model.model.get_submodule(path).weight.shape) for path in model.targets}
    for task in tasks:
        own = toy.mixed(adapters, task.mix, shapes)
        rows = [sample.teacher for sample in task.samples]
        inputs = toy.layer_inputs(toy.patched(model.model, own if students is None else students), rows, model.targets)
        for path in model.targets:
            x = torch.cat(inputs[path])
            gram = task.weight * x.T @ x / len(x)
            gram = torch.where(torch.eye(len(gram), dtype=torch.bool), gram, b * gram)
            left[path] = left.get(path, 0) + gram
            right[path] = right.get(path, 0) + gram @ own[path].T
    return {path: torch.linalg.solve(left[path], right[path]).T for path in model.targets}


@pytest.mark.parametrize("b", [0.0, 0.9])
def test_regmean(toy, net, b):
    found = merged(toy, net, "regmean", off_diagonal=b)
    assert toy.largest_error(toy.dense(found.adapter), naive_regmean(toy, net, b)) < 1e-9


def test_regmean_pp_is_regmean_on_the_inputs_that_its_own_answer_leads_to(toy, net):
    found = toy.dense(merged(toy, net, "regmean_pp").adapter)
    assert toy.largest_error(found, naive_regmean(toy, net, 0.9, students=found)) < 1e-9
    assert toy.largest_error(found, naive_regmean(toy, net, 0.9)) > 1e-2
