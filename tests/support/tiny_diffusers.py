"""Tiny random Stable Diffusion and SDXL models; diffusers is imported when one is made."""

import json
import tempfile
from pathlib import Path

import torch
import toy
from safetensors.torch import save_file
from torch import nn

from iteris_core import Adapter, LowRankDelta
from iteris_core.diffusion.diffusers_model import DiffusersModel
from iteris_core.files import peft
from iteris_core.files.diffusers import ldm_names
from iteris_core.files.metadata import base_metadata
from iteris_core.files.writing import write_tensors
from iteris_core.layers import weight_shape

LENGTH = 16
WIDTH = 16
WIDTH_2 = 24  # of the second text encoder of SDXL, and of its pooled output
_LETTERS = "abcdefghijklmnopqrstuvwxyz<>,"
_VOCABULARY = [
    *_LETTERS,
    *(f"{letter}</w>" for letter in _LETTERS),
    "ca",
    "cat</w>",
    "<|startoftext|>",
    "<|endoftext|>",
]


def tokenizer(length=LENGTH, **options):
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        merges = Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(_VOCABULARY)}))
        merges.write_text("#version: 0.2\nc a\nca t</w>\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length, **options)


def tokenizer_2():
    """The second tokenizer of SDXL, whose padding token may be in a prompt."""
    return tokenizer(pad_token=",")


def text_encoder(seed=0, **options):
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    return lively(CLIPTextModel(_text_config(**options)))


def text_encoder_2(seed=0, **options):
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(seed + 1)
    sizes = {"hidden_size": WIDTH_2, "projection_dim": WIDTH_2, "num_hidden_layers": 3}
    config = _text_config(**{**sizes, "hidden_act": "gelu", **options})
    return lively(CLIPTextModelWithProjection(config))


def _text_config(**options):
    from transformers import CLIPTextConfig

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
    lengths = {"vocab_size": len(_VOCABULARY), "max_position_embeddings": LENGTH}
    return CLIPTextConfig(**{**lengths, **sizes, **ids, **options})


def unet(seed=0, channels=4, **options):
    from diffusers import UNet2DConditionModel

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
    return lively(UNet2DConditionModel(**{**sizes, **blocks, **ends, **options}))


def unet_xl(seed=0, **options):
    """The UNet of SDXL: transformers of different depths, and what it reads beside the tokens."""
    blocks = {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
    }
    read = {
        "cross_attention_dim": WIDTH + WIDTH_2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + WIDTH_2,
    }
    return unet(seed, **{**blocks, **read, **options})


def lively(model):
    """Draw larger weights than a new model has, so that what a module reads matters."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval()


def scheduler(prediction_type="epsilon", **options):
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        **options,
    )


def model(prediction_type="epsilon", channels=4, dtype=torch.float32):
    parts = (
        unet(channels=channels).to(dtype),
        text_encoder().to(dtype),
        tokenizer(),
        scheduler(prediction_type),
    )
    return DiffusersModel(*parts)


def model_xl(prediction_type="epsilon", dtype=torch.float32):
    return DiffusersModel(
        unet_xl().to(dtype),
        text_encoder(num_hidden_layers=3).to(dtype),
        tokenizer(),
        scheduler(prediction_type),
        text_encoder_2=text_encoder_2().to(dtype),
        tokenizer_2=tokenizer_2(),
    )


MODELS = {"SD1.5": model, "SDXL": model_xl}


def pipeline(host, prediction_type="epsilon"):
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    if host.family.name == "SDXL":
        steps = EulerDiscreteScheduler.from_config(scheduler(prediction_type).config)
        tokenizers = host.tokenizer, tokenizer_2()
        parts = (*host.text_models, *tokenizers, host.unet_model, steps)
        return StableDiffusionXLPipeline(None, *parts, add_watermarker=False)
    steps = scheduler(prediction_type, steps_offset=1, clip_sample=False)
    parts = host.text_models[0], host.tokenizer, host.unet_model, steps, None, None
    return StableDiffusionPipeline(None, *parts, requires_safety_checker=False)


def save_folder(host, folder):
    pipeline(host).save_pretrained(folder)


_OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "encoder.layers.": "transformer.resblocks.",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def save_checkpoint(host, path, marks=()):
    """Save a checkpoint in the original code's names, with empty tensors as marks."""
    names = ldm_names(module for module, _ in host.unet_model.named_modules())
    tensors = {mark: torch.zeros(0) for mark in marks}
    for key, weight in host.unet_model.state_dict().items():
        module, _, kind = key.rpartition(".")
        tensors[f"model.diffusion_model.{names[module]}.{kind}"] = weight
    first, *others = host.text_models
    prefix = "conditioner.embedders.0" if others else "cond_stage_model"
    for key, weight in first.state_dict().items():
        name = key.removeprefix("text_model.")
        tensors[f"{prefix}.transformer.text_model.{name}"] = weight
    for second in others:
        tensors |= _of_open_clip(second, "conditioner.embedders.1.model.")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def _of_open_clip(encoder, prefix):
    """Return a text encoder's weights under the names of OpenCLIP, which has q, k and v in one."""
    tensors = {}
    state = encoder.state_dict()
    for key, weight in state.items():
        name = key.removeprefix("text_model.")
        for theirs, ours in _OPEN_CLIP.items():
            name = name.replace(theirs, ours)
        if ".q_proj." in name:
            parts = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensors[prefix + name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif name == "text_projection.weight":
            tensors[f"{prefix}text_projection"] = weight.T
        elif name == "embeddings.position_embedding.weight":
            tensors[f"{prefix}positional_embedding"] = weight
        elif not any(part in name for part in (".k_proj.", ".v_proj.", "position_ids")):
            tensors[prefix + name] = weight
    return tensors


def adapter(
    host,
    seed,
    name=None,
    wanted=("to_", "q_proj", "v_proj", "fc1", "proj_in", "ff.net", "conv1"),
    rank=2,
):
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


def save_in_diffusers_style(host, adapter, path, metadata=None):
    """Save a LoRA of one rank as diffusers' own trainers do."""
    tensors = peft.to_tensors(adapter, host.keys.kernels, prefix="")
    content = {"modelspec.title": adapter.name}
    content |= base_metadata(host.keys.family, host.keys.prediction_type)
    write_tensors(tensors, path, content | dict(metadata or {}))


def add_deltas(host, merged):
    for path, delta in merged.deltas.items():
        weight = host.modules[path].weight
        weight.data += delta.dense().to(weight).reshape(weight.shape)


def hooks(host):
    return sum(map(toy.hook_count, (host.unet_model, *host.text_models)))
