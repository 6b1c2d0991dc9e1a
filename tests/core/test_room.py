"""The command line shares out a device's memory as the node does."""

from dataclasses import replace

import torch
from fake_host import FakeHost

from iteris_core import MergeConfig
from iteris_core.devices import free_bytes
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.model import DiffusionHost
from iteris_core.diffusion.room import with_room
from iteris_core.engines import measure

CALIBRATION = Calibration(trajectories=4, resolution=64, held_out=0)
SETTINGS = MergeConfig(samples_per_chunk=4)
GB = 1 << 30


def chosen(free, settings=SETTINGS):
    host: DiffusionHost = FakeHost()
    loras = [host.lora("a"), host.lora("b")]
    return with_room(host, loras, CALIBRATION, settings, free=free, bytes_per_number=2)


def test_waiting_rows_get_what_calls_and_sums_leave(monkeypatch):
    monkeypatch.setattr("iteris_core.diffusion.room.room_for_sums", lambda *args: GB)
    large, small = chosen(40 * GB), chosen(2 * GB)
    assert large.samples_per_chunk == 4  # as asked for, never more
    of_sample = 2 * 0.01 * 2**20 * 2 * 8 * 8
    assert large.waiting_bytes == int(0.8 * 40 * GB - GB - 2 * 4 * of_sample)
    assert 0 < small.waiting_bytes < large.waiting_bytes
    assert chosen(GB).waiting_bytes == 0
    assert chosen(GB).samples_per_chunk == 1
    assert replace(large, waiting_bytes=None) == SETTINGS


def test_the_sums_that_are_counted_are_those_of_the_tasks(monkeypatch):
    seen = []

    def room_for_sums(modules, adapters, tasks, config):
        seen.append((len(adapters), tasks, config))
        return measure.room_for_sums(modules, adapters, tasks, config)

    monkeypatch.setattr("iteris_core.diffusion.room.room_for_sums", room_for_sums)
    chosen(8 * GB)
    assert seen == [(2, 3, SETTINGS)]  # with the base model's task


def test_a_given_budget_stays_and_one_that_nobody_knows_changes_nothing():
    given = replace(SETTINGS, waiting_bytes=5)
    assert chosen(40 * GB, given) == given
    assert chosen(None) == SETTINGS


def test_the_host_has_a_budget_too():
    assert free_bytes(torch.device("cpu")) > 0
