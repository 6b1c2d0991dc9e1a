"""Measurements of time and memory, and of the shares of a sweep's time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import psutil
import torch

Times = tuple[float, float]  # seconds: clock, CPU


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: str) -> Times:
    """Return the seconds that work takes: on the clock, and of all this process's CPU time."""
    gc.collect()
    wait(device)
    start = time.perf_counter()
    used = time.process_time()
    work()
    wait(device)
    return time.perf_counter() - start, time.process_time() - used


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
