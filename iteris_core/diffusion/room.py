"""A merge without ComfyUI shares out a device's memory, as the node does in ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..config import MergeConfig
from ..devices import share_out
from ..engines.measure import room_for_sums
from ..processes import Processes
from .calibration import Calibration
from .lora_use import LoadedLora, loras_in_use
from .merging import plans_of
from .model import DiffusionHost

# Bytes of a forward call for each byte of its rows' latents, one channel alone: ComfyUI's estimate
# for SD1.5, which is more than SDXL takes (comfy/model_base.py, `memory_required`).
_BYTES_PER_BYTE = 0.01 * 2**20


def with_room(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    config: MergeConfig,
    *,
    free: int | None,
    bytes_per_number: int,
) -> MergeConfig:
    """Return settings whose calls, sums and waiting rows fit into a device's memory.

    They stay as they are where ``waiting_bytes`` is given already. Processes that
    share a merge all take the memory of the device that has least.

    Args:
        model: The base model, loaded.
        loras: The LoRAs of the merge.
        calibration: Settings of the calibration samples.
        config: Settings of the merge; its calls are never made larger.
        free: Bytes that are free on the model's device; None: nobody knows, and nothing is changed.
        bytes_per_number: Size of a number of the model's rows.

    Raises:
        IterisError: See `merging.plans_of`.
    """
    if free is None or config.waiting_bytes is not None:
        return config
    used = loras_in_use(loras)
    plans = plans_of(model, used, calibration.for_family(model.family), config)
    side = model.latent_shape(calibration.for_family(model.family).resolution)[-2:]
    of_row = _BYTES_PER_BYTE * bytes_per_number * math.prod(side)
    with model.denoiser() as network:
        sums = room_for_sums(network.modules, [lora.adapter for lora in used], len(plans), config)
    room = share_out(
        lambda count: 2 * count * of_row,
        sum(plan.sample_count() for plan in plans),
        config.samples_per_chunk,
        min(Processes.current().gather([free])),
        sums=sums,
    )
    return replace(
        config, samples_per_chunk=room.samples_per_chunk, waiting_bytes=room.waiting_bytes
    )
