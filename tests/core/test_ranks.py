"""A merge that several processes share is the merge of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import rank_checks
import torch
from safetensors.torch import load_file
from torch import distributed

from iteris_core.ranks import Ranks
from iteris_core.ranks import alone as alone_in_its_group

SCRIPT = Path(rank_checks.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    rank_checks.write_models(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return rank_checks.merged(folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])  # others: see CONTRIBUTING.md
def test_processes_that_share_the_samples_find_what_one_finds(folder, alone, processes):
    """Shares are uneven, and some merges have fewer forward calls than there are processes. The
    script also lets a process fail, run out of memory, and be given something else.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", str(processes), str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(folder / f"found-{processes}.safetensors")
    assert set(found) == set(alone)
    errors = {key: ((found[key] - alone[key]).norm() / alone[key].norm()).item() for key in alone}
    assert all(error < 1e-10 for error in errors.values()), max(errors, key=errors.get)


def test_shares_are_even_to_one():
    items = list(range(7))
    shares = [Ranks(rank, 3).share(items) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_process_alone_sends_nothing():
    """There is no process group here, so that sending would fail."""
    ranks = Ranks.current()
    assert ranks.is_alone and ranks.is_first
    total = torch.ones(3)
    ranks.add_up([total])
    assert torch.equal(total, torch.ones(3))
    assert ranks.gather(["a", "b"]) == ["a", "b"]
    ranks.check_same("settings", "x")
    with pytest.raises(ValueError, match="no"), ranks.together():
        raise ValueError("no")


def test_a_process_group_of_something_else_can_be_left_out(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    assert not Ranks.current().is_alone
    with alone_in_its_group():
        assert Ranks.current().is_alone
    assert not Ranks.current().is_alone
