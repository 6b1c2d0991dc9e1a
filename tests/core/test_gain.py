"""Unit gain: every layer does as much of each LoRA as the LoRA alone, on the LoRA's own task."""

import itertools

import pytest
import torch
import toy

from iteris_core import Task
from iteris_core.algebra.gain import bounded_solution

KINDS = ["stack", "attention", "convolution"]


def gains(net, adapters, tasks, merged):
    """Return (layer, adapter) -> <X~ dW^T, X dW_k^T> / ||X dW_k^T||^2, by plainly patched models."""
    paths = list(merged.deltas)
    shapes = {path: delta.shape for path, delta in merged.deltas.items()}
    student = toy.patched(net.model, toy.dense(merged))
    found = {}
    for k, adapter in enumerate(adapters):
        rows = [sample.teacher for sample in tasks[k].samples]
        worn = toy.mixed(adapters, {k: 1.0}, shapes)
        x = toy.layer_inputs(toy.patched(net.model, worn), rows, paths)
        x_student = toy.layer_inputs(student, rows, paths)
        for path in adapter.deltas:
            taught = torch.cat(x[path]) @ worn[path].T
            done = torch.cat(x_student[path]) @ merged.deltas[path].dense().T
            found[path, k] = ((done * taught).sum() / taught.square().sum()).item()
    return found


def shrunk(kind):
    """A merge that a large ridge and a task that keeps the base model shrink."""
    net = toy.build(kind)
    adapters = [net.adapter("a"), net.adapter("b", rank=1)]
    tasks = toy.own_tasks(net, adapters)
    tasks.append(Task("base", tasks[0].samples, {}, 0.1))
    return net, adapters, tasks


@pytest.mark.parametrize(("target", "rank"), [("delta", "sum"), ("full_output", 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_does_as_much_as_the_lora_alone(kind, target, rank):
    """Also after a cut: the gain is that of the delta which is saved."""
    case = shrunk(kind)
    settings = {"target": target, "rank": rank, "alpha": 1e-3}
    before = gains(*case, toy.merge_toy(*case, **settings).adapter)
    after = gains(*case, toy.merge_toy(*case, **settings, unit_gain=10.0).adapter)
    weak = [key for key, gain in before.items() if gain < 0.95]
    assert weak
    exact = [key for key in after if abs(after[key] - 1) < 1e-6]
    # a factor is never below 1, so that what is too strong because of another adapter stays so
    assert len(exact) >= len(after) / 2
    assert all(after[key] > 0.95 for key in weak), (before, after)


def test_a_float32_factorisation_leaves_the_gain_exact():
    case = shrunk("stack")
    settings = {"target": "full_output", "alpha": 1e-3, "rank": 2, "unit_gain": 10.0}
    found = [
        gains(*case, toy.merge_toy(*case, **settings, factorisation=precision).adapter)
        for precision in ("float32", "float64")
    ]
    exact = [key for key, gain in found[1].items() if abs(gain - 1) < 1e-9]
    assert exact and all(abs(found[0][key] - 1) < 1e-9 for key in exact)


def test_the_largest_factor_is_kept():
    case = shrunk("stack")
    settings = {"target": "delta", "rank": "full", "alpha": 1e-1}
    plain = toy.merge_toy(*case, **settings).adapter
    bounded = toy.merge_toy(*case, **settings, unit_gain=1.1).adapter
    first = next(iter(plain.deltas))
    ratio = bounded.deltas[first].dense().norm() / plain.deltas[first].dense().norm()
    assert 1 < ratio < 1.1 + 1e-9


def test_the_report_tells_the_gain_of_every_layer():
    case = shrunk("attention")
    names = [adapter.name for adapter in case[1]]
    result = toy.merge_toy(*case)
    measured = gains(*case, result.adapter)
    told = {
        (layer.path, names.index(entry.task)): entry.gain
        for layer in result.report.layers
        for entry in layer.tasks
        if entry.wears
    }
    assert told == {key: pytest.approx(gain, abs=1e-6) for key, gain in measured.items()}
    assert all(
        entry.gain is None
        for layer in result.report.layers
        for entry in layer.tasks
        if not entry.wears
    )


def best_scales(matrix, right, most):
    """Try every choice of the unknowns that stand at a bound, and keep the best that is allowed."""
    n = len(right)
    best = None
    for ends in itertools.product((1.0, most, None), repeat=n):
        free = [i for i, end in enumerate(ends) if end is None]
        scales = torch.tensor([end or 0.0 for end in ends]).double()
        rest = right - matrix @ scales
        scales[free] = torch.linalg.lstsq(matrix[:, free], rest[:, None]).solution[:, 0]
        error = (matrix @ scales - right).norm()
        if scales.min() >= 1 and scales.max() <= most and (best is None or error < best[0]):
            best = error, scales
    return best[1]


@pytest.mark.parametrize(
    ("alike", "seed"),
    [(0.0, 0), (0.9, 27), (0.9, 39), (0.99, 37)],
)
def test_scales_are_the_best_within_their_bounds_however_alike_loras_are(alike, seed):
    """A hundred rounds of coordinate descent left scales of the last six off by 0.3 to 0.8."""
    chance = torch.Generator().manual_seed(seed)
    n = 6
    directions = torch.randn(n, 40, generator=chance).double()
    common = torch.randn(40, generator=chance).double()
    directions = (1 - alike) ** 0.5 * directions + alike**0.5 * common
    products = directions @ directions.T
    kept = 0.8 / n + 0.4 / n * torch.rand(n, 1, generator=chance).double()
    matrix = kept * products / products.diagonal()[:, None]
    right = torch.ones(n).double()
    found = torch.tensor(bounded_solution(matrix.tolist(), right.tolist(), 2.0))
    best = best_scales(matrix, right, 2.0)
    assert torch.allclose(found.double(), best, rtol=0, atol=1e-4)
    error, least = ((matrix @ scales - right).norm() for scales in (found.double(), best))
    assert error <= least + 1e-9


def test_scales_on_which_nothing_depends_stay_one_and_equal_loras_share():
    assert bounded_solution([[0.0, 0.0], [0.0, 0.5]], [0.0, 0.75], 2.0) == [1.0, pytest.approx(1.5)]
    assert bounded_solution([[0.4, 0.4]] * 2, [1.0, 1.0], 2.0) == pytest.approx([1.25, 1.25])
