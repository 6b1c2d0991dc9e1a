"""How fast a merge is: `python -m benchmarks.speed` measures, and writes results/speed.json."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import median
from typing import Any

# before torch is imported: threads that wait by spinning make everything several times slower where
# another job runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console

from . import speed_models
from .naive import algorithm_1
from .results import RESULTS, Table, command_of, machine, spread, write
from .speed_measure import PeakMemory, Times, timed

ITERATIONS = 10
TITLES = {"sd15": "SD1.5", "t5-base": "T5-base", "t5-large": "T5-large", "blip": "BLIP"}
PARTS = [*speed_models.CASES, "naive", "growth"]
console = Console(stderr=True)


def ratios(name: str, options: argparse.Namespace) -> list[list[str]]:
    """Measure sweeps against their plain forward passes; return rows of a table."""
    console.print(f"building {name}")
    results = []
    for made in speed_models.CASES[name](options.device, options.quick):
        case = replace(made, target=options.target)
        console.print(f"{case.name}: {case.size}")
        if not options.quick:
            case.plain_forward()
        case.sweep()  # warms up
        forwards = []
        sweeps = []
        for _ in range(options.repeat):
            forwards.append(timed(case.plain_forward, options.device))
            sweeps.append(timed(case.sweep, options.device))
            console.print(f"  forward {forwards[-1][0]:.2f} s, sweep {sweeps[-1][0]:.2f} s")
        results.append(
            (
                case.name,
                f"{case.size}; {len(case.adapters[0].deltas)} layers",
                forwards,
                sweeps,
                case.aim,
            )
        )
    if name == "sd15":
        both = [
            [tuple(map(sum, zip(*pair, strict=True))) for pair in zip(*times, strict=True)]
            for times in zip(*(result[2:4] for result in results), strict=True)
        ]
        results.append(("SD1.5 together", "", *both, results[0][4]))
    return [_ratio_row(*result) for result in results]


def _ratio_row(
    name: str, size: str, forwards: list[Times], sweeps: list[Times], aim: float
) -> list[str]:
    clock, cpu = (
        [sweep[i] / forward[i] for forward, sweep in zip(forwards, sweeps, strict=True)]
        for i in range(2)
    )
    verdict = "reached" if median(clock) <= aim else "not reached"
    seconds = [spread([wall for wall, _ in times]) for times in (forwards, sweeps)]
    return [name, size, *seconds, spread(clock), spread(cpu), f"{aim}", verdict]


def in_a_process_of_its_own(work: Any, *args: Any) -> Any:
    """Return ``work(*args)`` from a fresh process, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def prepared(make: str, sizes: tuple[int, ...], options: argparse.Namespace) -> speed_models.Case:
    """Build a case, the same one for the same arguments, and warm up."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    case = getattr(speed_models, make)(*sizes, options.device)
    shorter = replace(case, tasks=[replace(task, samples=task.samples[:4]) for task in case.tasks])
    shorter.plain_forward()
    torch.linalg.cholesky(torch.eye(64, dtype=torch.float64, device=options.device))
    return case


def one_sweep(make: str, sizes: tuple[int, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Return time, memory and result of a sweep."""
    case = prepared(make, sizes, options)
    with PeakMemory(options.device) as meter:
        result = case.sweep()
    deltas = (
        {path: delta.dense().numpy() for path, delta in result.adapter.deltas.items()}
        if make != "transformer"
        else {}
    )
    return {
        "seconds": meter.seconds,
        "bytes": meter.growth,
        "deltas": deltas,
        "size": f"{case.name}, {case.size}",
    }


def one_naive(
    make: str, sizes: tuple[int, ...], options: argparse.Namespace, beyond: int
) -> dict[str, Any]:
    """Return time, memory and result of ten iterations of Algorithm 1, and its result after
    `beyond` more.
    """
    case = prepared(make, sizes, options)
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
    further = deltas
    for _ in range(beyond):
        further = next(iterations)
    after = {path: delta.float().cpu().numpy() for path, delta in deltas.items()}
    last = {path: delta.float().cpu().numpy() for path, delta in further.items()}
    return {"seconds": meter.seconds, "bytes": meter.growth, "deltas": after, "further": last}


