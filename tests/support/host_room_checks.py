"""Merges whose rows wait in a file, since the host has no memory for them, with ComfyUI's own classes.

    python tests/support/host_room_checks.py COMFYUI FAMILY ...

writes a line of JSON per family: what is shared out of a host with little memory, how often rows
waited, and how far the merge is from one whose rows all have room.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any
from unittest import mock

import family_checks
import in_comfy

# isort: split
import comfy.model_management
import tiny_hosts
import torch
from iteris_pack.nodes.host.diffusion_model import ComfyModel

from iteris_core import MergeResult
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_diffusion
from iteris_core.engines import sweep
from iteris_core.rows import parking
from iteris_core.rows.parking import PagedFile

FREE = 10 << 20


def merged(name: str, **settings: Any) -> MergeResult:
    tiny = tiny_hosts.TINY[name]
    host = ComfyModel(tiny_hosts.model_of(tiny), tiny_hosts.clip_of(tiny))
    loras = [
        family_checks.loaded(
            host, lora, family_checks.lora_of(host, seed, "diffusers"), f"a photo of {lora}"
        )
        for seed, lora in enumerate(("sks dog", "zwx car"))
    ]
    config = replace(family_checks.EXACT, **settings)
    return merge_diffusion(Job.of(host, loras, family_checks.SMALL, MergeSettings(config)))


def figures_of(name: str) -> dict[str, Any]:
    tiny = tiny_hosts.TINY[name]
    host = ComfyModel(tiny_hosts.model_of(tiny), tiny_hosts.clip_of(tiny))
    with mock.patch.object(comfy.model_management, "get_free_memory", lambda device: FREE):
        room = host.make_room(512, 90, lambda modules: 0)
    written: list[int] = []
    write = PagedFile.write

    def noted(file: PagedFile, storage: torch.UntypedStorage) -> Any:
        written.append(storage.nbytes())
        return write(file, storage)

    expected = merged(name).adapter
    with (
        mock.patch.object(PagedFile, "write", noted),
        mock.patch.object(sweep, "Parking", functools.partial(parking.Parking, smallest=1)),
    ):
        found = merged(name, waiting_bytes=0).adapter
    same = [torch.equal(delta.up, found.deltas[path].up) for path, delta in expected.deltas.items()]
    return {
        "waiting_bytes": room.waiting_bytes,
        "written": len(written),
        "layers": len(same),
        "same": sum(same),
    }


def main() -> None:
    torch.set_num_threads(1)
    for name in in_comfy.ARGUMENTS:
        print(json.dumps({"family": name, **figures_of(name)}), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
