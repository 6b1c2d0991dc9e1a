"""SDXL in diffusers: pictures as its pipeline samples them, whole merges, and what is refused."""

import pytest
import tiny_diffusers
import torch
from diffusers import EulerDiscreteScheduler

from iteris_core import ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.diffusers_model import DiffusersModel
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.loading import save_lora
from iteris_core.diffusion.merging import PartSolver, merge_loras, merge_text_encoder
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.diffusion.sampling import euler_steps
from iteris_core.memory import Room
from iteris_core.progress import nobody
from iteris_core.rows.wearing import wearing

pytestmark = pytest.mark.slow

SMALL = {"trajectories": 4, "sampling_steps": 3, "resolution": 64, "cfg": 2.0}
TRAINED = ("attn1.to_", "attn2.to_", "ff.net", "proj_in", "proj_out", "self_attn", "fc1", "fc2")
SCHEDULES = {"v_prediction": {"rescale_betas_zero_snr": True}}  # NoobAI's


def euler(prediction_type):
    options = SCHEDULES.get(prediction_type, {})
    settings = tiny_diffusers.scheduler(prediction_type).config
    return EulerDiscreteScheduler.from_config(settings, timestep_spacing="linspace", **options)


def adapter(host, seed=1):
    return tiny_diffusers.adapter(host, seed, wanted=TRAINED)


def written(host, *captions, worn=None):
    adapters = [] if worn is None else [worn.select(host.is_text_module)]
    read = []
    with torch.no_grad(), host.text_encoder() as text:
        for caption in captions:
            pieces = host.tokenize(caption)
            mixes = [{number: 1.0 for number in range(len(adapters))}] * len(pieces)
            with wearing(text.modules, adapters, mixes):
                read.append(host.encoded(caption, text.forward(pieces)))
    return read


@pytest.mark.parametrize(
    ("family", "prediction_type"),
    [("SDXL", "epsilon"), ("SDXL", "v_prediction"), ("SD1.5", "epsilon"), ("SD1.5", "sample")],
)
def test_a_teachers_run_is_that_of_the_pipeline_with_its_lora(family, prediction_type, tmp_path):
    make = tiny_diffusers.MODELS[family]
    host = make(prediction_type, dtype=torch.float64)
    host = DiffusersModel.of(pipeline_of(host, prediction_type))
    lora = adapter(host)
    save_lora(host, lora, tmp_path / "lora.safetensors")
    start = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    asked = {"prompt": "a cat", "height": 64, "width": 64, "guidance_scale": 2.0}
    asked |= {"num_inference_steps": 4, "output_type": "latent", "latents": start}
    theirs = pipeline_of(make(dtype=torch.float64), prediction_type)
    plain = theirs(negative_prompt="", **asked).images
    theirs.load_lora_weights(str(tmp_path / "lora.safetensors"))
    texts = ["text_encoder", "text_encoder_2"][: len(host.text_models)]
    theirs.fuse_lora(components=["unet", *texts])
    expected = theirs(negative_prompt="", **asked).images
    sigmas = host.sigmas(4)
    of_unet = [lora.select(lambda path: not host.is_text_module(path))]
    prompts = written(host, "a cat", "", worn=lora)

    def denoise(x, sigma):
        rows = [DenoiserRow(x[0], sigma, prompt) for prompt in prompts]
        with wearing(unet.modules, of_unet, [{0: 1.0}] * 2):
            prompted, negative = unet.forward(rows)
        return (negative + 2.0 * (prompted - negative))[None]

    with torch.no_grad(), host.denoiser(4) as unet:
        # the last step ends in the clean latents
        last = list(euler_steps(denoise, start * sigmas[0], sigmas))[-1]
        found = denoise(last, sigmas[-2])
    assert (found - expected).norm() < 1e-4 * (plain - expected).norm()


def pipeline_of(host, prediction_type):
    pipeline = tiny_diffusers.pipeline(host)
    pipeline.scheduler = euler(prediction_type)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_prompts_are_read_as_the_pipeline_reads_them():
    host = tiny_diffusers.model_xl()
    pipeline = tiny_diffusers.pipeline(host)
    assert pipeline.config.force_zeros_for_empty_prompt
    tokens, negative, pooled, negative_pooled = pipeline.encode_prompt(
        "a cat", negative_prompt="", do_classifier_free_guidance=True
    )
    prompt, empty = written(host, "a cat", "")
    for ours, theirs in (
        (prompt.tokens, tokens),
        (empty.tokens, negative),
        (prompt.others["pooled_output"], pooled),
        (empty.others["pooled_output"], negative_pooled),
    ):
        torch.testing.assert_close(ours, theirs[0])
    _, zeros, *_ = pipeline.encode_prompt("a cat", do_classifier_free_guidance=True)
    assert not zeros.any() and empty.tokens.any()


