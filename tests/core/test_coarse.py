"""Layers that are factorised in float32: the answer is exact, or they are solved in float64."""

import pytest
import torch
import toy

from iteris_core import LowRankDelta, MergeConfig
from iteris_core.adapters import stack
from iteris_core.algebra.balance import TaskAtLayer
from iteris_core.algebra.layer import LayerProblem
from iteris_core.algebra.moments import Sums
from iteris_core.algebra.solve import right_sides, solve_layer
from iteris_core.algebra.statistics import TaskSums
from iteris_core.devices import in_float32

CPU = torch.device("cpu")


def layer_of(config, shape=(70, 90), tokens=400):
    """Return a random layer: a task for each of two LoRAs, and one that keeps the base model."""
    chance = torch.Generator().manual_seed(0)
    m, n = shape

    def random(*sizes):
        return torch.randn(sizes, generator=chance, dtype=torch.float64)

    deltas = {k: LowRankDelta(random(m, 4), random(4, n) / n) for k in range(2)}
    tasks = []
    for k in [*deltas, None]:
        worn = None if k is None else stack({k: deltas[k]})
        inputs = Sums(n, CPU)
        statistics = TaskSums(inputs, 0 if k is None else 4, drift_width=m)
        x = random(tokens, n)
        codes = x[:, :0] if worn is None else x @ worn.delta.down.T
        inputs.add(x, x)
        drift = 0.1 * random(tokens, m)
        statistics.add(x, codes, drift=drift, target=drift)
        statistics.finish()
        inputs.finish()
        tasks.append(TaskAtLayer(f"task {k}", {} if k is None else {k: 1.0}, 1.0, statistics, worn))
    return LayerProblem(deltas, tasks, config)


def both(layer):
    solved = []
    for precision in ("float32", "float64"):
        with toy.factorised_in(precision):
            solved.append(solve_layer(layer))
    return solved


def excess(layer, delta):
    """Return a delta's objective above the uncut optimum's, relative to what the optimum does."""
    matrix = layer.normal_matrix()
    sides = right_sides(layer)
    optimum = torch.linalg.solve(matrix, sides.thin @ layer.together.delta.up.T + sides.drift)
    far = delta.dense().T - optimum
    return ((far * (matrix @ far)).sum() / (optimum * (matrix @ optimum)).sum()).item()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((70, 90), {}), ((200, 60), {"rank": 3}), ((60, 200), {"kept_energy": 0.8})],
)
def test_the_objective_is_that_of_float64(shape, settings):
    layer = layer_of(MergeConfig(unit_gain=1.0, **settings), shape)
    coarse, exact = both(layer)
    assert not coarse.was_too_coarse
    assert coarse.delta.rank == exact.delta.rank
    assert coarse.delta.up.dtype == coarse.delta.down.dtype == torch.float64
    assert not torch.equal(coarse.delta.dense(), exact.delta.dense())
    assert excess(layer, coarse.delta) == pytest.approx(excess(layer, exact.delta), rel=1e-8)
    assert coarse.cut.item() == pytest.approx(exact.cut.item(), abs=1e-4)


@pytest.mark.parametrize("unit_gain", [1.0, 2.0])
def test_the_answer_is_the_optimum_of_its_subspace_in_float64(unit_gain):
    layer = layer_of(MergeConfig(unit_gain=unit_gain))
    delta = both(layer)[0].delta
    matrix = layer.normal_matrix()
    directions = delta.down.T  # which are what they should be: orthonormal in the exact metric
    unit = torch.eye(delta.rank).double()
    torch.testing.assert_close(directions.T @ matrix @ directions, unit, rtol=0, atol=1e-10)
    if unit_gain == 1:
        sides = right_sides(layer)
        right = sides.thin @ layer.together.delta.up.T + sides.drift
        torch.testing.assert_close(delta.up, (directions.T @ right).T, rtol=1e-9, atol=1e-12)


def almost_singular(alpha):
    """A merge of one layer whose inputs have hardly more than two dimensions, and its settings."""
    net, adapters, tasks = toy.pair("one layer")
    for task in tasks:
        for sample in task.samples:
            (x,) = sample.teacher
            x[:, 2:] *= 1e-5
            x[:, 2:] += x[:, :1]
    return (net, adapters, tasks), {"alpha": alpha, "unit_gain": 2.0, "target": "full_output"}


def test_what_float32_is_too_coarse_for_is_solved_in_float64_and_told():
    case, settings = almost_singular(1e-12)
    with toy.factorised_in("float32"):
        coarse = toy.merge_toy(*case, **settings)
    with toy.factorised_in("float64"):
        exact = toy.merge_toy(*case, **settings)
    deltas = [result.adapter.deltas["layer"] for result in (coarse, exact)]
    assert torch.equal(deltas[0].up, deltas[1].up) and torch.equal(deltas[0].down, deltas[1].down)
    told = [note.text for note in coarse.report.notes if note not in exact.report.notes]
    assert told == [
        "1 of 1 layers were solved in float64, since float32 is too coarse for their inputs, such "
        "as 'layer'"
    ]


CARDS = {  # compute capability, whether it is AMD's -> whether its float64 is slow
    "GeForce RTX 4090": ((8, 9), False, True),
    "GeForce RTX 5090": ((12, 0), False, True),
    "T4": ((7, 5), False, True),
    "A100": ((8, 0), False, False),
    "H100": ((9, 0), False, False),
    "MI300": ((9, 4), True, False),
    "Radeon RX 7900": ((11, 0), True, True),
}


def test_float32_is_chosen_where_float64_is_slow(monkeypatch):
    device = torch.device("cuda")
    for name, (capability, is_amd, expected) in CARDS.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        monkeypatch.setattr(torch.version, "hip", "6.0" if is_amd else None)
        assert in_float32(device, 64) == expected, name
    assert in_float32(CPU, 512) and not in_float32(CPU, 511)


def test_figures_in_float32_where_float64_is_slow_are_near(monkeypatch):
    net, adapters, tasks = toy.three_adapters()
    exact = toy.merge_toy(net, adapters, tasks, target="full_output").report.layers
    monkeypatch.setattr("iteris_core.report.figures.has_slow_float64", lambda device: True)
    coarse = toy.merge_toy(net, adapters, tasks, target="full_output").report.layers
    assert exact != coarse
    for one, other in zip(exact, coarse, strict=True):
        for a, b in zip(one.tasks, other.tasks, strict=True):
            assert b.residual == pytest.approx(a.residual, abs=1e-3)
