"""What must hold for a pair of models that share the noise levels; see `family_checks`.

python tests/support/pair_checks.py COMFYUI
"""

from __future__ import annotations

from typing import Any

import in_comfy

# isort: split
import tiny_hosts
from family_checks import EXACT, SMALL, largest_difference, loaded, lora_of
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.host.pair import ComfyPair

from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_and_check


def pair_of(name: str) -> ComfyPair:
    """Return two tiny models of a family with other weights, as one host."""
    high = tiny_hosts.host_of(name)
    low = tiny_hosts.model_of(tiny_hosts.TINY[name], seed=1)
    return ComfyPair(high, ComfyModel(low, high.clip))


def combined_file(host: ComfyModel, seed: int) -> dict[str, Any]:
    """Return a LoRA of both models in one file, as ai-toolkit saves it."""
    return {
        key.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
        for number in (1, 2)
        for key, tensor in lora_of(host, 10 * seed + number, "diffusers").items()
    }


def levels_seen(host: ComfyModel) -> list[float]:
    """Return a list that fills with the noise levels at which a model is called from now on."""
    seen: list[float] = []
    call = host.model.model.apply_model

    def noted(x: Any, sigma: Any, **more: Any) -> Any:
        seen.extend(sigma.tolist())
        return call(x, sigma, **more)

    host.model.model.apply_model = noted
    return seen


def check(name: str) -> dict[str, Any]:
    host = pair_of(name)
    files = [combined_file(host, seed) for seed in (1, 2)]
    first, second = (
        loaded(host, called, file, f"a photo of {called}")
        for called, file in zip(("first", "second"), files, strict=True)
    )
    for lora, file in zip((first, second), files, strict=True):
        host.prove_reading(lora.use, lora.adapter, file)
    seen = [levels_seen(model) for model in (host, host.low)]
    calibration = Calibration(**{**vars(SMALL), "trajectories": 4, "timesteps": 1})
    job = Job.of(host, [first, second], calibration, MergeSettings(EXACT))
    result = merge_and_check(job)
    high, low = host.halves(result.adapter)
    alone = Calibration(**{**vars(calibration), "preserve_weight": 0.0, "held_out": 0})
    single = merge_and_check(Job.of(host, [first], alone, MergeSettings(EXACT)))
    return {
        "kept": job.calibration.timesteps,
        "layers": [len(high.deltas), len(low.deltas)],
        "unmatched": first.adapter.unmatched,
        "levels": [[min(levels), max(levels)] for levels in seen],
        "verdict": [kept.lora for kept in result.report.verdict.loras],
        "to itself": largest_difference(single.adapter, first.adapter),
    }


if __name__ == "__main__":
    in_comfy.tell([check("Wan")])