def test_a_long_prompt_has_the_pooled_output_of_its_first_piece():
    host = tiny_diffusers.model_xl()
    caption = "a cat on a mat and a hat, a bat"
    pieces = host.tokenize(caption)
    assert [tuple(piece.shape) for piece in pieces] == [(2, 16)] * 2
    fills = [host.tokenizer.pad_token_id, tiny_diffusers.tokenizer_2().pad_token_id]
    assert fills[0] != fills[1] and pieces[1][:, -1].tolist() == fills
    words = pieces[1][0] != fills[0]  # also the comma, with which the second fills up
    assert torch.equal(pieces[0][0], pieces[0][1])
    assert torch.equal(pieces[1][0][words], pieces[1][1][words])
    (whole,) = written(host, caption)
    with torch.no_grad(), host.text_encoder() as text:
        first, second = text.forward(pieces)
    assert torch.equal(whole.tokens, torch.cat([first.tokens, second.tokens]))
    assert torch.equal(whole.others["pooled_output"], first.others["pooled_output"])


def test_two_loras_a_preserve_task_scenes_and_the_check():
    host = tiny_diffusers.model_xl()
    written(host, "a cat")
    hooks = tiny_diffusers.hooks(host)  # of transformers, by which it hands out hidden states
    loras = [
        LoadedLora.of(adapter(host, seed), (prompt,), trigger=prompt)
        for seed, prompt in ((1, "bat"), (2, "hat"))
    ]
    calibration = Calibration(
        **SMALL,
        scene_weight=0.1,
        scene_forms=("{first} {second}",),
        scene_prefixes=(),  # this tokenizer reads letters, and a piece has room for few
        companions=("mat",),
        compositions=("{prompt} {thing}",),
        preserve_captions=("a hat", "a cat"),
    )
    how = MergeSettings(MergeConfig(target="full_output"))
    result = merge_loras(Job.of(host, loras, calibration, how))
    assert {task.task for task in result.report.layers[0].tasks} == {
        "lora1",
        "lora2",
        "lora1 in scenes",
        "lora2 in scenes",
        "base model (preserve)",
    }
    assert tiny_diffusers.hooks(host) == hooks


def test_chunks_that_wait_for_each_other_keep_their_own_hidden_states():
    host = tiny_diffusers.model_xl(dtype=torch.float64)
    loras = [
        LoadedLora.of(adapter(host, seed), (prompt,)) for seed, prompt in ((1, "a cat"), (2, "ink"))
    ]

    def contexts(samples_per_chunk):
        settings = MergeSettings(MergeConfig(output_dtype=torch.float64))
        job = Job.of(host, loras, Calibration(**SMALL), settings, Room(samples_per_chunk))
        read, _ = merge_text_encoder(PartSolver(job, nobody))
        return [side for context in read.values() for side in (context.teacher, context.student)]

    for one, other in zip(contexts(1), contexts(100), strict=True):
        torch.testing.assert_close(one.tokens, other.tokens, rtol=1e-5, atol=1e-5)
        pooled = (prompt.others["pooled_output"] for prompt in (one, other))
        torch.testing.assert_close(*pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unet", [tiny_diffusers.unet_xl, tiny_diffusers.unet])
def test_a_unet_of_the_other_family_is_refused(unet):
    seconds = tiny_diffusers.text_encoder_2(), tiny_diffusers.tokenizer_2()
    more = dict(zip(("text_encoder_2", "tokenizer_2"), seconds, strict=True))
    parts = tiny_diffusers.text_encoder(), tiny_diffusers.tokenizer(), tiny_diffusers.scheduler()
    is_xl = unet is tiny_diffusers.unet_xl
    with pytest.raises(ConfigError, match=r"the UNet has addition_embed_type .* where SD"):
        DiffusersModel(unet(), *parts, **({} if is_xl else more))


XL = tiny_diffusers.unet_xl


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        ("layers_per_block 1 where SDXL's has 2", lambda: {"unet": XL(layers_per_block=1)}),
        ("mid_block_type None where SDXL's has", lambda: {"unet": XL(mid_block_type=None)}),
    ],
)
def test_models_that_were_cut_down_are_refused(said, changed):
    parts = {
        "unet": XL(),
        "text_encoder": tiny_diffusers.text_encoder(num_hidden_layers=3),
        "tokenizer": tiny_diffusers.tokenizer(),
        "scheduler": tiny_diffusers.scheduler(),
        "text_encoder_2": tiny_diffusers.text_encoder_2(),
        "tokenizer_2": tiny_diffusers.tokenizer(),
    }
    with pytest.raises(ConfigError, match=said):
        DiffusersModel(**{**parts, **changed()})
