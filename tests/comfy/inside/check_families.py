"""What must hold for a family, CHECKED, on a tiny model of the host's own classes."""

import contextlib
import functools
import math
import os
import re
import types
from dataclasses import replace
from unittest import mock

import comfy.sample
import comfy_extras.nodes_model_advanced
import pytest
import tiny_hosts
import torch
from comfy_families import LAYERS
from comfy_loras import (
    CAPTION,
    EXACT,
    SMALL,
    bases_of,
    largest_difference,
    loaded,
    lora_of,
    prompt_of,
    seen,
    shape_of,
    stock,
)
from fake_host import as_used
from iteris_pack.nodes.host.conditions import conditions_for
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from torch import nn

from iteris_core import Adapter, MergeConfig
from iteris_core.adapters import target_layers
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_diffusion, merge_loras
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.diffusion.runs import Run
from iteris_core.diffusion.sampling import Part, Sampler, noise
from iteris_core.engines.layer_sums import layer_bytes
from iteris_core.files import kohya
from iteris_core.files.families import FAMILIES
from iteris_core.memory import Room
from iteris_core.network import TEXT_STREAM
from iteris_core.rows import parking
from iteris_core.rows.parking import HostMemory, Parking

NAME = os.environ["CHECKED"]
ROUNDING = 1e-5
# Measured: 2e-4 to 8e-3, by family and processor. The tiny models show few tokens, so their statistics
# are nearly singular, and float32 is what is left.
TO_ITSELF = 1.5e-2
PREDICTS = {"SD1.5": "epsilon", "SDXL": "epsilon", "SDXL v-prediction": "v"}
PAIRS = Room(samples_per_chunk=2)
NEAR = MergeSettings(MergeConfig(output_dtype=torch.float32))


def relative(found, expected, base):
    return ((found - expected).norm() / (expected - base).norm()).item()


@pytest.fixture(scope="module")
def host():
    return tiny_hosts.host_of(NAME)


@pytest.fixture(scope="module")
def base(host):
    return seen(host)


@pytest.fixture(scope="module")
def files(host):
    return {spelling: lora_of(host, 1, spelling) for spelling in ("kohya", "diffusers")}


@pytest.fixture(scope="module")
def first(host, files):
    return loaded(host, "first", files["diffusers"], "a photo of sks dog")


@pytest.fixture(scope="module")
def second(host):
    return loaded(host, "second", lora_of(host, 2, "kohya"), "a drawing of zwx car")


@pytest.fixture(scope="module")
def merged(host, base, first, second):
    return merge_loras(Job.of(host, [first, second], SMALL, NEAR, PAIRS))


def test_every_layer_is_read_in_every_spelling_and_measured_once(host, files, first):
    assert first.adapter.unmatched == ()
    assert len(first.adapter.deltas) == LAYERS[NAME]
    of_kohya = loaded(host, "kohya", files["kohya"], "x").adapter
    assert largest_difference(of_kohya, first.adapter) == 0
    unread = [
        base
        for weight, parts in bases_of(host).items()
        if weight.removesuffix(".weight") in host.keys.shapes
        for bases in parts.values()
        for base in bases
        if host.keys.place_of(base) is None
    ]
    assert unread == [] or NAME == "Lumina 2"  # of which the host's table names rows of no weight


def test_a_card_is_shared_out_between_calls_sums_and_waiting_rows(first):
    host = tiny_hosts.host_of(NAME)
    size = host.model.model_size()
    large, none, in_memory = (
        room_on_a_card(host, first.adapter, free, to_load)
        for free, to_load in ((1 << 40, size), (0, size), (0, 0))
    )
    assert none == in_memory  # what is free counts after the model is loaded
    other, own = (
        types.SimpleNamespace(is_clone=lambda model, own=own: own, offload_device=None)
        for own in (False, True)
    )
    kept = types.SimpleNamespace(is_clone=lambda model: False, offload_device=CARD)
    loaded = [LoadedHere(other, 1 << 40)]
    loaded += [LoadedHere(model, 1 << 50) for model in (own, kept, None)]
    with mock.patch("comfy.model_management.current_loaded_models", loaded):
        assert room_on_a_card(host, first.adapter, 0, size) == large  # the host can unload others
    assert large.samples_per_chunk == 16 and large.missing == 0
    assert large.required < large.waiting_bytes < 0.8 * 2**40
    assert (none.samples_per_chunk, none.waiting_bytes) == (1, 0)
    # two samples in a call, and the sums of a layer
    assert 0 < none.missing < none.required < 2 * none.missing


