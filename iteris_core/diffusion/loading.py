"""Stable Diffusion 1.5 and SDXL models, loaded by `diffusers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..base_models import loaded, placed
from ..errors import ConfigError
from ..files.families import Family
from ..files.tensors import read_header
from .diffusers_model import DiffusersModel

_PIPELINES = {"SD1.5": "StableDiffusionPipeline", "SDXL": "StableDiffusionXLPipeline"}
_LEFT_OUT = {
    "SD1.5": {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    "SDXL": {},
}
_FILES = (".safetensors", ".ckpt", ".pt", ".bin")
# Tensors of a checkpoint that say how an SDXL was trained.
_V_PREDICTION = "v_pred"
_ZERO_TERMINAL_SNR = "ztsnr"


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
    import diffusers

    kind = getattr(diffusers, _PIPELINES[family.name])
    options = {**_LEFT_OUT[family.name], **more}
    if Path(source).suffix in _FILES:
        keys = read_header(Path(source))[0]
        settings = config or "of its family from the hub"
        what = f"{family.name} with the settings {settings}"
        pipeline = loaded(kind.from_single_file, source, what, config=config, **options)
    elif config is None:
        keys = {}
        variant = _variant(Path(source))
        options |= {"use_safetensors": True, "variant": variant}
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
    if _V_PREDICTION in keys:  # which diffusers does not read
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=_ZERO_TERMINAL_SNR in keys,
        )
    return pipeline


def _variant(folder: Path) -> str | None:
    """Return ``fp16`` where a folder holds only such weights."""
    weights = {path.name for path in folder.glob("unet/*.safetensors")}
    return "fp16" if weights and all(".fp16." in name for name in weights) else None
