"""How a merge scales over processes: `python -m benchmarks.scale` measures small merges, and writes
results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, distributed, multiprocessing

from iteris_core.engines.measure import Measurement

from . import speed_models
from .measure import timed
from .results import RESULTS, Table, command_of, machine, spread, write

SAMPLES = 64  # of each task
WIDTH = 512


@dataclass(frozen=True)
class Found:
    """What a merge took.

    Args:
        seconds: On the clock, of the slowest process.
        cpu: Seconds that the busiest process worked.
        solve: Seconds of them in the solves.
        layer_bytes: Bytes that a process adds up with the others, per layer.
    """

    seconds: float
    cpu: float
    solve: float
    layer_bytes: float


@dataclass
class Tally:
    """Bytes of sums that were added up over processes, each time, and CPU seconds in solves."""

    added: list[int] = field(default_factory=list)
    solve: float = 0.0


@contextmanager
def tallied() -> Iterator[Tally]:
    """Count what the merges inside it add up over processes, and how long they solve."""
    tally = Tally()
    all_reduce, solve = distributed.all_reduce, Measurement.solve

    def counted(tensor: Tensor) -> None:
        if tensor.is_floating_point():  # others tell how a process is
            tally.added.append(tensor.numel() * tensor.element_size())
        all_reduce(tensor)

    def clocked(*args):
        start = time.process_time()
        try:
            return solve(*args)
        finally:
            tally.solve += time.process_time() - start

    with (
        patch.object(distributed, "all_reduce", counted),
        patch.object(Measurement, "solve", clocked),
    ):
        yield tally


def merge_here(case: speed_models.Case) -> Found:
    """Merge with the other processes of the group."""
    distributed.barrier()
    with tallied() as tally:
        clock, cpu = timed(case.sweep, "cpu")
    layers = len(case.adapters[0].deltas)
    own = Found(clock, cpu, tally.solve, sum(tally.added) / layers)
    of_all: list[Found] = [own] * distributed.get_world_size()
    distributed.all_gather_object(of_all, own)
    return Found(
        *(max(column) for column in zip(*(asdict(f).values() for f in of_all), strict=True))
    )


def process(number: int, size: int, samples: int, folder: str) -> None:
    """Be one of the processes of a measured merge; the first one writes what was found."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = speed_models.transformer(samples, WIDTH)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, rank=number, world_size=size)
    few = [replace(task, samples=task.samples[: 4 * size]) for task in case.tasks]
    replace(case, tasks=few).sweep()  # warms up
    found = merge_here(case)
    if number == 0:
        Path(folder, "found.json").write_text(json.dumps(asdict(found)))
    distributed.destroy_process_group()


def measure(size: int, samples: int) -> Found:
    """Return what a merge takes that `size` new processes of one thread share."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(process, (size, samples, folder), nprocs=size)
        found = Found(**json.loads(Path(folder, "found.json").read_text()))
    print(f"{size} processes, {samples} samples a task: {found}", file=sys.stderr, flush=True)
    return found


def row(size: int, alone: list[Found], found: list[Found]) -> list[str]:
    """Return a row of a table: what processes took, and one process over that, round by round."""
    clock, cpu = (
        [getattr(a, of) / getattr(f, of) for a, f in zip(alone, found, strict=True)]
        for of in ("seconds", "cpu")
    )
    return [
        f"{size}",
        f"{SAMPLES}",
        spread([f.seconds for f in found]),
        spread(clock),
        spread([f.cpu for f in found]),
        spread(cpu),
        f"{median(f.solve for f in found):.2f}",
        f"{found[0].layer_bytes / 1e6:.2f}",
    ]


def table_of(sizes: list[int], rounds: int) -> Table:
    """Measure the same samples in more and more processes, in each round."""
    found: dict[int, list[Found]] = {size: [] for size in sorted({1, *sizes})}
    for _ in range(rounds):
        for size in found:
            found[size].append(measure(size, SAMPLES))
    heads = ["processes", "samples", "s", "ratio", "CPU, s", "ratio of CPU", "solve, s"]
    rows = [row(size, found[1], found[size]) for size in sizes]
    return Table("strong scaling: the same samples, shared", [*heads, "MB a layer"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = table_of(options.processes, options.repeat)
    print(table)
    write([table], RESULTS / "scale.json", command_of("scale"), machine())


if __name__ == "__main__":
    main()
