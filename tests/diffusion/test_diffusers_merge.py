"""Whole merges through diffusers, held against the equation of the method on plainly patched
models.
"""

import copy
from contextlib import nullcontext

import pytest
import tiny_diffusers
import torch
import toy

from iteris_core import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.diffusers_model import DiffusersModel
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.diffusion.merging import merge_diffusion
from iteris_core.layers import input_tokens

pytestmark = pytest.mark.slow

SMALL = {"trajectories": 2, "timesteps": 2, "sampling_steps": 3, "resolution": 64, "cfg": 2.0}
EXACT = MergeConfig(
    tokens_per_dimension=None,
    target="delta",
    output_dtype=torch.float64,
    samples_per_chunk=100,
    unit_gain=1.0,
)


class Recorder(DiffusersModel):
    """Notes what its two networks read, batch by batch."""

    def _network(self, belongs, forward):
        def noted(rows):
            self.batches.append(list(rows))
            return forward(rows)

        return super()._network(belongs, noted)


def recorder(prediction_type):
    parts = (
        tiny_diffusers.unet().double(),
        tiny_diffusers.text_encoder().double(),
        tiny_diffusers.tokenizer(),
        tiny_diffusers.scheduler(prediction_type),
    )
    host = Recorder(*parts)
    host.batches = []
    return host


def patched(host, adapter=None):
    model = copy.deepcopy(host)
    model.__dict__.pop("modules", None)
    if adapter is not None:
        tiny_diffusers.add_deltas(model, adapter)
    return model


def inputs_of_layers(model, opened, rows, paths):
    """Return what layers read when a model runs, (tokens, d_in), caught by plain hooks."""
    seen = {}
    handles = []
    for path in paths:
        module = model.modules[path]

        def catch(module, args, kwargs, path=path):
            x = (args or tuple(kwargs.values()))[0]
            seen[path] = input_tokens(module, x).flatten(0, 1).double()

        handles.append(module.register_forward_pre_hook(catch, with_kwargs=True))
    with torch.no_grad(), opened(model) as network:
        network.forward(rows)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_layer_solves_the_equation_on_plainly_patched_models(prediction_type):
    host = recorder(prediction_type)
    loras = [
        LoadedLora.of(tiny_diffusers.adapter(host, seed), (prompt,))
        for seed, prompt in ((7, "a cat"), (8, "ink"))
    ]
    calibration = Calibration(**SMALL, composition_share=0.0, preserve_captions=("a hat",))
    result = merge_diffusion(Job.of(host, loras, calibration, MergeSettings(EXACT)))
    text_batch = host.batches[1]  # before it one row
    unet_batch = host.batches[-2]  # after it one sample runs alone
    models = [patched(host, lora.adapter) for lora in loras] + [patched(host)]
    student = patched(host, result.adapter)
    checked = 0
    for batch, opened, mine in (
        (text_batch, lambda model: model.text_encoder(), host.is_text_module),
        (unet_batch, lambda model: model.denoiser(), lambda path: not host.is_text_module(path)),
    ):
        layers = [layer for layer in result.report.layers if mine(layer.path)]
        paths = [layer.path for layer in layers]
        half = len(batch) // 2
        (total,) = {sum(task.tokens for task in layer.tasks) for layer in layers[:1]}
        counts = [task.tokens * half // total for task in layers[0].tasks]
        assert sum(counts) == half
        at_layer = {path: [] for path in paths}
        start = 0
        for g, count in enumerate(counts):
            rows = slice(start, start + count)
            teacher = inputs_of_layers(models[g], opened, batch[:half][rows], paths)
            reads = inputs_of_layers(student, opened, batch[half:][rows], paths)
            start += count
            for path in paths:
                worn = (
                    result.adapter.deltas[path].dense() * 0
                    if g == 2
                    else loras[g].adapter.deltas[path].dense().double()
                )
                weight = calibration.preserve_weight if g == 2 else 1.0
                at_layer[path].append(toy.DenseTask(teacher[path], reads[path], worn, weight))
        for path in paths:
            base = host.modules[path].weight.flatten(1)
            expected = toy.solve_densely(base, at_layer[path], EXACT)
            error = (result.adapter.deltas[path].dense() - expected).norm() / expected.norm()
            assert error < 1e-6, path
            checked += 1
    assert checked == len(result.adapter.deltas) > 50


@pytest.mark.parametrize("stopped", ["Sampling", None])
def test_nothing_is_left_behind_wherever_it_is_cancelled(stopped):
    host = tiny_diffusers.model()
    host.unet_model.train()
    host.text_models[0].train()
    host.unet_model.mid_block.eval()
    modes = {path: module.training for path, module in host.modules.items()}
    weights = {
        path: module.weight.clone()
        for path, module in host.modules.items()
        if hasattr(module, "weight")
    }
    loras = [LoadedLora.of(tiny_diffusers.adapter(host, seed), ("a cat",)) for seed in (1, 2)]

    def progress(stage, done, total):
        if stage.name == stopped and done in (3, total):
            raise InterruptedError(stage.name)

    with pytest.raises(InterruptedError, match=stopped) if stopped else nullcontext():
        merge_diffusion(Job.of(host, loras, Calibration(**SMALL)), progress)
    assert tiny_diffusers.hooks(host) == 0
    assert {path: module.training for path, module in host.modules.items()} == modes
    assert all(torch.equal(host.modules[path].weight, weight) for path, weight in weights.items())
