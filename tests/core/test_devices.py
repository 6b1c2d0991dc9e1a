"""How a device's memory is shared out between calls, the sums of a layer, and samples that wait; by the
command line as by the node.
"""

from dataclasses import replace

import pytest
import torch
import toy
from fake_host import FakeHost
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import MergeConfig
from iteris_core.algebra.products import TOKENS_PER_PRODUCT
from iteris_core.devices import free_bytes, share_out
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.model import DiffusionHost
from iteris_core.engines import measure
from iteris_core.engines.measure import Measurement, room_for_sums
from iteris_core.engines.problem import Problem
from iteris_core.engines.shared_inputs import SharedInputs

GB = 1 << 30


def takes(samples):
    return 0.25 * GB * samples


def test_a_device_with_room_for_all_samples_runs_large_calls():
    room = share_out(takes, samples=90, most=8, free=40 * GB)
    assert room.samples_per_chunk == 8
    assert room.waiting_bytes >= takes(90)
    assert room.required == takes(16) + takes(90)


@given(free=st.floats(1, 24), sums=st.floats(0, 2))
def test_a_call_the_sums_and_the_waiting_samples_fit_on_a_smaller_device(free, sums):
    room = share_out(takes, samples=90, most=8, free=free * GB, sums=sums * GB)
    assert 1 <= room.samples_per_chunk <= 8
    assert room.waiting_bytes >= 0
    working = sums * GB + takes(2 * room.samples_per_chunk)
    assert room.required == pytest.approx(working + min(room.waiting_bytes, takes(90)))
    assert room.required <= max(0.8 * free * GB, sums * GB + takes(2)) + 1
    assert room.missing == max(0, sums * GB + takes(1) - free * GB)


def test_a_model_that_does_not_fit_leaves_no_room_and_one_sample_a_call():
    room = share_out(takes, samples=90, most=8, free=-2 * GB)
    assert (room.samples_per_chunk, room.waiting_bytes) == (1, 0)
    assert room.missing == 2.25 * GB


@pytest.mark.parametrize(("target", "tasks"), [("delta", 2), ("full_output", 3)])
def test_the_room_for_sums_holds_those_of_every_layer_and_a_solve(target, tasks):
    net = toy.build("attention")
    adapters = [net.adapter(str(k)) for k in range(tasks)]
    config = MergeConfig(target=target)
    problem = Problem(net.network(), adapters, toy.own_tasks(net, adapters), config)
    room = room_for_sums(problem.network.modules, adapters, tasks, config)
    largest = 0
    for path in net.targets:
        module = problem.network.modules[path]
        x = torch.zeros(1, 100, module.in_features).double()
        opened = Measurement.open(problem, path, module, x, module(x), SharedInputs())
        largest = max(largest, opened.sum_bytes())
    codes = 8 * tasks * 2 * (6 + 2)  # with those of a row: they are as narrow as the rank
    solve = 8 * 4 * 6 * (6 + 6)
    outputs = 8 * tasks * TOKENS_PER_PRODUCT * 6  # which wait for no product with target delta
    changes = 8 * 2 * tasks * 6 * 6 * (target == "full_output")  # where layers share an input
    assert largest - codes <= room <= largest + solve + changes + outputs * (target == "delta")


CALIBRATION = Calibration(trajectories=4, resolution=64, held_out=0)
CONFIG = MergeConfig(samples_per_chunk=4)


def chosen(free, config=CONFIG):
    host: DiffusionHost = FakeHost()
    job = Job.of(host, [host.lora("a"), host.lora("b")], CALIBRATION, MergeSettings(config))
    return job.within_free(free, bytes_per_number=2).config


def test_waiting_rows_get_what_calls_and_sums_leave(monkeypatch):
    seen = []

    def room_for_sums(modules, adapters, tasks, config):
        seen.append((len(adapters), tasks, config))
        assert measure.room_for_sums(modules, adapters, tasks, config) > 0
        return GB

    monkeypatch.setattr("iteris_core.diffusion.job.room_for_sums", room_for_sums)
    large, small, least = (chosen(free * GB) for free in (40, 2, 1))
    assert seen == [(2, 3, CONFIG)] * 3  # with the base model's task
    assert large.samples_per_chunk == 4  # as asked for, never more
    of_sample = 2 * 0.01 * 2**20 * 2 * 8 * 8
    assert large.waiting_bytes == int(0.8 * 40 * GB - GB - 2 * 4 * of_sample)
    assert 0 < small.waiting_bytes < large.waiting_bytes
    assert (least.waiting_bytes, least.samples_per_chunk) == (0, 1)
    assert replace(large, waiting_bytes=None) == CONFIG


def test_a_given_budget_stays_and_one_that_nobody_knows_changes_nothing():
    given = replace(CONFIG, waiting_bytes=5)
    assert chosen(40 * GB, given) == given
    assert chosen(None) == CONFIG
    assert free_bytes(torch.device("cpu")) > 0  # the host has a budget, too