CARD = types.SimpleNamespace(type="cuda")


class LoadedHere:
    """A model in the host's list of those that it has loaded on the card."""

    device = CARD

    def __init__(self, model, size):
        self.model = model
        self.model_loaded_memory = lambda: size


def room_on_a_card(host, adapter, free, to_load):
    """Return how a card is shared out with so many bytes free beside the model, or its part to load."""
    of_card = mock.patch.object(host.model, "load_device", CARD)
    in_memory = host.model.model_size() - to_load
    with (
        of_card,
        mock.patch.object(host.model, "loaded_size", lambda: in_memory),
        mock.patch("comfy.model_management.get_free_memory", lambda device: free + to_load),
    ):
        room, _ = host.make_room(
            shape_of(host),
            90,
            lambda modules, _: layer_bytes(modules, [adapter], 3, EXACT, torch.device("cpu")),
        )
    return room


@pytest.mark.skipif(NAME != "SD1.5", reason="one family will do")
def test_rows_that_wait_elsewhere_make_the_same_merge_bit_for_bit(host, first, second):
    def merge(room):
        job = Job.of(host, [first, second], SMALL, MergeSettings(EXACT), room)
        return merge_diffusion(job).adapter.deltas

    expected = merge(PAIRS)
    written = []
    write = HostMemory.write

    def noted(own, storage):
        written.append(1)
        return write(own, storage)

    everything = functools.partial(Parking, smallest=1)
    with (
        mock.patch.object(parking, "_EMPTIED", frozenset({"cpu", "npu"})),
        mock.patch.object(HostMemory, "write", noted),
        mock.patch.object(parking, "Parking", everything),
    ):
        found = merge(replace(PAIRS, waiting_bytes=0))
    assert len(written) > 50 * LAYERS[NAME]
    assert all(torch.equal(delta.up, found[path].up) for path, delta in expected.items())


def test_rows_are_what_the_host_makes_of_a_lora(host, base, files, first):
    carrying = stock(host.model, host.clip, files["diffusers"], host.start_picture)
    assert relative(seen(carrying), seen(host, first.adapter), base) < ROUNDING


def test_sampling_runs_are_those_of_the_hosts_euler(host):
    """From the same noise; without guidance at pure noise."""
    positive, negative = (prompt_of(host, caption) for caption in (CAPTION, ""))
    calibration = SMALL.for_family(host.family)
    steps = calibration.sampling_steps
    with host.denoiser(steps) as network:
        sampler = Sampler.of(host, network, calibration)
        sampler = replace(sampler, sigmas=host.sigmas(steps).float().cpu())
        runs = [Run(5, tuple(range(length)), first=5) for length in range(1, steps + 1)]
        part = Part({}, positive, negative)
        kept = sampler.sample([], {run: [part] for run in runs}, 2)
        ours = [kept[run] for run in runs]
    start = conditions_for(host.row.start, host.start_picture, torch.zeros(1, *sampler.shape))
    unit = noise(sampler.shape, 5)[None]
    at_first = float(sampler.sigmas[0])

    def unguided_at_first(given):
        is_first = math.isclose(float(given["sigma"].max()), at_first, rel_tol=1e-5)
        return given["cond_denoised"] if is_first else given["denoised"]

    model = host.model.clone()
    model.set_model_sampler_post_cfg_function(unguided_at_first)
    theirs = []
    comfy.sample.sample(
        model,
        unit,
        steps,
        calibration.cfg,
        "euler",
        "normal",
        *([[prompt.tokens[None], {**prompt.others, **start}]] for prompt in (positive, negative)),
        torch.zeros_like(unit),
        callback=lambda step, x0, x, steps: theirs.append(x[0].clone().cpu()),
        disable_pbar=True,
        seed=5,
    )
    for (x, _), y in zip(ours, theirs, strict=True):
        # our first step is a call of one row, and the host's of two, which rounds otherwise
        assert (x - y).norm() < ROUNDING * y.norm()


def test_one_lora_merges_to_itself(host, first):
    """SDXL and Z-Image also without guidance, on a model that carries a turbo LoRA."""
    alone = Calibration(**{**vars(SMALL), "preserve_weight": 0.0})
    models = [(host, alone)]
    if NAME in ("SDXL", "Z-Image"):
        carrying = stock(host.model, host.clip, lora_of(host, 3, "kohya"))
        models.append((carrying, Calibration(**{**vars(alone), "cfg": 1.0})))
    for model, calibration in models:
        found = merge_diffusion(Job.of(model, [first], calibration, MergeSettings(EXACT), PAIRS))
        assert largest_difference(found.adapter, first.adapter) < TO_ITSELF


