"""How fast a merge is: `python -m benchmarks.speed` measures, and writes results/speed.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from . import speed_models
from .common import console
from .measure import PeakMemory, Times, timed
from .naive import algorithm_1
from .results import RESULTS, Table, command_of, machine, spread, write

ITERATIONS = 10
TITLES = {"sd15": "SD1.5", "t5-base": "T5-base", "blip": "BLIP"}


def against_forward(part: str, options: argparse.Namespace) -> Table:
    """Measure sweeps against their plain forward passes."""
    console.print(f"building {part}")
    rows = []
    for case in speed_models.CASES[part](options.device):
        console.print(f"{case.name}: {case.size}")
        case.plain_forward()
        case.sweep()  # warms up
        forwards: list[Times] = []
        sweeps: list[Times] = []
        for _ in range(options.repeat):
            forwards.append(timed(case.plain_forward, options.device))
            sweeps.append(timed(case.sweep, options.device))
            console.print(f"  forward {forwards[-1][0]:.2f} s, sweep {sweeps[-1][0]:.2f} s")
        seconds = [spread([clock for clock, _ in times]) for times in (forwards, sweeps)]
        ratios = [
            spread([sweep[i] / forward[i] for forward, sweep in zip(forwards, sweeps, strict=True)])
            for i in range(2)
        ]
        rows.append([case.name, case.size, *seconds, *ratios])
    heads = ["work", "size", "forward, s", "sweep, s", "ratio", "of CPU time"]
    return Table(TITLES[part], heads, rows)


def in_a_process_of_its_own(work: Callable[..., Any], *args: Any) -> Any:
    """Return ``work(*args)`` from a fresh process, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def prepared(make: str, options: argparse.Namespace) -> speed_models.Case:
    """Build a case, the same one each time, and warm up."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    case: speed_models.Case = getattr(speed_models, make)(options.device)
    few = [replace(task, samples=task.samples[:4]) for task in case.tasks]
    replace(case, tasks=few).plain_forward()
    torch.linalg.cholesky(torch.eye(64, dtype=torch.float64, device=options.device))
    return case


def one_sweep(make: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return time, memory and result of a sweep."""
    case = prepared(make, options)
    with PeakMemory(options.device) as meter:
        result = case.sweep(target="delta", unit_gain=1.0)  # what Algorithm 1 solves for
    deltas = {path: delta.dense().numpy() for path, delta in result.adapter.deltas.items()}
    size = f"{case.name}, {case.size}"
    return {"seconds": meter.seconds, "bytes": meter.growth, "deltas": deltas, "size": size}


def one_naive(make: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return time, memory and result of ten iterations of Algorithm 1."""
    case = prepared(make, options)
    adapters = [
        {path: delta.dense().to(options.device) for path, delta in adapter.deltas.items()}
        for adapter in case.adapters
    ]
    samples = [[sample.teacher for sample in task.samples] for task in case.tasks]
    iterations = algorithm_1(
        case.network.modules, case.network.forward, adapters, samples, ridge="consistent"
    )
    with PeakMemory(options.device) as meter:
        for _ in range(ITERATIONS):
            deltas = next(iterations)
    found = {path: delta.float().cpu().numpy() for path, delta in deltas.items()}
    return {"seconds": meter.seconds, "bytes": meter.growth, "deltas": found}


def against_naive(options: argparse.Namespace) -> Table:
    """Measure the sweep against ten iterations of the paper's procedure."""
    rows = []
    for make in ("t5_encoder", "small_unet"):
        console.print(f"{make}: Algorithm 1, {ITERATIONS} iterations")
        naive = in_a_process_of_its_own(one_naive, make, options)
        console.print(f"  {naive['seconds']:.1f} s; the sweep")
        sweeps = [in_a_process_of_its_own(one_sweep, make, options) for _ in range(options.repeat)]
        seconds = [sweep["seconds"] for sweep in sweeps]
        sizes = [sweep["bytes"] / 2**20 for sweep in sweeps]
        size = naive["bytes"] / 2**20
        rows.append(
            [
                sweeps[0]["size"],
                f"{naive['seconds']:.1f}",
                spread(seconds),
                f"{naive['seconds'] / median(seconds):.1f} x",
                f"{size:.0f}",
                spread(sizes, ".0f"),
                f"1 / {size / median(sizes):.1f}",
                f"{_distance(naive['deltas'], sweeps[0]['deltas']):.0e}",
            ]
        )
    heads = ["work", "Algorithm 1, s", "sweep, s", "faster", "Algorithm 1, MiB", "sweep, MiB"]
    title = f"against the paper's procedure, {ITERATIONS} iterations"
    return Table(title, [*heads, "memory", "distance"], rows)


def _distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest relative distance over the layers."""
    ours = {path: torch.from_numpy(delta) for path, delta in expected.items()}
    return max(
        ((torch.from_numpy(found[path]) - delta).norm() / delta.norm()).item()
        for path, delta in ours.items()
    )


def main() -> None:
    parts = [*TITLES, "naive"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=parts, help="one part; the others stay as they are")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in [options.only] if options.only else parts:
        torch.manual_seed(0)
        table = against_naive(options) if part == "naive" else against_forward(part, options)
        print(table, end="\n\n", flush=True)
        write([table], RESULTS / "speed.json", command_of("speed"), machine(options.device))


if __name__ == "__main__":
    main()
