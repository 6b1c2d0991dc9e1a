"""How a device's memory is shared out between calls, sums, and samples that wait."""

import weakref
from functools import partial
from unittest import mock

import pytest
import torch
import toy
from fake_host import FakeHost
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network, Sample, Task, merge
from iteris_core.algebra import coarse
from iteris_core.algebra.products import TOKENS_PER_PRODUCT
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.model import DiffusionHost
from iteris_core.engines import layer_sums
from iteris_core.engines.layer_sums import layer_bytes
from iteris_core.engines.measure import Measurement
from iteris_core.engines.problem import Problem
from iteris_core.engines.shared_inputs import SharedInputs
from iteris_core.memory import LayerBytes, Room, calls_that_fit, free_bytes, share_out

GB = 1 << 30
CPU = torch.device("cpu")


def takes(samples):
    return 0.25 * GB * samples


def test_calls_are_as_large_as_leaves_room_for_all_that_waits():
    """Small ones would only cost starts of operations."""
    free = 20 * GB  # 16 of them are used: 12.6 for what waits, and 3.4 for a call
    assert share_out(takes, samples=90, most=16, free=free).samples_per_chunk == 13
    solve = LayerBytes(1 * GB, 2 * GB)  # while a layer is solved no call runs
    assert share_out(takes, samples=90, most=16, free=free, layer=solve).samples_per_chunk == 9


@given(free=st.floats(-2, 60), sums=st.floats(0, 2), solve=st.floats(0, 2))
def test_a_call_the_sums_and_the_waiting_samples_fit_on_any_device(free, sums, solve):
    layer = LayerBytes(sums * GB, solve * GB)
    room = share_out(takes, samples=90, most=8, free=free * GB, layer=layer)
    assert 1 <= room.samples_per_chunk <= 8
    assert room.waiting_bytes >= 0
    working = layer.sums + max(layer.solve, takes(2 * room.samples_per_chunk))
    assert room.required <= working + min(room.waiting_bytes, takes(90)) + 1
    least = layer.sums + max(layer.solve, takes(2))
    assert room.required <= max(0.8 * free * GB, least) + 1
    assert 0 <= room.worn_bytes <= room.required
    assert room.missing == max(0, layer.sums + max(layer.solve, takes(1)) - free * GB)
    if free > 45:  # room for all samples, and large calls; none is copied
        assert room.samples_per_chunk == 8 and room.waiting_bytes >= takes(90)
        assert room.required == layer.sums + max(layer.solve, takes(8)) + takes(90)


