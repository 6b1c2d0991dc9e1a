"""Which tasks a merge accepts, and what becomes of idle adapters."""

import pytest
import torch

from iteris_core import Adapter, CalibrationError, LowRankDelta, Sample, Task
from iteris_core.tasks import check_tasks

SAMPLES = (Sample("text"),)


def adapter(name, idle=False):
    return Adapter(
        name, {} if idle else {"layer": LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))}
    )


UNUSABLE = [
    ([], "there is no task"),
    ([Task("a", SAMPLES, {0: 1.0}), Task("a", SAMPLES, {1: 1.0})], "two tasks are called 'a'"),
    ([Task("a", (), {0: 1.0})], "task 'a' has no samples"),
    ([Task("a", SAMPLES, {0: 1.0}, -1.0)], "task 'a' has weight -1.0; it must be a finite number"),
    ([Task("a", SAMPLES, {0: 1.0}, float("nan"))], "task 'a' has weight nan"),
    ([Task("a", SAMPLES, {0: float("inf")})], "task 'a'"),
    ([Task("a", SAMPLES, {3: 1.0})], r"task 'a' wears adapter number 3; there are 3 \(from 0\)"),
    ([Task("a", SAMPLES, {2: 1.0}), Task("b", SAMPLES, {0: 1.0}, 0.0)], "every task has weight 0"),
]


def test_unusable_tasks_are_refused():
    for tasks, message in UNUSABLE:
        with pytest.raises(CalibrationError, match=message):
            check_tasks([adapter("a"), adapter("b"), adapter("idle", idle=True)], tasks)
