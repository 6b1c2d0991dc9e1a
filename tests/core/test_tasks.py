"""Which tasks a merge accepts, and what becomes of idle adapters."""

import pytest
import torch

from iteris_core import Adapter, CalibrationError, LowRankDelta, Sample, Task
from iteris_core.tasks import check_tasks, without_idle_adapters

SAMPLES = (Sample("text"),)


def adapter(name, idle=False):
    return Adapter(
        name, {} if idle else {"layer": LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))}
    )


UNUSABLE = [
    ([], "there is no task"),
    ([Task("a", (), {0: 1.0})], "task 'a' has no samples"),
    (
        [Task("a", SAMPLES, {0: 1.0}, -1.0)],
        "task 'a' has weight -1.0; it must be a finite number, 0 or more",
    ),
    ([Task("a", SAMPLES, {0: 1.0}, float("nan"))], "task 'a' has weight nan"),
    ([Task("a", SAMPLES, {0: 1.0}, float("inf"))], "task 'a' has weight inf"),
    ([Task("a", SAMPLES, {0: float("inf")})], "task 'a'"),
    ([Task("a", SAMPLES, {3: 1.0})], r"task 'a' wears adapter number 3; there are 3 \(from 0\)"),
    ([Task("a", SAMPLES, {-1: 1.0})], "task 'a' wears adapter number -1"),
    (
        [Task("idle", SAMPLES, {2: 1.0}), Task("off", SAMPLES, {0: 1.0}, 0.0)],
        "every task has weight 0, or only adapters that change nothing teach it",
    ),
]


def test_unusable_tasks_are_refused():
    for tasks, message in UNUSABLE:
        with pytest.raises(CalibrationError, match=message):
            check_tasks([adapter("a"), adapter("b"), adapter("idle", idle=True)], tasks)


def test_idle_adapters_go_with_the_tasks_that_only_they_teach():
    adapters = [adapter("a"), adapter("idle", idle=True), adapter("c")]
    tasks = [
        Task("a", SAMPLES, {0: 1.0}),
        Task("idle", SAMPLES, {1: 1.0}),
        Task("c", SAMPLES, {2: 1.0}, 3.0),
        Task("both", SAMPLES, {2: 0.4, 1: 0.6}),
        Task("preserve", SAMPLES, {}),
        Task("zero shares", SAMPLES, {1: 0.0, 0: 0.0}),
    ]
    kept, remaining = without_idle_adapters(adapters, tasks)
    assert kept == [adapters[0], adapters[2]]
    assert [(task.name, task.mix, task.weight) for task in remaining] == [
        ("a", {0: 1.0}, 1.0),
        ("c", {1: 1.0}, 3.0),
        ("both", {1: 0.4}, 1.0),
        ("preserve", {}, 1.0),
        ("zero shares", {}, 1.0),
    ]
    assert [task.name for task in tasks] == ["a", "idle", "c", "both", "preserve", "zero shares"]
    assert tasks[2].mix == {2: 1.0}
