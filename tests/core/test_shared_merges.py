"""A merge that several processes share is the merge of one."""

import subprocess
import sys
from pathlib import Path

import process_checks
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from iteris_core.engines.layer_sums import Drifting
from iteris_core.processes import Processes
from iteris_core.processes import alone as alone_in_its_group

SCRIPT = Path(process_checks.__file__)


@pytest.mark.slow
def test_processes_that_share_the_samples_find_what_one_finds(tmp_path):
    """The script also lets a process fail, run out of memory, and be given something else."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "3", str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone, found = process_checks.merged(), load_file(tmp_path / "found-3.safetensors")
    assert set(found) == set(alone)
    errors = {key: ((found[key] - alone[key]).norm() / alone[key].norm()).item() for key in alone}
    assert all(error < 1e-10 for error in errors.values()), {
        k: v for k, v in errors.items() if v >= 1e-10
    }


def test_all_processes_measure_a_drift_in_the_way_that_suits_all():
    class WithAnotherThatDiffers(Processes):
        def add_up(self, tensors):
            for tensor in tensors:
                tensor.add_(1)

    layer = torch.nn.Linear(4, 3).bfloat16()
    x = torch.randn(2, 5, 4).bfloat16()
    assert Drifting.of(layer, x, layer(x), Processes()).weight is not None
    found = Drifting.of(layer, x, layer(x), WithAnotherThatDiffers())
    assert found.weight is None and found.is_rounded


def test_a_process_alone_sends_nothing():
    """There is no process group here, so that sending would fail."""
    processes = Processes.current()
    assert processes.is_alone and processes.is_first
    total = torch.ones(3)
    processes.add_up([total])
    assert torch.equal(total, torch.ones(3))
    assert processes.gather(["a", "b"]) == ["a", "b"]
    processes.check_same("settings", "x")
    with pytest.raises(ValueError, match="no"), processes.together():
        raise ValueError("no")


def test_a_process_group_of_something_else_can_be_left_out(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    assert not Processes.current().is_alone
    with alone_in_its_group():
        assert Processes.current().is_alone
    assert not Processes.current().is_alone