@pytest.mark.parametrize(("target", "tasks"), [("delta", 2), ("full_output", 3)])
def test_the_largest_layer_holds_the_sums_of_every_layer(target, tasks):
    net = toy.build("attention")
    adapters = [net.adapter(str(k)) for k in range(tasks)]
    config = MergeConfig(target=target)
    problem = Problem(net.network(), adapters, toy.own_tasks(net, adapters), config)
    room = LayerBytes.most(
        layer_bytes(problem.network.modules, adapters, tasks, config, CPU).values()
    )
    largest = 0
    for path in net.targets:
        module = problem.network.modules[path]
        x = torch.zeros(1, 100, module.in_features).double()
        opened = Measurement.open(problem, path, module, x, module(x), SharedInputs())
        largest = max(largest, opened.sum_bytes())
    codes = 8 * tasks * 2 * (6 + 2)  # with those of a row: they are as narrow as the rank
    gathered = 4 * tasks * TOKENS_PER_PRODUCT * 3 * 6  # in float64 here, and in float32 in use
    changes = 8 * 2 * tasks * 6 * 6 * (target == "full_output")  # where layers share an input
    assert largest - codes - gathered <= room.sums <= largest + changes


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside it make, and that still live."""

    def __init__(self):
        super().__init__()
        self.others = weakref.WeakValueDictionary()  # made before
        self.live = weakref.WeakValueDictionary()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            if id(storage) not in self.live:
                self.others[id(storage)] = storage
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if id(storage) not in self.others:
                self.live[id(storage)] = storage
        self.most = max(self.most, sum(storage.nbytes() for storage in self.live.values()))
        return found


def _storages(tree):
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    ("d_out", "d_in", "keeps_rows"),
    [(64, 512, False), (512, 64, False), (256, 256, False), (32, 576, True)],
)
def test_the_largest_layer_knows_what_its_solve_takes(
    precision, d_out, d_in, keeps_rows, monkeypatch
):
    monkeypatch.setattr(coarse, "_ENTRIES_AT_ONCE", 1 << 12)  # as few of all as in a wide layer
    monkeypatch.setattr("iteris_core.engines.counted_tokens.PATCHES", 64)
    module = torch.nn.Linear(d_in, d_out, bias=False).bfloat16()
    shape = (900, d_in)
    if keeps_rows:
        module = torch.nn.Conv2d(d_in // 9, d_out, 3, padding=1, bias=False).bfloat16()
        shape = (d_in // 9, 16, 16)
    adapters = [
        Adapter(name, {"a": LowRankDelta(torch.randn(d_out, 2), torch.randn(2, d_in))})
        for name in "ab"
    ]
    tasks = [Task(str(g), [Sample(torch.randn(shape))], {g: 1.0}) for g in range(2)]
    seen = []
    solve = Measurement.solve

    def counted(measurement, solver):
        with _LiveBytes() as bytes:
            solved = solve(measurement, solver)
        seen.append(bytes.most)
        return solved

    network = Network({"a": module}, lambda rows: module(torch.stack(rows).bfloat16()))
    with mock.patch.object(Measurement, "solve", counted), toy.factorised_in(precision):
        merge(network, adapters, tasks)
        room = layer_bytes({"a": module}, adapters, 2, MergeConfig(), CPU)["a"]
    assert 0.6 * room.solve < seen[0] < 1.15 * room.solve


CALIBRATION = Calibration(trajectories=4, resolution=64)
CONFIG = MergeConfig()
ROOM = Room(samples_per_chunk=4)


def chosen(free, config=CONFIG):
    host: DiffusionHost = FakeHost()
    job = Job.of(host, [host.lora("a"), host.lora("b")], CALIBRATION, MergeSettings(config), ROOM)
    return job.within_free(free and int(free), bytes_per_number=2, device=CPU).room


def test_waiting_rows_get_what_calls_and_sums_leave(monkeypatch):
    seen = []

    def layer_bytes(modules, adapters, tasks, config, device):
        part = next(iter(modules)).partition(".")[0]
        seen.append((part, len(adapters), tasks, config))
        found = layer_sums.layer_bytes(modules, adapters, tasks, config, device)
        assert all(layer.solve > 0 for layer in found.values())
        return dict.fromkeys(found, LayerBytes(0.9 * GB, 0.1 * GB))

    monkeypatch.setattr("iteris_core.diffusion.job.layer_bytes", layer_bytes)
    large, small, least = (chosen(free * GB) for free in (40, 2, 0.9))
    # with the base model's task
    assert seen == [("te", 2, 3, CONFIG), ("unet", 2, 3, CONFIG)] * 3
    assert large.samples_per_chunk == 4  # as asked for, never more
    assert large.waiting_bytes == pytest.approx((0.8 * 40 - 1) * GB)
    assert 0 < large.call_bytes < 0.02 * GB
    assert 0 < small.waiting_bytes < large.waiting_bytes
    assert least.waiting_bytes == 0 and least.samples_per_chunk == 1  # none for samples


def test_a_budget_that_nobody_knows_changes_nothing():
    assert chosen(None) == ROOM
    assert free_bytes(torch.device("cpu")) > 0  # the host has a budget, too


def test_calls_are_as_large_as_one_row_lets_them_be(monkeypatch):
    card = torch.device("cuda", 0)
    told = {"max_memory_allocated": 370, "memory_reserved": 140}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    done = []
    # its gradients stay
    monkeypatch.setattr(
        torch.cuda, "memory_allocated", lambda device: 120 if "run" in done else 100
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1020, 2000))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))
    run = partial(done.append, "run")
    # of 250 each, in 0.8 of 1020 + 20 without what Adam will keep
    assert calls_that_fit(run, card, 16) == 3
    assert done == ["reset", "run"]
    done.clear()
    assert calls_that_fit(run, card, 2) == 2
    done.clear()
    assert calls_that_fit(run, card, 16, lambda: 1000) == 6  # that the host gives up
    done.clear()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9000)
    assert calls_that_fit(run, card, 16) == 1
    done.clear()
    assert calls_that_fit(run, torch.device("cpu"), 16) == 16
    assert not done
