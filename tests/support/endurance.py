"""Many merges on one ComfyUI, one after the other and queued.

    python tests/support/endurance.py [--merges 50] [--queued 20]

starts a server with the small checkpoint and prints what was found. It ends with an error if memory
grows, if anything is left, or if a merge comes out differently afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from checkpoint import write_checkpoint, write_lora
from comfy_host import Host
from safetensors.torch import load_file, save_file

from demo.client import ComfyClient, WorkflowFailed
from demo.server import ComfyServer, cache_folder, find_comfyui

MOST_GROWTH_MB = 40.0
LAYERS = re.compile(r"mid_block|encoder_layers_(0|11)_self_attn")
WARM_UP = 2  # merges until the allocator has what it needs
COMPARED = 3  # merges of which the median is taken: equal ones differ by up to 30 MB
Json = dict[str, Any]


@dataclass(frozen=True)
class InARow:
    """What merges in a row left.

    Args:
        merges: Their number.
        memory: Memory of the server after each of them, in MB.
        seconds: Time that each of them took, on average.
    """

    merges: int
    memory: tuple[float, ...]
    seconds: float

    @property
    def growth(self) -> float:
        """How much memory grew from the first few to the last few, in MB, each by the median."""
        first = self.memory[WARM_UP:][:COMPARED]
        return statistics.median(self.memory[-COMPARED:]) - statistics.median(first)


@dataclass(frozen=True)
class Queued:
    """What a queue of merges left of which half were cancelled.

    Args:
        saved: How many merges ended, and saved their file.
        deleted: How many were taken out of the queue.
        interrupted: How many were interrupted at their work.
        left: Names of files that no merge should have left, and of merges that the server still
            has.
    """

    saved: int
    deleted: int
    interrupted: int
    left: tuple[str, ...]


class Client(ComfyClient):
    """A client that tells when its workflow is in the queue."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.posted = threading.Event()

    def post(self, prompt: Json) -> str:
        found = super().post(prompt)
        self.posted.set()
        return found


def write_loras(host: Host) -> None:
    """Write two LoRAs of few layers, of the text encoder and of the diffusion model."""
    for seed in (1, 2):
        path = host.loras / f"few_{seed}.safetensors"
        write_lora(path, seed=seed)
        tensors = load_file(path)
        save_file({key: tensors[key] for key in tensors if LAYERS.search(key)}, path)


def merge(host: Host, seed: int, name: str) -> Json:
    """Return a merge that is saved under a name; the server has none of its seed."""
    return {
        **host.merge("few_1.safetensors", "few_2.safetensors", seed=seed, latents_per_run=1),
        **host.save(f"endurance/{name}", overwrite=True),
    }


def in_a_row(host: Host, merges: int) -> InARow:
    """Run merges one after the other, each of a seed of its own."""
    process = psutil.Process(host.server.process.pid)
    memory = []
    started = time.monotonic()
    for seed in range(merges):
        host.run(merge(host, 1000 + seed, "in_a_row"))
        memory.append(round(process.memory_info().rss / 1e6, 1))
    return InARow(merges, tuple(memory), round((time.monotonic() - started) / merges, 1))


def queued(host: Host, count: int) -> Queued:
    """Queue merges, take a quarter out of the queue, and interrupt a quarter at their work."""
    folder = host.output / "loras" / "endurance"
    before = files_in(folder)
    threads, waiting, outcomes = [], [], []
    for number in range(count):
        workflow = merge(host, 2000 + number, f"queued_{number}")
        client = Client(host.server.address)
        if number % 4 == 1:
            waiting.append(client.post(workflow))
            continue
        arguments = (client, workflow, number % 4 == 3, outcomes)
        threads.append(threading.Thread(target=follow, args=arguments))
        threads[-1].start()
        client.posted.wait()
    host.client._request("/queue", {"delete": waiting})
    for thread in threads:
        thread.join()
    queue = host.client._json("/queue")
    still = [item[1] for items in queue.values() for item in items]
    expected = {f"queued_{n}.safetensors" for n in range(count) if n % 2 == 0}
    found = files_in(folder) - before
    left = (*sorted(found ^ expected), *still)
    return Queued(outcomes.count("saved"), len(waiting), outcomes.count("interrupted"), left)


def follow(client: Client, workflow: Json, interrupts: bool, outcomes: list[str]) -> None:
    """Run a workflow, and interrupt it while it solves the diffusion model, if asked to."""

    events = []

    def listen(event: str, data: Json) -> None:
        solving = data.get("text", "").startswith("stage 4 of 4: Diffusion model 3/")
        # every client hears the text of every workflow
        if interrupts and solving and "execution_start" in events:
            client.interrupt()
        events.append(event)

    try:
        client.run(workflow, listen)
        outcomes.append("saved")
    except WorkflowFailed as error:
        outcomes.append("interrupted" if error.message == "interrupted" else str(error))


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def result_of(host: Host) -> dict[str, torch.Tensor]:
    """Return what one merge saves, and what the base model draws; the server makes both anew."""
    host.client.free()
    nodes = merge(host, 7, "again")
    host.run({**nodes, **host.sample("endurance", ["1", 0], ["1", 1])})
    return {
        **load_file(host.output / "loras" / "endurance" / "again.safetensors"),
        "the base model's picture": host.latent("endurance"),
    }


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of what is not bit-equal."""
    return sorted(
        name
        for name in found.keys() | expected.keys()
        if not (name in found and name in expected and torch.equal(found[name], expected[name]))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--merges", type=int, default=50)
    parser.add_argument("--queued", type=int, default=20)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        write_checkpoint(base / "models" / "checkpoints" / "sd15.safetensors")
        (base / "models" / "loras").mkdir()
        comfyui = find_comfyui(cache_folder())
        with ComfyServer(comfyui, base, base / "server.log", device="cpu") as server:
            host = Host(base, server)
            write_loras(host)
            first = result_of(host)
            row = in_a_row(host, wanted.merges)
            print(json.dumps({**asdict(row), "growth": round(row.growth, 1)}), flush=True)
            queue = queued(host, wanted.queued)
            changed = differences(result_of(host), first)
            print(json.dumps({**asdict(queue), "changed": changed}))
    if row.growth > MOST_GROWTH_MB or queue.left or changed:
        raise SystemExit("memory has grown, or something is left or changed")


if __name__ == "__main__":
    main()
