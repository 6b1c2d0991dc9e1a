"""A device whose memory is really full; see `second_device`."""

import gc
import logging
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import tiny_hosts
import torch
import torch_npu
from comfy_loras import CAPTION, EXACT, SMALL, largest_difference, loaded, lora_of

from iteris_core import IterisError
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.memory import Room

memory = torch_npu.memory
PLENTY = 1 << 40


def merged(host, loras, samples):
    calibration = replace(SMALL, resolution=256)
    return merge_loras(Job.of(host, loras, calibration, MergeSettings(EXACT), Room(samples)))


@contextmanager
def room(size):
    """Leave no more on the device, which nobody is told: ComfyUI would unload weights."""
    memory.set_limit(memory.used() + size)
    try:
        with mock.patch.object(torch.npu, "mem_get_info", lambda device: (PLENTY, PLENTY)):
            yield
    finally:
        memory.set_limit(PLENTY)


def test_calls_get_smaller_until_they_fit_and_the_merge_is_the_same(caplog):
    caplog.set_level(logging.INFO, "iteris")
    host = tiny_hosts.host_of("SD1.5")
    files = {name: lora_of(host, seed, "kohya") for seed, name in enumerate(("one", "two"))}
    loras = [loaded(host, name, file, CAPTION) for name, file in files.items()]
    merged(host, loras, 1)  # and the model stays on the device
    loaded_bytes = memory.used()
    memory.reset_peak()
    expected = merged(host, loras, 16).adapter
    taken = memory.peak() - loaded_bytes
    caplog.clear()
    with room(taken // 2):
        found = merged(host, loras, 16).adapter
    assert largest_difference(found, expected) < 1e-3
    told = "\n".join(record.message for record in caplog.records)
    assert "the sweep ran out of memory" in told and "the check on unseen samples ran out" in told
    with room(taken // 50), pytest.raises(IterisError, match="out of memory"):
        merged(host, loras, 16)
    gc.collect()
    assert memory.used() == loaded_bytes
