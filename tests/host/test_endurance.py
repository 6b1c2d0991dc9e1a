"""Many merges on one server: memory does not grow, and a queue of which half is cancelled leaves
nothing. ITERIS_MERGES=50 makes more of them.
"""

import os
import re
import statistics
import threading

import psutil
import pytest
import torch
from comfy_host import write_few
from safetensors.torch import load_file

from demo.client import ComfyClient, WorkflowFailed

pytestmark = pytest.mark.nightly

# So many that a leak of 10 MB a merge makes 70 MB: from the fourth to the eleventh. Equal merges
# differ by up to 30 MB, so medians of three are compared.
MERGES = int(os.environ.get("ITERIS_MERGES", "12"))
MOST_GROWTH_MB = 40.0
WARM_UP = 2  # merges until the allocator has what it needs


def merge(host, seed, name):
    """Return a merge that is saved under a name; the server has none of its seed."""
    files = [f"few_{number}.safetensors" for number in (1, 2)]
    nodes = host.merge(*files, seed=seed, latents_per_run=1)
    return {**nodes, **host.save(f"endurance/{name}", overwrite=True)}


def result_of(host):
    """Return what one merge saves, and what the base model draws; the server makes both anew."""
    host.client.free()
    host.run({**merge(host, 7, "again"), **host.sample("endurance", ["1", 0], ["1", 1])})
    saved = load_file(host.output / "loras" / "endurance" / "again.safetensors")
    return {**saved, "picture": host.latent("endurance")}


@pytest.fixture(scope="module")
def first(host):
    for seed in (1, 2):
        write_few(host.loras / f"few_{seed}.safetensors", seed)
    return result_of(host)


def test_merges_in_a_row_take_no_more_memory(host, first):
    process = psutil.Process(host.server.process.pid)
    memory = []
    for seed in range(MERGES):
        host.run(merge(host, 1000 + seed, "in_a_row"))
        memory.append(process.memory_info().rss / 1e6)
    growth = statistics.median(memory[-3:]) - statistics.median(memory[WARM_UP : WARM_UP + 3])
    assert growth < MOST_GROWTH_MB, memory


class Client(ComfyClient):
    """A client that tells when its workflow is in the queue."""

    def __init__(self, address):
        super().__init__(address)
        self.posted = threading.Event()

    def post(self, prompt):
        found = super().post(prompt)
        self.posted.set()
        return found


def follow(client, workflow, interrupts, outcomes):
    """Run a workflow, and interrupt it while it solves the diffusion model, if asked to."""
    events = []

    def listen(event, data):
        solving = re.match("stage 4 of 4: Diffusion model 3/", data.get("text", ""))
        # every client hears the text of every workflow
        if interrupts and solving and "execution_start" in events:
            client.interrupt()
        events.append(event)

    try:
        client.run(workflow, listen)
        outcomes.append("saved")
    except WorkflowFailed as error:
        outcomes.append(error.message)


def test_a_queue_of_which_half_is_cancelled_leaves_nothing_and_changes_nothing(host, first):
    """One is taken out of the queue, and one is interrupted at its work."""
    outcomes, threads, waiting = [], [], []
    for number in range(4):
        client = Client(host.server.address)
        workflow = merge(host, 2000 + number, f"queued_{number}")
        if number == 1:
            waiting.append(client.post(workflow))
            continue
        arguments = (client, workflow, number == 3, outcomes)
        threads.append(threading.Thread(target=follow, args=arguments))
        threads[-1].start()
        client.posted.wait()
    host.client._request("/queue", {"delete": waiting})
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["interrupted", "saved", "saved"]
    assert not any(host.client._json("/queue").values())
    saved = {path.name for path in (host.output / "loras" / "endurance").glob("*queued*")}
    assert saved == {"queued_0.safetensors", "queued_2.safetensors"}
    again = result_of(host)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)
