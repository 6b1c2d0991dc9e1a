"""What a merge costs in pictures: `python -m benchmarks.pictures` measures both in a ComfyUI."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import psutil
import torch

from demo.client import ComfyClient, Json
from demo.server import ComfyServer, cache_folder, find_comfyui
from iteris_core import IterisError
from iteris_core.diffusion import stages

from . import pictures_models
from .common import console
from .measure import PeakMemory, Times
from .pictures_models import SAMPLER, STEPS
from .results import RESULTS, Table, command_of, machine, spread, write

STAGES = (stages.CHECK, stages.TEXT, stages.SAMPLING, stages.DENOISER)
DEVICES = ("cpu", "cuda")
HOURS = 3600.0


@dataclass(frozen=True)
class Merge:
    """What a merge took: by stage, from click to saved file, and its peak in bytes above before."""

    stages: Mapping[str, Times]
    whole: Times
    memory: int


@dataclass(frozen=True)
class Measured:
    """Merges of so many LoRAs, and the pictures before and after each of them."""

    loras: int
    pictures: Sequence[Times]
    merges: Sequence[Merge]

    def ratios(self, kind: int) -> list[float]:
        """Return the pictures that each merge costs, by the clock (0) or the CPU time (1)."""
        picture = median(times[kind] for times in self.pictures)
        return [merge.whole[kind] / picture for merge in self.merges]


class Stopwatch:
    """Follows a workflow, and adds up what its nodes and their stages take.

    A stage is told of when a step is done. So the time up to an event belongs to the stage that it
    names; what is left when a node ends, to the node.

    Args:
        process: The server, whose CPU time counts.
    """

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.spent: dict[str, Times] = {}
        self._node = ""
        self._last = self._now()

    def on_event(self, event: str, data: Json) -> None:
        """Take a message of `ComfyClient.run`."""
        if event == "executing":
            self._mark(self._node)
            self._node = str(data.get("node") or "")
        elif event == "iteris.stage":
            name = data["stage"]["name"]
            self._mark(name)
            if data["done"] == data["total"]:
                tell(f"  {name}", self.spent[name])

    @property
    def whole(self) -> Times:
        """What the workflow has taken."""
        return added(self.spent.values())

    def _mark(self, name: str) -> None:
        """Add what has passed since the last mark to this name."""
        now = self._now()
        passed = now[0] - self._last[0], now[1] - self._last[1]
        self.spent[name] = added([self.spent.get(name, (0.0, 0.0)), passed])
        self._last = now

    def _now(self) -> Times:
        used = self.process.cpu_times()
        return time.perf_counter(), used.user + used.system


def tell(what: str, times: Times) -> None:
    """Print what something has taken."""
    console.print(f"{what}: {times[0]:.1f} s, CPU time {times[1]:.1f} s", highlight=False)


def added(times: Iterable[Times]) -> Times:
    """Return the sum of several times, at least one."""
    clock, cpu = map(sum, zip(*times, strict=True))
    return clock, cpu


class Bench:
    """A running ComfyUI that is measured as the command line asks."""

    def __init__(self, server: ComfyServer, options: argparse.Namespace) -> None:
        assert server.process is not None  # it runs
        self.client = ComfyClient(server.address)
        self.process = psutil.Process(server.process.pid)
        self.options = options
        self.model = pictures_models.MODELS[options.family]
        self.seeds: Iterator[int] = count(1)  # another for each workflow: the server keeps results

    def measure(self, loras: int) -> Measured:
        """Merge so many LoRAs again and again, with pictures between."""
        pictures = [self.picture()]
        merges = []
        for _ in range(self.options.repeat):
            merges.append(self.merge(loras))
            pictures.append(self.picture())
        return Measured(loras, pictures, merges)

    def picture(self) -> Times:
        """Return what the sampler of a picture takes."""
        resolution = self.options.resolution
        self._run(pictures_models.picture(self.model, resolution, next(self.seeds), steps=1))
        watch = self._run(pictures_models.picture(self.model, resolution, next(self.seeds), STEPS))
        tell("picture", watch.spent[SAMPLER])
        return watch.spent[SAMPLER]

    def merge(self, loras: int) -> Merge:
        """Return what a merge takes."""
        resolution = self.options.resolution
        workflow = pictures_models.merge(self.model, loras, resolution, next(self.seeds))
        with PeakMemory(self.options.device, self.process) as meter:
            watch = self._run(workflow)
        tell(f"merge of {loras}", watch.whole)
        # a stage with nothing to do tells of nothing
        stages = {name: watch.spent.get(name, (0.0, 0.0)) for name in STAGES}
        return Merge(stages, watch.whole, meter.growth)

    def _run(self, workflow: Json) -> Stopwatch:
        watch = Stopwatch(self.process)
        self.client.run(workflow, watch.on_event, timeout=24 * HOURS)
        return watch


def shown(values: list[float], form: str = ".1f") -> str:
    """Return a value, or the spread of several."""
    return spread(values, form) if len(values) > 1 else f"{values[0]:{form}}"


def rows_of(measured: Measured) -> list[list[str]]:
    """Return the rows of the table for one number of LoRAs: CPU time and clock."""
    rows = []
    for kind, name in ((1, "CPU time"), (0, "clock")):
        merges = measured.merges
        stages = [[merge.stages[stage][kind] for merge in merges] for stage in STAGES]
        whole = [merge.whole[kind] for merge in merges]
        rest = [all_of_it - sum(parts) for all_of_it, *parts in zip(whole, *stages, strict=True)]
        rows.append(
            [
                f"{measured.loras}, {name}",
                shown([times[kind] for times in measured.pictures]),
                *(f"{median(seconds):.1f}" for seconds in [*stages, rest]),
                shown(whole),
                shown(measured.ratios(kind)),
                shown([merge.memory / 2**20 for merge in merges], ".0f") if kind else "",
            ]
        )
    return rows


def table_of(measured: Sequence[Measured], family: str) -> Table:
    """Return the table of all that was measured."""
    heads = ["LoRAs, seconds of", "picture", *STAGES, "rest", "whole merge", "pictures"]
    rows = [row for part in measured for row in rows_of(part)]
    return Table(f"a merge of {family} in pictures", [*heads, "peak memory, MiB"], rows)


def measure_all(options: argparse.Namespace, comfyui: Path) -> list[Measured]:
    """Return what was measured in a ComfyUI of its own; an error has the end of its log."""
    model = pictures_models.MODELS[options.family]
    with tempfile.TemporaryDirectory(prefix="iteris-pictures-") as name:
        base = Path(name)
        console.print("writing the models")
        model.write(base / "models", max(options.loras))
        console.print("starting ComfyUI")
        device = "cpu" if options.device == "cpu" else "auto"
        flags = ["--bf16-unet"] if options.bf16 else []
        log = base / "server.log"
        with ComfyServer(comfyui, base, log, device=device, arguments=flags) as server:
            bench = Bench(server, options)
            try:
                return [bench.measure(loras) for loras in options.loras]
            except IterisError as error:
                raise IterisError(f"{error}\n{server.log_tail()}") from error


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--loras", type=int, action="append", help="of a merge (default 2); may be repeated"
    )
    parser.add_argument("--family", choices=pictures_models.MODELS, default="sd15")
    parser.add_argument(
        "--bf16", action="store_true", help="keep the weights in bfloat16: SDXL in 24 GB"
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument(
        "--resolution", type=int, help="of pictures and merges (default 256, on a GPU 512)"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="merges to report the median of (default 1)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="of torch (default 2); 1 where other jobs run",
    )
    options = parser.parse_args(arguments)
    options.loras = options.loras or [2]
    options.resolution = options.resolution or (256 if options.device == "cpu" else 512)
    return options


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    # ComfyUI leaves the number of threads to torch, which reads it when the server starts
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    table = table_of(measure_all(options, find_comfyui(cache_folder())), options.family)
    print(table)
    command = command_of("pictures", arguments)
    write([table], RESULTS / "pictures.json", command, machine(options.device))


if __name__ == "__main__":
    main(sys.argv[1:])
