"""Sampling runs that are taken from the last merge: the same answer, and nothing else."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

from iteris_core import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.stages import SAMPLING

_SMALL = {"trajectories": 4, "timesteps": 2, "sampling_steps": 4, "resolution": 64, "cfg": 3.0}
CALIBRATION = Calibration(**_SMALL, preserve_captions=("a street", "a lake"))
PRESERVE_RUNS = 4


@pytest.fixture
def remembering(host, monkeypatch):
    memory = {}
    denoiser = host.denoiser

    @contextmanager
    def with_memory():
        with denoiser() as network:
            yield dataclasses.replace(network, memory=memory)

    monkeypatch.setattr(host, "denoiser", with_memory)
    return host, memory


def reused(result):
    return [note.text for note in result.report.notes if note.kind == "reused"]


def sampled(stages):
    return [stage for stage in stages if stage[0] == SAMPLING]


def test_another_rank_samples_nothing_and_gives_what_it_would_give_afresh(remembering):
    host, memory = remembering
    loras = [host.lora("a"), host.lora("b", prompts=["<y> dog"])]
    runs = 2 * 4 + PRESERVE_RUNS
    first, stages = host.merge(loras, CALIBRATION)
    assert sampled(stages) and len(memory) == runs and reused(first) == []
    again, stages = host.merge(loras, CALIBRATION, MergeConfig(rank=2))
    assert not sampled(stages) and len(memory) == runs
    [text] = reused(again)
    assert text.startswith(f"all {runs} sampling runs are taken from an earlier merge")
    memory.clear()
    afresh, _ = host.merge(loras, CALIBRATION, MergeConfig(rank=2))
    assert again.adapter.deltas.keys() == afresh.adapter.deltas.keys()
    for path, delta in again.adapter.deltas.items():
        assert torch.equal(delta.dense(), afresh.adapter.deltas[path].dense())


def test_whatever_decides_a_run_is_part_of_what_it_is_known_by(remembering):
    host, memory = remembering
    lora = host.lora("a")
    host.merge([lora], CALIBRATION)
    changes = {"seed": 1, "cfg": 3.5, "sampling_steps": 8, "resolution": 128, "timesteps": 1}
    for name, value in {**changes, "negative_prompt": "bad"}.items():
        known = len(memory)
        host.merge([lora], dataclasses.replace(CALIBRATION, **{name: value}))
        assert len(memory) == known + 8, name
