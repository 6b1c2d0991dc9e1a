"""A pair of models that share the noise levels, as Wan 2.2's."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_hosts
from comfy_loras import EXACT, SMALL, largest_difference, loaded, lora_of
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.host.pair import ComfyPair, is_low

from iteris_core import AdapterError
from iteris_core.diffusion import waiting
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.rows.parking import Parking


def combined_file(host, seed):
    return {
        key.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
        for number in (1, 2)
        for key, tensor in lora_of(host, 10 * seed + number, "diffusers").items()
    }


def levels_seen(host):
    seen = []
    call = host.model.model.apply_model

    def noted(x, sigma, **more):
        seen.extend(sigma.tolist())
        return call(x, sigma, **more)

    host.model.model.apply_model = noted
    return seen


def test_each_model_of_a_pair_is_measured_where_it_works_on_runs_through_both():
    high = tiny_hosts.host_of("Wan")
    low = tiny_hosts.model_of(tiny_hosts.TINY["Wan"], seed=1)
    host = ComfyPair(high, ComfyModel(low, high.clip))
    with pytest.raises(AdapterError, match="holds a LoRA for each of two models"):
        loaded(high, "first", combined_file(host, 1), "a photo of first")
    with pytest.raises(AdapterError, match="empty"):
        loaded(host, "empty", {}, "a photo of nothing")
    loras = []
    for name, seed in (("first", 1), ("second", 2)):
        file = combined_file(host, seed)
        lora = loaded(host, name, file, f"a photo of {name}")
        host.prove_reading(lora.use, lora.adapter, file)
        assert lora.adapter.unmatched == ()
        loras.append(lora)
    of_high, of_low = levels_seen(host), levels_seen(host.low)
    calibration = Calibration(
        **{**vars(SMALL), "trajectories": 4, "timesteps": 1, "resolution": 64}
    )
    job = Job.of(host, loras, calibration, MergeSettings(EXACT))
    assert job.calibration.timesteps == 2  # latents of each run, about one for each expert
    result = merge_loras(job)
    assert [len(half.deltas) for half in host.halves(result.adapter)] == [27, 27]
    assert max(of_low) < 0.875 <= min(of_high) and max(of_high) == 1
    alone = Calibration(**{**vars(calibration), "preserve_weight": 0.0})
    single = merge_loras(Job.of(host, loras[:1], alone, MergeSettings(EXACT)))
    assert largest_difference(single.adapter, loras[0].adapter) < 2e-3


def test_memory_is_planned_for_loras_of_one_model_alone(monkeypatch):
    high = tiny_hosts.host_of("Wan")
    host = ComfyPair(
        high, ComfyModel(tiny_hosts.model_of(tiny_hosts.TINY["Wan"], seed=1), high.clip)
    )
    lora = loaded(host, "first", combined_file(host, 1), "a photo of first")
    monkeypatch.setattr(waiting, "Parking", partial(Parking, smallest=1))
    few = replace(SMALL, resolution=64)
    planned = []
    for part in lora.adapter.split(is_low):
        halves = [replace(lora, adapter=part)]
        job = Job.of(host, halves, few, MergeSettings(EXACT))
        room = host.make_room(job.latent_shape, job.cost.samples, job.layer_bytes)
        job = job.within(replace(room, waiting_bytes=1))
        [told] = [n.text for n in merge_loras(job).report.notes if n.kind == "memory"]
        planned.append((room.required, told))
    assert planned[0] == planned[1]
