"""Merges that several processes share, compared with one process by `tests/core/test_shared_merges.py`.

    python -m torch.distributed.run --standalone --nproc-per-node 3 tests/support/process_checks.py FOLDER

Process 0 writes FOLDER/found-3.safetensors.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import fake_host
import torch
import toy
from safetensors.torch import save_file
from torch import Tensor, distributed

from iteris_core import (
    Adapter,
    CalibrationError,
    ConfigError,
    MergeConfig,
    MergeResult,
    OutOfMemoryError,
    PeerError,
    Sample,
    Task,
    merge,
)
from iteris_core.adapters import sha256_of_tensors
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.engines.measure import Measurement
from iteris_core.memory import UNLIMITED, Room
from iteris_core.processes import Processes

SMALL = Calibration(
    trajectories=4,
    sampling_steps=4,
    resolution=64,
    cfg=3.0,
    preserve_captions=("a street", "a lake", "a red chair"),
)
EXACT = MergeConfig(output_dtype=torch.float64, alpha=1e-3)


def within(net: toy.Toy, adapters, tasks, *, samples_per_chunk: int = 8, **settings) -> MergeResult:
    config = replace(EXACT, **settings)
    return merge(net.network(), adapters, tasks, config, room=Room(samples_per_chunk))


def toys(**settings) -> Adapter:
    """Merge three adapters of different layers, with token weights and a preserve task."""
    net, adapters, tasks = toy.three_adapters()
    weights = {"image": torch.rand(toy.TOKENS, generator=torch.Generator().manual_seed(3))}
    first = [replace(sample, token_weights=weights) for sample in tasks[0].samples]
    tasks[0] = replace(tasks[0], samples=first)
    return within(net, adapters, tasks, **settings).adapter


def long_and_short() -> Adapter:
    """Merge on long rows for one process and short ones for the next: by the long ones, it is less
    work to derive sums from a layer's input.
    """
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    context = torch.randn(toy.CONTEXT_TOKENS, 5).double()
    tasks = [
        Task(
            adapter.name,
            [Sample((torch.randn(tokens, 6).double(), context)) for tokens in (100, 2, 2)],
            {k: 1.0},
        )
        for k, adapter in enumerate(adapters)
    ]
    return within(net, adapters, tasks, samples_per_chunk=1).adapter


def diffusion() -> Adapter:
    """Merge LoRAs with sampling."""
    host = fake_host.FakeHost()
    loras = [host.lora("a"), host.lora("b", prompts=["<y> dog"])]
    return merge_loras(Job.of(host, loras, SMALL, MergeSettings(EXACT), Room(2))).adapter


def merged() -> dict[str, Tensor]:
    """Return the dense deltas, and vectors, of all merges."""
    merges = {
        "one sample a call": toys(samples_per_chunk=1),
        "fewer calls than processes": toys(samples_per_chunk=100),
        "another balance": toys(samples_per_chunk=2, balance="full", ridge="paper"),
        "long and short rows": long_and_short(),
        "diffusion": diffusion(),
    }
    return {
        f"{name}: {path}": tensor.contiguous()
        for name, adapter in merges.items()
        for path, tensor in [
            *((path, delta.dense()) for path, delta in adapter.deltas.items()),
            *adapter.vectors.items(),
        ]
    }


def check_failures(processes: Processes) -> None:
    """Let one process fail, or be given other things, and see what the others do."""
    net, adapters, tasks = toy.three_adapters()
    calls = []

    def failing(error):
        def forward(rows):
            calls.append(len(rows))
            if processes.number == processes.size - 1 and len(calls) == 2:
                raise error
            return net.network().forward(rows)

        return replace(net.network(), forward=forward)

    error = CalibrationError("no more")
    expected = CalibrationError if processes.number == processes.size - 1 else PeerError
    failed = raised(failing(error), adapters, tasks, EXACT, Room(1))
    assert type(failed) is expected, failed
    calls.clear()
    expected = OutOfMemoryError if processes.number == processes.size - 1 else PeerError
    full = torch.OutOfMemoryError("CUDA out of memory")
    failed = raised(failing(full), adapters, tasks, EXACT, Room(1))
    assert type(failed) is expected, failed
    solve = Measurement.solve

    def once(self, solver):
        if processes.number == processes.size - 1:
            raise full
        return solve(self, solver)

    with mock.patch.object(Measurement, "solve", once):
        failed = raised(net.network(), adapters, tasks, EXACT, Room(1))
    assert type(failed) is expected, failed
    for name, (given, config) in {
        "settings": (tasks, replace(EXACT, alpha=1e-3 * (1 + processes.number))),
        "tasks": ([*tasks, Task("more", net.samples(1 + processes.number), {0: 1.0})], EXACT),
    }.items():
        failed = raised(net.network(), adapters, given, config)
        assert type(failed) is ConfigError and f"other {name} than process" in str(failed), failed
    other = [adapters[0].scaled(1 + processes.number), *adapters[1:]]
    failed = raised(net.network(), other, tasks, EXACT)
    assert type(failed) is ConfigError and "other adapters than process" in str(failed), failed
    failed = raised(net.network(), adapters, tasks, replace(EXACT, engine="iterate"))
    assert type(failed) is ConfigError and "run in one process" in str(failed), failed


def raised(network, adapters, tasks: list[Task], config: MergeConfig, room=UNLIMITED):
    """Return the error of a merge, or None."""
    try:
        merge(network, adapters, tasks, config, room=room)
    except Exception as error:
        return error
    return None


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    processes = Processes.current()
    found = merged()
    processes.check_same("results", sha256_of_tensors(found))
    if not processes.is_alone:
        check_failures(processes)
    if processes.is_first:
        save_file(found, folder / f"found-{processes.size}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
