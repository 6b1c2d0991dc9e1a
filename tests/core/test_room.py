"""The command line shares out a device's memory as the node does."""

from dataclasses import replace

import torch
from fake_host import FakeHost

from iteris_core import MergeConfig
from iteris_core.devices import free_bytes
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.model import DiffusionHost
from iteris_core.engines import measure

CALIBRATION = Calibration(trajectories=4, resolution=64, held_out=0)
CONFIG = MergeConfig(samples_per_chunk=4)
GB = 1 << 30


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
