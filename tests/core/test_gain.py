"""Unit gain: every layer does as much of each LoRA as the LoRA alone, on the LoRA's own task."""

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


def test_scales_are_within_their_bounds_stay_one_where_nothing_depends_and_are_shared_alike():
    for matrix, right, scales in (
        ([[0.0, 0.0], [0.0, 0.5]], [0.0, 0.75], [1.0, 1.5]),
        ([[0.4, 0.4]] * 2, [1.0, 1.0], [1.25, 1.25]),
        ([[0.9, 0.0], [0.5, 1.5]], [9.0, 1.0], [2.0, 1.0]),
    ):
        assert bounded_solution(matrix, right, 2.0) == pytest.approx(scales)