def against_naive(options: argparse.Namespace) -> list[list[str]]:
    """Measure the sweep against ten iterations of the paper's procedure; return rows of a table."""
    work = {"small_unet": ((2, 16, 32) if options.quick else (8, 32, 64), 0)}
    if not options.quick:
        work = {"t5_encoder": ((12, 128), 2), **work}
    rows = []
    for make, (sizes, beyond) in work.items():
        console.print(f"{make} {sizes}: Algorithm 1, {ITERATIONS} iterations")
        naive = in_a_process_of_its_own(one_naive, make, sizes, options, beyond)
        console.print(f"  {naive['seconds']:.1f} s; the sweep")
        sweeps = [
            in_a_process_of_its_own(one_sweep, make, sizes, options) for _ in range(options.repeat)
        ]
        seconds = median(sweep["seconds"] for sweep in sweeps)
        size = median(sweep["bytes"] for sweep in sweeps)
        distance = _distance(naive["deltas"], sweeps[0]["deltas"])
        further = (
            f"; {_distance(naive['further'], sweeps[0]['deltas']):.0e} after {ITERATIONS + beyond}"
            if beyond
            else ""
        )
        rows.append(
            [
                sweeps[0]["size"],
                f"{naive['seconds']:.1f}",
                spread([sweep["seconds"] for sweep in sweeps]),
                f"{naive['seconds'] / seconds:.1f} x",
                f"{naive['bytes'] / 2**20:.0f}",
                spread([sweep["bytes"] / 2**20 for sweep in sweeps], ".0f"),
                f"1 / {naive['bytes'] / max(1, size):.1f}",
                f"{distance:.0e}{further}",
            ]
        )
    return rows


def _distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest relative distance over the layers."""
    ours = {path: torch.from_numpy(delta) for path, delta in expected.items()}
    return max(
        ((torch.from_numpy(found[path]) - delta).norm() / delta.norm()).item()
        for path, delta in ours.items()
    )


def growth(options: argparse.Namespace) -> list[list[str]]:
    """Return what is varied, seconds and MiB, the rest staying at 16 samples, 2 adapters, rank 16,
    width 512.
    """
    start = {"samples": 16, "adapters": 2, "rank": 16, "width": 512}
    steps = {"samples": (4, 64), "adapters": (1, 4), "rank": (4, 64), "width": (256, 1024)}
    varied = [("samples", 4)] if options.quick else [("start", 0)]
    varied += [] if options.quick else [(name, n) for name in steps for n in steps[name]]
    rows = []
    for name, value in varied:
        sizes = tuple({key: value if key == name else n for key, n in start.items()}.values())
        console.print(f"growth: {name} {value}")
        found = in_a_process_of_its_own(one_sweep, "transformer", sizes, options)
        rows.append([f"{name} {value}", f"{found['seconds']:.2f}", f"{found['bytes'] / 2**20:.0f}"])
    return rows


def tables_of(part: str, options: argparse.Namespace) -> list[Table]:
    """Measure a part."""
    if part == "growth":
        columns = ["varied", "sweep, s", "peak memory, MiB"]
        return [
            Table(
                "growth: one of samples, adapters, rank and width varied", columns, growth(options)
            )
        ]
    if part == "naive":
        columns = ["work", "Algorithm 1, s", "sweep, s", "faster", "Algorithm 1, MiB"]
        columns += ["sweep, MiB", "memory", "distance"]
        return [
            Table(
                f"against the paper's procedure, {ITERATIONS} iterations",
                columns,
                against_naive(options),
            )
        ]
    columns = ["work", "size", "forward, s", "sweep, s", "ratio", "of CPU time", "aim", "verdict"]
    title = TITLES[part] + ("" if options.target == "delta" else f", target {options.target}")
    return [Table(title, columns, ratios(part, options))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny inputs, no T5-large, about a minute on an idle machine; nothing is written",
    )
    parser.add_argument("--only", choices=PARTS, help="one part; the others stay as they are")
    parser.add_argument(
        "--target",
        choices=["delta", "full_output"],
        default="full_output",
        help="of the sweeps over their forward passes",
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs to report the median of (default 3)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="of torch (default 2); 1 where other jobs run",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.quick:
        options.repeat = 1
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    parts = [options.only] if options.only else PARTS
    if options.quick and not options.only:
        parts = [name for name in parts if name != "t5-large"]
    for part in parts:
        torch.manual_seed(0)
        tables = tables_of(part, options)
        print(*tables, sep="\n\n", end="\n\n", flush=True)
        if not options.quick:
            write(tables, RESULTS / "speed.json", command_of("speed"), machine(options.device))


if __name__ == "__main__":
    main()
