"""Paused chunks whose tensors wait on the host; here the "device" is the CPU, on which storages
work the same.
"""

import pytest
import torch
import toy

from iteris_core.rows.lockstep import pause, run_in_lockstep
from iteris_core.rows.parking import Parking


@pytest.fixture
def park_everything(monkeypatch):
    """Park CPU tensors of any size, and return the numbers of bytes that were parked each time."""
    sizes = []
    monkeypatch.setattr(Parking, "is_parkable", lambda self, tensor: True)
    original = Parking.park

    def park(self, frame):
        self.smallest = 1
        parked = original(self, frame)
        sizes.append(sum(content.numel() for _, content in parked.contents))
        return parked

    monkeypatch.setattr(Parking, "park", park)
    return sizes


@pytest.mark.parametrize(
    ("name", "inference"),
    [
        ("stack", False),
        ("attention", False),
        ("attention", True),
        ("convolution", True),
        ("in place", False),
    ],
)
def test_parking_changes_nothing(park_everything, name, inference):
    net = toy.build(name)
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters)
    weights = {key: value.clone() for key, value in net.model.state_dict().items()}
    expected = toy.merge_toy(net, adapters, tasks, samples_per_chunk=2)
    assert not park_everything
    with torch.inference_mode(inference):
        found = toy.merge_toy(net, adapters, tasks, samples_per_chunk=2, park_on_host=True)
    assert len(park_everything) == 3 * len(net.targets) and min(park_everything) > 0
    for path, delta in expected.adapter.deltas.items():
        assert torch.equal(delta.up, found.adapter.deltas[path].up) and torch.equal(
            delta.down, found.adapter.deltas[path].down
        )
    assert all(torch.equal(value, weights[key]) for key, value in net.model.state_dict().items())


def test_views_share_what_is_parked_and_come_back_whole(park_everything):
    def work(start):
        def inside():
            whole = torch.arange(start, start + 12).double()
            views = [whole[2:5], (whole.reshape(3, 4)[:, 1],)]
            pause("x")
            return whole.clone(), views[0].clone(), views[1][0].clone()

        return inside

    seen = []
    results = run_in_lockstep(
        [work(0), work(100)], lambda place: seen.append(list(park_everything)), Parking([])
    )
    assert seen == [[96, 96]]
    for start, (whole, part, column) in zip((0, 100), results, strict=True):
        assert torch.equal(whole, torch.arange(start, start + 12).double())
        assert torch.equal(part, whole[2:5]) and torch.equal(column, whole.reshape(3, 4)[:, 1])


def test_the_models_own_tensors_stay(park_everything):
    layer = torch.nn.Linear(4, 4)

    def work():
        weight = layer.weight.detach()
        pause("x")
        return weight.sum()

    run_in_lockstep([work, work], lambda place: layer(torch.zeros(1, 4)), Parking([layer]))
    assert park_everything == [0, 0]


def test_an_exception_elsewhere_unwinds_a_parked_worker(park_everything):
    def fails():
        pause("x")
        raise RuntimeError("broken")

    mine = torch.ones(8)

    def waits():
        kept = mine
        pause("x")
        pause("y")
        return kept

    with pytest.raises(RuntimeError, match="broken"):
        run_in_lockstep([waits, fails], lambda place: None, Parking([]))
    assert torch.equal(mine, torch.ones(8))  # whole again
