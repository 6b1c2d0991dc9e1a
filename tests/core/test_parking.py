"""Paused chunks whose tensors wait on the host; here the CPU plays a device without room."""

import logging
import weakref
from unittest.mock import Mock

import pytest
import torch
import toy

from iteris_core import CalibrationError, Sample, Task
from iteris_core.engines.problem import Problem
from iteris_core.engines.sweep import sweep
from iteris_core.memory import Room
from iteris_core.rows import parking as parking_module
from iteris_core.rows.lockstep import pause, run_in_lockstep
from iteris_core.rows.parking import Parking


@pytest.fixture(autouse=True)
def cpu_as_a_device(monkeypatch):
    monkeypatch.setattr(parking_module, "_EMPTIED", frozenset({"cpu"}))


def everything_from(modules):
    return Parking(modules, smallest=1)


@pytest.fixture
def parked(caplog):
    caplog.set_level(logging.DEBUG, "iteris")

    def sizes():
        parked = [record for record in caplog.records if "wait elsewhere" in record.message]
        return [record.args[0] for record in parked]

    return sizes


def swept(net, adapters, tasks, parking=None, samples_per_chunk=8, **settings):
    room = Room(samples_per_chunk)
    problem = Problem(net.network(), adapters, tasks, toy.exact(**settings), room=room)
    layers = sweep(problem, parking=parking).layers
    return {path: layer.saved.dense() for path, layer in layers.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for path, delta in expected.items():
        assert torch.equal(delta, found[path]), path


@pytest.mark.parametrize(
    ("name", "inference"), [("attention", True), ("convolution", False), ("in place", False)]
)
def test_parking_changes_nothing(parked, name, inference):
    net, adapters, tasks = toy.pair(name)
    weights = {key: value.clone() for key, value in net.model.state_dict().items()}
    expected = swept(net, adapters, tasks, samples_per_chunk=2)
    assert not parked()
    parking = everything_from(net.network().modules.values())
    with torch.inference_mode(inference):
        found = swept(net, adapters, tasks, parking, samples_per_chunk=2)
    assert len(parked()) == 3 * len(net.targets) and min(parked()) > 0
    assert_same(found, expected)
    assert all(torch.equal(value, weights[key]) for key, value in net.model.state_dict().items())


def test_only_what_the_budget_has_no_room_for_is_copied(parked):
    net, adapters, tasks = toy.pair("attention")
    modules = net.network().modules.values()
    expected = swept(net, adapters, tasks, samples_per_chunk=1)
    copied = {}
    chunks = sum(len(task.samples) for task in tasks)
    all_of_them = everything_from(modules)
    assert_same(swept(net, adapters, tasks, all_of_them, samples_per_chunk=1), expected)
    copied[0] = sum(parked())
    assert len(parked()) == chunks * len(net.targets)
    most = max(parked()) * chunks  # that all of them hold at any layer, at most
    for share in (0.3, 0.6, 1.0):
        before = len(parked())
        parking = Parking(modules, budget=int(share * most), smallest=1)
        assert_same(swept(net, adapters, tasks, parking, samples_per_chunk=1), expected)
        copied[share] = sum(parked()[before:])
        assert parking.staying_bytes == 0
    assert copied[0] > copied[0.3] > copied[0.6] > copied[1.0] == 0
    assert copied[0.3] < 0.8 * copied[0] and copied[0.6] < 0.5 * copied[0]


def test_rows_that_run_in_the_hosts_memory_stay_there(parked, monkeypatch):
    monkeypatch.setattr(parking_module, "_EMPTIED", frozenset({"cuda"}))
    net, adapters, tasks = toy.pair("attention")
    problem = Problem(net.network(), adapters, tasks, toy.exact(), room=Room(waiting_bytes=0))
    sweep(problem)
    assert not parked()


def test_memory_of_the_device_is_given_back_while_chunks_wait():
    """Six chunks of 4 MB each, of which two have room."""
    made = []
    alive = []

    def work():
        x = torch.ones(1 << 20)
        made.append(weakref.ref(x))
        pause("here")
        return x.sum().item()

    parking = Parking([], budget=9 << 20)

    def arrived(place):
        alive.append(sum(x().untyped_storage().nbytes() for x in made))

    assert run_in_lockstep([work] * 6, arrived, parking) == [float(1 << 20)] * 6
    assert alive == [8 << 20]


def test_what_several_samples_read_stays_and_kept_rows_do_not_wait(parked):
    """One text is in every chunk's frames; of few tokens the solve uses the rows themselves."""
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    text = torch.randn(2, 5).double()
    before = text.clone()
    tasks = [
        Task(name, [Sample((net.make_row()[0][:2], text)) for _ in range(2)], {k: 1.0})
        for k, name in enumerate("ab")
    ]
    expected = swept(net, adapters, tasks, samples_per_chunk=1)
    parking = everything_from(net.network().modules.values())
    assert_same(swept(net, adapters, tasks, parking, samples_per_chunk=1), expected)
    assert torch.equal(text, before)
    assert min(parked()) > 0


def of_length(layer, length, remember):
    """A worker that uses a table which the model remembers, of its own length if need be."""

    def work():
        if len(getattr(layer, "table", ())) != length:
            layer.__dict__.pop("table", None)
            layer._buffers.pop("table", None)
            remember(layer, torch.ones(length))
        table, weight = layer.table, layer.weight.detach()
        pause("x")
        return table.sum() + 0 * weight.sum()

    return work


def as_buffer(layer, table):
    layer.register_buffer("table", table)


def as_attribute(layer, table):
    vars(layer).update(table=table)


@pytest.mark.parametrize(
    ("remember", "lengths"), [(as_buffer, (8, 8, 8)), (as_attribute, (8, 9, 9))]
)
def test_the_models_own_tensors_and_what_it_remembers_stay(parked, remember, lengths):
    layer = torch.nn.Linear(4, 4)
    workers = [of_length(layer, length, remember) for length in lengths]
    parking = everything_from([layer])
    found = run_in_lockstep(workers, lambda place: layer(torch.zeros(1, 4)), parking)
    assert found == [*lengths]
    assert not parked()


def test_what_workers_share_without_a_mark_is_an_error():
    shared = torch.ones(8)

    def work():
        local = shared
        pause("x")
        return local

    said = r"'work' of the model holds a tensor of shape \(8,\).*waiting_bytes"
    with pytest.raises(CalibrationError, match=said):
        run_in_lockstep([work, work], lambda place: None, everything_from([]))
    assert torch.equal(shared, torch.ones(8))


def test_an_exception_elsewhere_unwinds_a_parked_worker():
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
        run_in_lockstep([waits, fails], lambda place: None, everything_from([]))
    assert torch.equal(mine, torch.ones(8))  # whole again


def test_chunks_that_have_no_room_to_come_back_are_let_go():
    """So that what ran out of memory can be tried again."""
    parking = everything_from([])
    parking.store.read = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    made = []
    ended = []

    def work():
        x, y = torch.ones(8), torch.ones(4)
        made.extend(map(weakref.ref, (x, y)))
        try:
            pause("x")
        finally:
            ended.append(x.shape != y.shape)

    def tried():
        with pytest.raises(torch.OutOfMemoryError):
            run_in_lockstep([work] * 3, lambda place: None, parking)

    tried()
    assert ended == [True] * 3
    assert parking.staying_bytes == 0
    assert not any(x() is not None for x in made)


def test_a_tensor_that_a_chunk_lets_go_after_it_has_waited_is_freed():
    def work():
        x = torch.ones(8)
        made = weakref.ref(x)
        pause("x")
        total = x.sum().item()
        del x
        return total, made() is None

    assert run_in_lockstep([work] * 2, lambda place: None, everything_from([])) == [(8, True)] * 2


class OnMac(torch.Tensor):
    """A tensor that says that it is on a Mac's GPU."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (8,), device="mps")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


def test_tensors_stay_on_devices_whose_storages_torch_cannot_empty():
    parking = everything_from([])
    assert parking._stays(OnMac()) and not parking._stays(torch.ones(8))


def test_pages_are_locked_only_where_the_host_keeps_some(monkeypatch):
    for free, expected in ((None, True), ((4 << 30) + 1, True), (4 << 30, False), (0, False)):
        monkeypatch.setattr(parking_module, "free_bytes", lambda device, free=free: free)
        assert parking_module._may_lock(1 << 30) is expected


def test_a_sweep_gives_back_what_waiting_took():
    net, adapters, tasks = toy.pair("attention")
    parking = everything_from(net.network().modules.values())
    parking.store.close = Mock()
    swept(net, adapters, tasks, parking, samples_per_chunk=2)
    assert parking.copied_bytes > 0
    parking.store.close.assert_called_once()
