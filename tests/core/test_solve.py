"""The closed form of one layer, seen through `merge` on a single Linear, which reads X and X~."""

import math

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import Adapter, LowRankDelta, Sample, SolveError, Task
from iteris_core.algebra.system import cholesky

D_IN = 6
D_OUT = 4


@pytest.fixture(scope="module")
def net():
    return toy.build("one layer")


def random_adapter(rank=2, name="a"):
    up, down = torch.randn(D_OUT, rank).double(), torch.randn(rank, D_IN).double()
    return Adapter(name, {"layer": LowRankDelta(up, down)})


def random_inputs():
    x = torch.randn(20, D_IN).double()
    return x, x + 0.2 * torch.randn(20, D_IN).double()


def task_of(name, mix, x, x_student=None, weight=1.0):
    return Task(name, [Sample((x,), None if x_student is None else (x_student,))], mix, weight)


def solve(net, adapters, tasks, **settings):
    result = toy.merge_toy(net, adapters, tasks, **settings)
    return result.adapter.deltas["layer"].dense(), result.report.layers[0]


@given(seed=st.integers(0, 1000), alpha=st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]))
def test_the_answer_minimises_the_objective(net, seed, alpha):
    torch.manual_seed(seed)
    adapters = [random_adapter(), random_adapter(1, "b")]
    rows = [random_inputs() for _ in range(3)]
    tasks = [
        task_of(f"{g}", mix, *rows[g], 0.5 + g) for g, mix in enumerate([{0: 1.0}, {1: 1.0}, {}])
    ]
    merged, report = solve(net, adapters, tasks, alpha=alpha)
    targets = [adapter.deltas["layer"].dense() for adapter in adapters]
    targets.append(torch.zeros(D_OUT, D_IN).double())

    def slope(delta):
        """Return the gradient of the sum in DESIGN.md, section 2."""
        delta = delta.clone().requires_grad_()
        total = 0.0
        for (x, x_student), target, entry in zip(rows, targets, report.tasks, strict=True):
            mu = alpha * (x_student.T @ x_student).norm()
            fit = (x @ target.T - x_student @ delta.T).square().sum()
            total += entry.weight * (fit + mu * (target - delta).square().sum())
        return torch.autograd.grad(total, delta)[0].norm()

    assert slope(merged) < 1e-9 * slope(targets[0])


@pytest.mark.parametrize("balance", ["delta", "full", "uniform"])
def test_balance_weights_are_those_of_the_paper_and_of_the_published_code(net, balance):
    adapter = random_adapter()
    (x, x_student) = random_inputs()
    base = net.model.layer.weight
    delta = adapter.deltas["layer"].dense()
    own, preserve = {
        # on the same inputs, a task that teaches nothing has the weight of the one that does
        "delta": ((delta.norm() / (x @ delta.T).norm()) ** 2,) * 2,
        "full": tuple((w.norm() / (x @ w.T).norm()) ** 2 for w in (base + delta, base)),
        "uniform": (1.0, 1.0),
    }[balance]
    tasks = [task_of("own", {0: 1.0}, x, x_student, 3.0), task_of("keep", {}, x, x_student, 0.5)]
    _, report = solve(net, [adapter], tasks, balance=balance)
    assert report.tasks[0].weight == pytest.approx(3.0 * float(own), rel=1e-9)
    assert report.tasks[1].weight == pytest.approx(0.5 * float(preserve), rel=1e-9)


@pytest.mark.parametrize(("bad", "side"), [(math.nan, "teacher"), (math.inf, "student")])
def test_activations_that_are_not_finite_name_layer_and_task(net, bad, side):
    (x, x_student) = random_inputs()
    good = random_inputs()
    (x if side == "teacher" else x_student)[3, 2] = bad
    tasks = [task_of("good", {0: 1.0}, *good), task_of("broken", {1: 1.0}, x, x_student)]
    message = r"^layer 'layer': the inputs of task 'broken' hold NaN or infinite numbers.*bfloat16 or float32"
    with pytest.raises(SolveError, match=message):
        solve(net, [random_adapter(), random_adapter(name="b")], tasks)


def test_inputs_that_are_all_zero_name_layer_and_task(net):
    x, x_student = random_inputs()
    tasks = [task_of("good", {0: 1.0}, x, x_student), task_of("empty", {1: 1.0}, 0 * x)]
    said = r"^layer 'layer': all inputs of task 'empty' are zero here; use other samples"
    with pytest.raises(SolveError, match=said):
        solve(net, [random_adapter(), random_adapter(name="b")], tasks)


@given(seed=st.integers(0, 1000))
def test_fewer_tokens_than_width_without_a_ridge_is_an_error_with_advice(net, seed):
    torch.manual_seed(seed)
    x = torch.randn(1, D_IN).double()
    message = r"Gram matrix \(6 x 6\) of 1 tokens is not positive definite.*alpha = 0; set alpha to 1e-6 or more, or use more"
    with pytest.raises(SolveError, match=message):
        solve(net, [random_adapter()], [task_of("a", {0: 1.0}, x)], alpha=0.0)


def test_a_task_of_weight_0_has_no_say_even_if_its_inputs_are_broken(net):
    adapter = random_adapter()
    rows = random_inputs()
    good = task_of("good", {0: 1.0}, *rows)
    broken = task_of("broken", {}, rows[0] * math.nan, weight=0.0)
    alone, _ = solve(net, [adapter], [good])
    assert torch.equal(solve(net, [adapter], [good, broken])[0], alone)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_token_weights_have_to_be_numbers_from_0(net, bad):
    x, _ = random_inputs()
    task = Task("a", [Sample((x,), token_weights={"image": torch.full((20,), bad)})], {0: 1.0})
    with pytest.raises(ValueError, match="token weight"):
        solve(net, [random_adapter()], [task])


def test_a_matrix_is_factorised_and_the_row_where_that_stops_is_told():
    size = 1001
    rows = torch.randn(size // 4, size, dtype=torch.float64)
    matrix = rows.T @ rows / size + torch.eye(size, dtype=torch.float64)
    factor, failed_at = cholesky(matrix.clone())
    torch.testing.assert_close(factor, torch.linalg.cholesky(matrix), rtol=0, atol=1e-13)
    assert failed_at == 0
    for row in (5, size // 2, size - 1):
        broken = matrix.clone()
        broken[row, row] = -1.0
        assert cholesky(broken)[1] == row + 1
