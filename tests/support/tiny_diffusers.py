"""Tiny random Stable Diffusion models of the real classes, made on the spot; see the fixture
`tiny_sd`.
"""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from iteris_core import Adapter, LowRankDelta
from iteris_core.diffusion.pipeline import DiffusersModel
from iteris_core.files.ldm_names import ldm_names
from iteris_core.layers import weight_shape

LENGTH = 16
WIDTH = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz<>,"
_VOCABULARY = [
    *_LETTERS,
    *(f"{letter}</w>" for letter in _LETTERS),
    "ca",
    "cat</w>",
    "<|startoftext|>",
    "<|endoftext|>",
]


def tokenizer(length=LENGTH):
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        merges = Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(_VOCABULARY)}))
        merges.write_text("#version: 0.2\nc a\nca t</w>\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length)


def text_encoder(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {
        "bos_token_id": len(_VOCABULARY) - 2,
        "eos_token_id": len(_VOCABULARY) - 1,
        "pad_token_id": 1,
    }
    config = CLIPTextConfig(
        vocab_size=len(_VOCABULARY), max_position_embeddings=LENGTH, **{**sizes, **ids, **options}
    )
    return _lively(CLIPTextModel(config))


def unet(seed=0, channels=4, **options):
    torch.manual_seed(seed)
    sizes = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    ends = {
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": WIDTH,
        "sample_size": 8,
    }
    return _lively(UNet2DConditionModel(**{**sizes, **blocks, **ends, **options}))


def _lively(model):
    """Draw larger weights than a new model has, so that what a module reads matters."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval()


def scheduler(prediction_type="epsilon", **options):
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        **options,
    )


def model(prediction_type="epsilon", channels=4, dtype=torch.float32, **options):
    parts = (
        unet(channels=channels).to(dtype),
        text_encoder().to(dtype),
        tokenizer(),
        scheduler(prediction_type),
    )
    return DiffusersModel(*parts, **options)


def pipeline(host, prediction_type="epsilon", vae=None):
    steps = scheduler(prediction_type, steps_offset=1, clip_sample=False)
    parts = host.text_model, host.tokenizer, host.unet_model, steps, None, None
    return StableDiffusionPipeline(vae, *parts, requires_safety_checker=False)


def save_folder(host, folder, vae_scale_factor=8, **options):
    """Save a diffusers folder."""
    levels = vae_scale_factor.bit_length()
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    vae = AutoencoderKL(block_out_channels=(4,) * levels, norm_num_groups=2, **blocks)
    pipeline(host, vae=vae, **options).save_pretrained(folder)


def save_checkpoint(host, path):
    """Save a checkpoint of one file, with the names of Stable Diffusion's original code."""
    names = ldm_names(module for module, _ in host.unet_model.named_modules())
    tensors = {}
    for key, weight in host.unet_model.state_dict().items():
        module, _, kind = key.rpartition(".")
        tensors[f"model.diffusion_model.{names[module]}.{kind}"] = weight.contiguous()
    for key, weight in host.text_model.state_dict().items():
        name = key.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = weight.contiguous()
    save_file(tensors, path)


def adapter(
    host,
    seed,
    name=None,
    wanted=("to_", "q_proj", "v_proj", "fc1", "proj_in", "ff.net", "conv1"),
    rank=2,
):
    """Return a LoRA of random factors for the modules whose paths contain one of these."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for path, module in host.modules.items():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and any(part in path for part in wanted):
            d_out, d_in = weight_shape(module)
            up = torch.randn(d_out, rank, generator=generator) * 0.3 / rank**0.5
            deltas[path] = LowRankDelta(
                up, torch.randn(rank, d_in, generator=generator) / d_in**0.5
            )
    return Adapter(name or f"lora{seed}", deltas)


def add_deltas(host, merged):
    """Add deltas to the weights of a host's modules, in place."""
    for path, delta in merged.deltas.items():
        weight = host.modules[path].weight
        weight.data += delta.dense().to(weight).reshape(weight.shape)


def hooks(host):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in host.modules.values()
    )
