"""Merges of a model on a device of its own that has no float64, as a Mac's GPU."""

from dataclasses import replace

import far
import pytest
import tiny_diffusers
import torch
import toy

from iteris_core import Adapter, LowRankDelta, MergeConfig, Sample, merge
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.merging import merge_loras
from iteris_core.diffusion.polish import polish
from iteris_core.layers import weight_shape
from iteris_core.memory import Room

HALF = {torch.float16: 0.01, torch.bfloat16: 0.05}  # rows and deltas are rounded there


def network_there(net):
    """Return a toy's network after its move, whose rows may be on the CPU."""
    far.move(net.model)

    def there(x):
        return x if isinstance(x, far.Far) else far.Far(x)

    return net.network(lambda rows: toy.run(net.model, [tuple(map(there, row)) for row in rows]))


@pytest.mark.parametrize("target", ["delta", "full_output"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", ["attention", "convolution"])
def test_a_merge_there_is_the_merge_here(name, dtype, target):
    net, adapters, tasks = toy.pair(name, 4)
    net.model.to(dtype)
    tasks = [
        replace(task, samples=[Sample(tuple(x.to(dtype) for x in s.teacher)) for s in task.samples])
        for task in tasks
    ]
    config = MergeConfig(target=target, output_dtype=torch.float32)
    expected = merge(net.network(), adapters, tasks, config, room=Room(2)).adapter
    with far.device():
        found = merge(network_there(net), adapters, tasks, config, room=Room(2)).adapter
    for path, delta in expected.deltas.items():
        off = (found.deltas[path].dense() - delta.dense()).norm() / delta.dense().norm()
        assert off <= HALF.get(dtype, 1e-4), path


def test_a_polish_there_is_the_polish_here():
    torch.manual_seed(0)
    net, adapters, tasks = toy.pair("attention", 4)
    net.model.float()
    tasks = [
        replace(task, samples=[Sample(tuple(x.float() for x in s.teacher)) for s in task.samples])
        for task in tasks
    ]
    picture = lambda answer: answer[:, None]  # noqa: E731
    start = merge(net.network(), adapters, tasks, toy.exact()).adapter.scaled(0.3)
    start = replace(start, deltas={p: d.to(dtype=torch.float32) for p, d in start.deltas.items()})
    here = net.network()
    expected = polish(
        replace(here, forward=lambda rows: picture(here.forward(rows))),
        adapters,
        tasks,
        start,
        3,
    ).adapter
    with far.device():
        there = network_there(net)
        found = polish(
            replace(there, forward=lambda rows: picture(there.forward(rows))),
            adapters,
            tasks,
            start,
            3,
        ).adapter
    for path, delta in expected.deltas.items():
        torch.testing.assert_close(found.deltas[path].dense(), delta.dense())


@pytest.mark.slow
def test_stable_diffusion_is_sampled_merged_and_polished_there():
    expected = merged(tiny_diffusers.model())
    host = tiny_diffusers.model()
    with far.device():
        far.move(host.unet_model)
        far.move(host.text_models[0])
        found = merged(host)
    for path, delta in expected.adapter.deltas.items():
        off = (found.adapter.deltas[path].dense() - delta.dense()).norm() / delta.dense().norm()
        assert off <= 0.01, path


def merged(host):
    calibration = Calibration(trajectories=2, sampling_steps=2, resolution=64, cfg=2.0, polish=2)
    loras = [
        LoadedLora.of(adapter_of(host, name, seed), (f"a {name}",))
        for seed, name in enumerate(("cat", "bat"))
    ]
    settings = MergeSettings(MergeConfig(output_dtype=torch.float32))
    return merge_loras(Job.of(host, loras, calibration, settings, Room(4)))


def adapter_of(host, name, seed):
    chance = torch.Generator().manual_seed(seed)
    deltas = {}
    for path, module in host.modules.items():
        if isinstance(module, torch.nn.Linear) and ("attn2" in path or "q_proj" in path):
            d_out, d_in = weight_shape(module)
            up, down = (torch.randn(shape, generator=chance) for shape in ((d_out, 2), (2, d_in)))
            deltas[path] = LowRankDelta(0.3 * up, down / d_in**0.5)
    return Adapter(name, deltas)
