"""Stable Diffusion in diffusers as the core sees it: noise levels, prompts, and whole merges."""

import copy
from contextlib import nullcontext

import pytest
import tiny_diffusers
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from iteris_core import ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.diffusers_model import DiffusersModel
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.merging import merge_diffusion

pytestmark = pytest.mark.slow

SMALL = {"trajectories": 6, "sampling_steps": 4, "resolution": 64, "cfg": 2.0}


def test_noise_levels_are_those_of_the_training_and_end_in_0():
    host = tiny_diffusers.model()
    sigmas = host.sigmas(1000)
    assert (sigmas[-1], len(sigmas)) == (0, 1001)
    assert torch.equal(host.timesteps(sigmas[:-1]), torch.arange(999, -1, -1))
    assert (sigmas.diff() < 0).all()
    alphas = tiny_diffusers.scheduler().alphas_cumprod
    torch.testing.assert_close(sigmas[0] ** 2, 1 / alphas[-1] - 1, rtol=1e-4, atol=0)


def test_a_zero_terminal_snr_has_finite_noise_levels():
    noisy = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert noisy.alphas_cumprod[-1] == 0
    host = DiffusersModel(
        tiny_diffusers.unet(), tiny_diffusers.text_encoder(), tiny_diffusers.tokenizer(), noisy
    )
    assert host.sigmas(5).isfinite().all()


def test_prompts_are_read_as_the_pipeline_reads_them():
    host = tiny_diffusers.model()
    tokenizer = host.tokenizer
    ((ids,),) = host.tokenize("a cat")
    assert (
        ids.tolist()
        == tokenizer("a cat", padding="max_length", max_length=16, truncation=True)["input_ids"]
    )
    words = tokenizer("a cat on a mat and a hat, a bat", add_special_tokens=False)["input_ids"]
    pieces = [ids for (ids,) in host.tokenize("a cat on a mat and a hat, a bat")]
    assert [len(piece) for piece in pieces] == [16, 16]
    assert [int(piece[0]) for piece in pieces] == [tokenizer.bos_token_id] * 2
    assert [*pieces[0][1:15].tolist(), *pieces[1][1 : 1 + len(words) - 14].tolist()] == words
    assert pieces[0][15] == tokenizer.eos_token_id
    assert set(pieces[1][1 + len(words) - 14 :].tolist()) == {
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    }


def test_positions_are_those_of_the_words():
    host = tiny_diffusers.model()
    for text in ("", "a cat", "a cat on a mat and a hat, a bat"):
        (ids,) = torch.cat(host.tokenize(text), dim=-1)
        words = host.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[host.token_positions(text)].tolist() == words


@pytest.mark.parametrize(("channels", "prediction_type"), [(4, "epsilon"), (27, "sample")])
def test_one_lora_merges_to_itself(channels, prediction_type):
    host = tiny_diffusers.model(prediction_type, channels, dtype=torch.float64)
    assert host.latent_shape(64) == (channels, 8, 8)
    lora = LoadedLora.of(tiny_diffusers.adapter(host, 1), ("a cat",))
    config = MergeSettings(MergeConfig(output_dtype=torch.float64))
    job = Job.of(host, [lora], Calibration(**SMALL, preserve_weight=0.0), config)
    found = merge_diffusion(job).adapter
    assert set(found.deltas) == set(lora.adapter.deltas)
    for path, delta in lora.adapter.deltas.items():
        expected = delta.dense().double()
        torch.testing.assert_close(found.deltas[path].dense(), expected, rtol=1e-6, atol=1e-6)


def odd():
    scheduler = copy.deepcopy(tiny_diffusers.scheduler())
    scheduler.register_to_config(prediction_type="flow_prediction")
    return scheduler


@pytest.mark.parametrize(
    ("place", "said", "part"),
    [
        (0, "in_channels 9 where SD1.5's has 4", lambda: tiny_diffusers.unet(in_channels=9)),
        (0, "num_class_embeds 3 where", lambda: tiny_diffusers.unet(num_class_embeds=3)),
        (3, "FlowMatch.* has no alphas_cumprod", FlowMatchEulerDiscreteScheduler),
        (3, "predicts 'flow_prediction'", odd),
    ],
)
def test_other_models_are_refused(place, said, part):
    parts = [
        tiny_diffusers.unet(),
        tiny_diffusers.text_encoder(),
        tiny_diffusers.tokenizer(),
        tiny_diffusers.scheduler(),
    ]
    parts[place] = part()
    with pytest.raises(ConfigError, match=said):
        DiffusersModel(*parts)


@pytest.mark.parametrize("stopped", ["Sampling", None])
def test_nothing_is_left_behind_wherever_it_is_cancelled(stopped):
    host = tiny_diffusers.model()
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
    assert all(torch.equal(host.modules[path].weight, weight) for path, weight in weights.items())
