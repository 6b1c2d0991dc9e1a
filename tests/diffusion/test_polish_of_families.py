"""Whatever the polish does, no family's merge gets worse by it on samples that it never saw: the mean
over tasks of their error, relative to that before.
"""

import pytest
import tiny_diffusers
import torch
import toy

from benchmarks.worlds import WORLDS
from iteris_core import MergeConfig
from iteris_core.diffusion import merging
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.merging import merge_diffusion

pytestmark = pytest.mark.slow
SETTINGS = MergeSettings(MergeConfig(output_dtype=torch.float32))
UNETS = ("epsilon", "v_prediction")  # transformers: of two streams, and half of one


@pytest.mark.parametrize("family", [*UNETS, "flow", "single"])
def test_a_rate_that_is_far_too_large_leaves_a_merge_as_good_as_it_was(family, monkeypatch):
    torch.manual_seed(0)
    if family in UNETS:
        host = tiny_diffusers.model(family)
        words = {}
    else:
        world = WORLDS[family]
        model = world.new_model()
        tiny_diffusers.lively(model.denoiser)
        host, words = model.product(), world.calibration
    adapters = [tiny_diffusers.adapter(host, seed, wanted=("to_q", "to_v")) for seed in (1, 2)]
    loras = [
        LoadedLora.of(adapter.select(lambda path: not host.is_text_module(path)), (f"a {name}",))
        for adapter, name in zip(adapters, ("cat", "bat"), strict=True)
    ]
    few = {"trajectories": 6, "resolution": 64, "cfg": 2.0, "companions": ("a hat",)}
    calibration = {**words, **few, "polish": 30}
    given = []

    def polish(network, adapters, tasks, *others):
        given.append((adapters, tasks))
        return real(network, adapters, tasks, *others)

    real = merging.polish
    monkeypatch.setattr(merging, "polish", polish)
    monkeypatch.setattr("iteris_core.diffusion.descent._RATE", 2.0)
    found, _ = (
        merge_diffusion(Job.of(host, loras, Calibration(**calibration, seed=seed), SETTINGS))
        for seed in (0, 5)
    )
    closed = merge_diffusion(
        Job.of(host, loras, Calibration(**{**calibration, "polish": 0}), SETTINGS)
    )
    (adapters, _), (_, unseen) = given

    def errors(merged):
        part = merged.select(lambda path: not host.is_text_module(path))
        with host.denoiser(20) as network:
            found = toy.output_errors(network, adapters, unseen, part)
        return torch.stack([of_task[:, 0].mean() for of_task in found])

    assert (errors(found.adapter) / errors(closed.adapter)).mean() < 1.02
