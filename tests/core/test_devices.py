"""How a device's memory is shared out between calls, the sums of a layer, and samples that wait."""

import pytest
import torch
import toy

from iteris_core import MergeConfig, Network
from iteris_core.algebra.statistics import TOKENS_PER_PRODUCT
from iteris_core.devices import share_out
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


@pytest.mark.parametrize("sums", [0, 0.5, 2])
@pytest.mark.parametrize("free", [1, 4, 8, 12, 24])
def test_a_call_the_sums_and_the_waiting_samples_fit_on_a_smaller_device(free, sums):
    room = share_out(takes, samples=90, most=8, free=free * GB, sums=sums * GB)
    assert 1 <= room.samples_per_chunk <= 8
    assert room.waiting_bytes >= 0
    working = sums * GB + takes(2 * room.samples_per_chunk)
    assert room.required == pytest.approx(working + min(room.waiting_bytes, takes(90)))
    assert room.required <= max(0.8 * free * GB, sums * GB + takes(2))
    assert room.missing == max(0, sums * GB + takes(1) - free * GB)


def test_calls_are_smaller_where_samples_may_have_to_wait_elsewhere():
    assert share_out(takes, 90, 8, 34 * GB).samples_per_chunk == 8
    assert share_out(takes, 90, 8, 24 * GB).samples_per_chunk == 4


def test_more_room_lets_more_samples_wait_there():
    waiting = [share_out(takes, 90, 8, free * GB).waiting_bytes for free in (8, 12, 24, 30)]
    assert waiting == sorted(set(waiting))


def test_a_model_that_does_not_fit_leaves_no_room_and_one_sample_a_call():
    room = share_out(takes, samples=90, most=8, free=-2 * GB)
    assert (room.samples_per_chunk, room.waiting_bytes) == (1, 0)
    assert room.missing == 2.25 * GB


@pytest.mark.parametrize("target", ["delta", "full_output"])
@pytest.mark.parametrize("tasks", [2, 3])
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
    assert largest - codes <= room <= largest + solve + outputs * (target == "delta")


def test_layers_that_the_network_does_not_have_take_no_room():
    adapter = toy.build("attention").adapter()
    empty = Network({}, lambda rows: rows)
    assert room_for_sums(empty.modules, [adapter], 2, MergeConfig()) == 0


def test_a_convolution_keeps_its_patches_and_makes_no_gram_matrix_for_each_task():
    net = toy.build("convolution")
    adapter = net.adapter(paths=["spatial"])
    few = MergeConfig(target="delta", patches=2)
    many = MergeConfig(target="delta", patches=1000)
    width = 6 * 9
    rooms = [room_for_sums(net.network().modules, [adapter], 3, config) for config in (few, many)]
    gathered = 8 * 3 * TOKENS_PER_PRODUCT * (2 * width + 6)
    kept = 8 * (2 * width + 4 * width**2)
    assert rooms == [gathered + kept, gathered + 8 * (3 + 4) * width**2]
