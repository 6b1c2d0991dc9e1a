"""Measurements of time and memory, and of the shares of a sweep's time."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from statistics import median

import psutil
import torch

# function of iteris_core -> what it works on; the innermost one that is listed decides
WORK = {
    "codes_of": "LoRA on rows",
    "add_to_output": "LoRA on rows",
    "dress": "LoRA on rows",
    "add": "statistics",
    "add_product": "statistics",
    "gram": "solve",
    "figures_of": "report",
    "solve": "solve",
    "solve_layer": "solve",
}
KINDS = ("forward", "LoRA on rows", "statistics", "solve", "report", "other")

Times = tuple[float, float]  # seconds: clock, CPU


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: str) -> Times:
    """Return the seconds that a piece of work takes, on the clock and of all this process's CPU
    time.
    """
    gc.collect()
    wait(device)
    start = time.perf_counter()
    used = time.process_time()
    work()
    wait(device)
    return time.perf_counter() - start, time.process_time() - used


class Profile(threading.Thread):
    """Looks 500 times a second at where the thread that made it stands; a CPU's time only."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.watched = threading.get_ident()
        self.over = threading.Event()
        self.kinds: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()

    def __enter__(self) -> Profile:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(0.002):
            kind, line = self.where()
            self.kinds[kind] += 1
            self.lines[f"{kind:13} {line}"] += 1

    def where(self) -> tuple[str, str]:
        """Return what the watched thread works on, and the innermost line of iteris_core, if it is
        in there.
        """
        frame = sys._current_frames().get(self.watched)
        line = ""
        while frame is not None:
            path = frame.f_code.co_filename
            name = frame.f_code.co_name
            if "iteris_core" in path:
                line = line or f"{Path(path).name}:{frame.f_lineno} {name}"
                if name in WORK:
                    return WORK[name], line
            elif path.endswith("speed_models.py") and not line:
                return "forward", ""
            frame = frame.f_back
        return "other", line

    def shares(self) -> dict[str, float]:
        """Return kind of work -> its share of the time."""
        return {kind: self.kinds[kind] / max(1, self.kinds.total()) for kind in KINDS}


class PeakMemory(threading.Thread):
    """Looks 200 times a second at how much memory a process has, or asks the device: bytes above
    those at the start.

    Args:
        device: Device whose memory is meant.
        server: The process, if it is not this one; what is in use on a GPU is taken as its own.
    """

    def __init__(self, device: str, server: psutil.Process | None = None) -> None:
        super().__init__(daemon=True)
        self.on_gpu = device == "cuda"
        self.asks = self.on_gpu and server is None  # torch knows the peak of its own process
        self.process = server or psutil.Process()
        self.over = threading.Event()
        self.first = 0
        self.highest = 0
        self.seconds = 0.0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        wait("cuda" if self.on_gpu else "cpu")
        if self.asks:
            torch.cuda.reset_peak_memory_stats()
        self.first = self.now()
        self.highest = self.first
        self.began = time.perf_counter()
        self.start()
        return self

    def now(self) -> int:
        """Return the bytes in use."""
        if self.asks:
            return torch.cuda.memory_allocated()
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info()
            return total - free
        return self.process.memory_info().rss

    def run(self) -> None:
        while not self.asks and not self.over.wait(0.005):
            self.highest = max(self.highest, self.now())

    def __exit__(self, *_: object) -> None:
        wait("cuda" if self.on_gpu else "cpu")
        self.seconds = time.perf_counter() - self.began
        self.over.set()
        self.join()
        if self.asks:
            self.highest = torch.cuda.max_memory_allocated()

    @property
    def growth(self) -> int:
        return self.highest - self.first


def spread(values: list[float], form: str = ".2f") -> str:
    """Return a median with the lowest and the highest value."""
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; all columns but the first are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(device: str, command: str, busy: float) -> str:
    """Return the machine and the date of a measurement, in Markdown; ``busy``: the load by other
    jobs as it began.
    """
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=7"]
    commit = (
        subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    )
    memory = psutil.virtual_memory().total / 2**30
    where = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return (
        f"`{command}` on {_cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB{where}; torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}; {date.today().isoformat()}, commit {commit}. Load of the "
        f"machine when it began, from other jobs: {busy:.1f}."
    )


def _cpu_name() -> str:
    info = _read_fields(Path("/proc/cpuinfo"))
    return f"{info.get('model name', platform.processor())} (family {info.get('cpu family')}, model {info.get('model')})"


def _read_fields(path: Path) -> Mapping[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