def test_two_loras_are_merged(first, second, merged):
    layers = target_layers([first.adapter, second.adapter])
    assert set(merged.adapter.deltas) == set(layers)


def test_the_saved_file_does_through_the_hosts_loader_what_the_merged_rows_do(host, base, merged):
    hooked = seen(host, merged.adapter)
    file, metadata = kohya.file_of(merged.adapter, host.keys)
    start = host.start_picture
    of_file = seen(stock(host.model, host.clip, file, start))
    assert relative(of_file, hooked, base) < ROUNDING
    patched = seen(ComfyModel(*host.patched(merged.adapter), start=start))
    assert relative(patched, hooked, base) < ROUNDING
    again = loaded(host, "merged", file, "x").adapter
    assert largest_difference(again, merged.adapter) < ROUNDING
    expected = FAMILIES[
        re.sub(" v-prediction| (2.. )?I2V| 2.2 5B| CausalAR| Kontext| Edit", "", NAME)
    ]
    assert metadata.get("ss_base_model_version", "") == expected.base_version
    architecture = metadata.get("modelspec.architecture", "")
    assert architecture == (expected.architecture and f"{expected.architecture}/lora")


def predicts(model, clip):
    _, metadata = kohya.file_of(Adapter("x", {}), ComfyModel(model, clip).keys, {})
    return metadata.get("modelspec.prediction_type")


def test_the_file_says_what_its_base_predicts(host):
    assert predicts(host.model, host.clip) == PREDICTS.get(NAME)
    if NAME == "SDXL":  # NoobAI's files without a marker
        node = comfy_extras.nodes_model_advanced.ModelSamplingDiscrete()
        [changed] = node.patch(host.model, "v_prediction", zsnr=True)
        assert predicts(changed, host.clip) == "v"


def test_scenes_tell_the_picture_from_the_text(host):
    """By the numbers of tokens that layers see of two texts and of two sizes of a picture."""
    if host.picture_tokens is None or host.start_picture:
        pytest.skip("this model has no scenes")
    short, long = CAPTION, " ".join([CAPTION] * 60)
    first, other_text, other_picture = (
        tokens_seen(host, caption, resolution)
        for caption, resolution in ((short, 128), (long, 128), (short, 256))
    )
    pictures = math.prod(shape_of(host)[1:]) // host.picture_tokens.patch**2
    for path, tokens in first.items():
        sees_picture = tokens != other_picture[path]
        if sees_picture or tokens != other_text[path]:
            assert (host._stream(path) == TEXT_STREAM) != sees_picture, path
            assert not sees_picture or tokens >= pictures, path


def tokens_seen(host, caption, resolution):
    seen_by = {}

    def count(path, module, args, output):
        seen_by[path] = args[0].shape[1:-1].numel()

    with host.denoiser(4) as network, contextlib.ExitStack() as hooks:
        for path, module in network.modules.items():
            if isinstance(module, nn.Linear):
                hook = functools.partial(count, path)
                hooks.callback(module.register_forward_hook(hook).remove)
        shape = shape_of(host, resolution)
        network.forward([DenoiserRow(noise(shape, 0), host.sigmas(4)[1], prompt_of(host, caption))])
    return seen_by


def test_two_subjects_are_polished_in_inference_mode_and_nothing_is_left(host, first, second):
    # ERNIE's rotary positions have no gradient in ComfyUI 0.33
    if host.has_text_layers or host.start_picture or NAME == "ERNIE-Image":
        pytest.skip("polished on other models")
    named = [
        as_used(lora, trigger=f"a {word} thing", kind="subject")
        for lora, word in ((first, "sks"), (second, "zwx"))
    ]
    less = {"trajectories": 1, "scene_weight": 0.3}
    polished, plain = (
        merge_diffusion(
            Job.of(
                host, named, Calibration(**{**vars(SMALL), **less, "polish": steps}), NEAR, PAIRS
            )
        ).adapter
        for steps in (2, 0)
    )
    assert largest_difference(polished, plain) > 1e-4
    assert not any(module._forward_hooks for module in host.model.model.modules())


def test_nothing_is_left_on_the_model(host, base, merged):
    assert torch.equal(seen(host), base)
