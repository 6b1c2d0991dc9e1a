"""Stable Diffusion 1.5 and SDXL models, loaded by `diffusers`, and LoRA files for them, read at
strengths and written in kohya's style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..base_models import loaded, placed
from ..errors import ConfigError
from ..files import diffusers, kohya
from ..files.adapter_kinds import own_dense_delta
from ..files.block_weights import layer_weights
from ..files.families import Family
from ..files.tensors import read_header, read_tensors
from ..files.writing import write_tensors
from ..layers import stored_weight
from .diffusers_model import DiffusersModel

_PIPELINES = {"SD1.5": "StableDiffusionPipeline", "SDXL": "StableDiffusionXLPipeline"}
# What only pipelines of SD1.5 have, and a merge does not need.
_LEFT_OUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_FILES = (".safetensors", ".ckpt", ".pt", ".bin")


def load_diffusers(
    source: str,
    family: Family,
    config: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> DiffusersModel:
    """Load a Stable Diffusion 1.5 or SDXL model; its VAE and safety checker are not read.

    Args:
        source, family, config: As for `load_pipeline`.

    Raises:
        AdapterError, ConfigError: It cannot be loaded, is of another kind, or has no such device.
    """
    model = DiffusersModel.of(load_pipeline(source, family, config, vae=None))
    for part in (model.unet_model, *model.text_models):
        placed(part.to(dtype), device)
    return model


def load_pipeline(source: str, family: Family, config: str | None = None, **more: Any) -> Any:
    """Load a `StableDiffusionPipeline` without its safety checker, or a
    `StableDiffusionXLPipeline`.

    Args:
        source: A diffusers folder, a .safetensors checkpoint, or a name on the hub.
        family: The model's family, SD1.5 or SDXL.
        config: Diffusers folder (or hub name) with the settings and tokenizers for a checkpoint,
            whose weights are not read; None: its family's, from the hub or its cache.
        more: Parts of the pipeline that are not to be loaded, as None.

    Raises:
        AdapterError: A checkpoint is a pickle, or not whole.
        ConfigError: There is no such model, or another kind of model.
    """
    from diffusers import pipelines

    kind = getattr(pipelines, _PIPELINES[family.name])
    options = {**(_LEFT_OUT if family.name == "SD1.5" else {}), **more}
    if Path(source).suffix in _FILES:
        keys = read_header(Path(source))[0]
        settings = config or "of its family from the hub"
        what = f"{family.name} with the settings {settings}"
        pipeline = loaded(kind.from_single_file, source, what, config=config, **options)
    elif config is None:
        keys = {}
        options["use_safetensors"] = True
        pipeline = loaded(kind.from_pretrained, source, family.name, **options)
    else:
        raise ConfigError(
            f"config is for a checkpoint of one file; {source} has its own settings. Leave it out"
        )
    encoders = ("text_encoder", "text_encoder_2") if family.name == "SDXL" else ("text_encoder",)
    if any(getattr(pipeline, part) is None for part in encoders):
        raise ConfigError(
            f"{source}: has not all text encoders of {family.name}, such as SD1.5 or SDXL's "
            f"refiner; choose a base model of {family.name}"
        )
    if "v_pred" in keys:  # a tensor that says how an SDXL was trained; diffusers does not read it
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config,
            prediction_type="v_prediction",
            rescale_betas_zero_snr="ztsnr" in keys,
        )
    return pipeline


def read_lora(
    model: DiffusersModel,
    path: Path,
    strength: float = 1.0,
    strength_text: float | None = None,
    *,
    blocks: str = "",
    without: Sequence[str] = (),
) -> Adapter:
    """Read a LoRA file for this model, in the spelling of kohya, LyCORIS, diffusers (old and new),
    PEFT or ComfyUI.

    Args:
        strength: Strength of the UNet part, folded into the deltas.
        strength_text: Strength of the text encoder part, folded in too; None: as `strength`.
        blocks, without: As in `LoraUse`; blocks and paths of the UNet go by the names of its
            original code: ``diffusion_model.input_blocks...``

    Raises:
        AdapterError: Tensors that do not fit the model, or that only ComfyUI's own code can apply.
        ConfigError: Block weights or left out layers that this LoRA or model does not have.
    """

    def weight_at(module: str) -> Tensor:
        return stored_weight(module, model.modules[module]).float().cpu()

    weights = layer_weights(path.stem, blocks, without, model.own_path)
    tensors, metadata = read_tensors(path)
    adapter = kohya.parse(
        path.stem,
        diffusers.with_alphas(path.stem, tensors, metadata),
        model.keys,
        metadata,
        dense_delta=own_dense_delta(weight_at),
    )
    text, unet = weights.applied_to(adapter).split(model.is_text_module)
    text = text.scaled(strength if strength_text is None else strength_text)
    return unet.scaled(strength).joined_with(text)


def save_lora(
    model: DiffusersModel,
    adapter: Adapter,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a LoRA file in kohya's style, read by ComfyUI, A1111 and diffusers, in one step: it is
    there whole or not at all.

    Args:
        adapter: Adapter in the precision of the file.
        metadata: More strings for the file, such as the recipe.

    Raises:
        NameTakenError: The file is there and `overwrite` is False; it is untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
    """
    tensors, content = kohya.file_of(adapter, model.keys, metadata or {})
    write_tensors(tensors, path, content, overwrite=overwrite)
