"""`python -m benchmarks.paper sd15` on a tiny Stable Diffusion and a tiny CLIP of the real classes."""

import json

import pytest
import tiny_diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.schedulers import DDPMScheduler, PNDMScheduler
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
from typer.testing import CliRunner

from benchmarks.paper.__main__ import app
from benchmarks.paper.drawing import Sampling
from iteris_core.diffusion.lora_files import save_lora
from iteris_core.diffusion.pipeline import DiffusersModel

pytestmark = pytest.mark.nightly


TEMPLATES = ("a photo of {concepts}", "{concepts} on a cat")


def iteris(*arguments):
    environment = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["sd15", *map(str, arguments)], env=environment)


def make_clip(tokenizer):
    torch.manual_seed(3)
    widths = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {
        "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
        "pad_token_id": 1,
    }
    config = CLIPConfig(
        text_config={**widths, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**widths, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pipeline folder, a CLIP folder, two LoRAs in both of our styles, and photos of two
    concepts.
    """
    folder = tmp_path_factory.mktemp("eval-sd15")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
    )
    tokenizer = tiny_diffusers.tokenizer()
    StableDiffusionPipeline(
        vae,
        tiny_diffusers.text_encoder(),
        tokenizer,
        tiny_diffusers.unet(),
        PNDMScheduler(steps_offset=1, skip_prk_steps=True),
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "base")
    make_clip(tokenizer).save_pretrained(folder / "clip")
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    CLIPProcessor(images, tokenizer).save_pretrained(folder / "clip")
    host = tiny_diffusers.model()
    save_lora(host, tiny_diffusers.adapter(host, 1), folder / "merged.safetensors", "kohya")
    save_lora(host, tiny_diffusers.adapter(host, 2), folder / "other.safetensors", "diffusers")
    for number, name in enumerate(("pot", "teddybear")):
        (folder / name).mkdir()
        for photo in range(2 + number):
            pixels = torch.randint(0, 255, (12, 9, 3), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{photo}.png")
    (folder / "pot" / "notes.txt").write_text("no photo")
    (folder / "prompts.txt").write_text("\n".join(TEMPLATES) + "\n\n")
    return folder


def arguments_for(world, output, *more, count=2):
    return [
        "--base",
        world / "base",
        "--clip",
        world / "clip",
        "--output",
        output,
        "--prompts",
        world / "prompts.txt",
        "--concept",
        f"pot={world / 'pot'}",
        "--words",
        "pot=a <a> pot",
        "--concept",
        f"teddybear={world / 'teddybear'}",
        "--steps",
        3,
        "--size",
        16,
        "--count",
        count,
        *more,
    ]


def drawn_alone(world, prompt, seed, lora=None):
    """Return one picture of diffusers, where a LoRA's deltas are added to the weights."""
    pipeline = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        host = DiffusersModel(
            pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler
        )
        tiny_diffusers.add_deltas(host, tiny_diffusers.adapter(host, lora))
    generator = torch.Generator().manual_seed(seed)
    return pipeline(
        prompt, num_inference_steps=3, guidance_scale=12, width=16, height=16, generator=generator
    ).images[0]


def pixels(picture):
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    return torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.int16)


def features_of(world, files):
    """Return what CLIP sees in pictures, by its own code."""
    clip = CLIPModel.from_pretrained(world / "clip").eval()
    processor = CLIPProcessor.from_pretrained(world / "clip")
    pictures = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        inputs = processor(images=pictures, return_tensors="pt")
        seen = clip.visual_projection(clip.vision_model(**inputs).pooler_output)
        return torch.nn.functional.normalize(seen, dim=-1)


def test_pictures_are_those_of_diffusers_and_scores_those_of_clip(world, tmp_path):
    loras = ["--lora", world / "merged.safetensors", "--lora", world / "other.safetensors"]
    done = iteris(
        *arguments_for(
            world, tmp_path / "out", *loras, "--json", tmp_path / "scores.json", "--batch", 3
        )
    )
    assert (done.exit_code, done.stderr) == (0, "")
    prompts = ["a photo of a <a> pot and a teddybear", "a <a> pot and a teddybear on a cat"]
    for row, lora in (("base", None), ("merged", 1), ("other", 2)):
        for p, n in ((0, 1), (1, 0)):
            alone = drawn_alone(world, prompts[p], Sampling().seed_of(p, n), lora)
            assert (
                pixels(tmp_path / "out" / row / f"{p:02d}-{n:04d}.png") - pixels(alone)
            ).abs().max() <= 1
    first = [pixels(tmp_path / "out" / row / "00-0000.png") for row in ("base", "merged", "other")]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])

    report = json.loads((tmp_path / "scores.json").read_text())
    scores = {entry["row"]: entry["values"] for entry in report["scores"]}
    assert list(scores) == ["base", "merged", "other"]
    pictures = [
        tmp_path / "out" / "merged" / f"{p:02d}-{n:04d}.png" for p in (0, 1) for n in (0, 1)
    ]
    seen = features_of(world, pictures)
    for key, concept in (("image_1", "pot"), ("image_2", "teddybear")):
        photos = features_of(world, sorted((world / concept).glob("*.png")))
        assert scores["merged"][key] == pytest.approx((seen @ photos.T).mean().item(), abs=1e-5)
    assert 0 <= scores["merged"]["text"] <= 2.5
    assert [entry["examples"] for entry in report["scores"]] == [4, 4, 4]
    (line,) = [
        line for line in done.stdout.splitlines() if "paper, IterIS (this pair, table 1)" in line
    ]
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["0.554", "0.807", "0.691"]
