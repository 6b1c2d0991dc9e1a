"""Stable Diffusion models of `diffusers`, from a folder, a single checkpoint file or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..files.pretrained import loaded, placed
from ..files.tensors import check_readable
from .pipeline import DiffusersModel

_PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")
_FILES = (".safetensors", ".ckpt", ".pt", ".bin")
_LEFT_OUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_diffusers(
    source: str, config: str | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> DiffusersModel:
    """Load a Stable Diffusion model; its VAE and safety checker are not read.

    Args:
        source: A diffusers folder, a .safetensors checkpoint, or a name on the hub.
        config: See `load_pipeline`.
        dtype: Precision in which the model runs.
        device: Device on which it runs.

    Raises:
        AdapterError, ConfigError: See `load_pipeline`; or the device cannot be used.
    """
    pipeline = load_pipeline(source, config, with_vae=False)
    for model in (pipeline.unet, pipeline.text_encoder):
        placed(model.to(dtype), device)
    described = config if _is_checkpoint(source) else source
    factor = _vae_scale_factor(described) if described is not None else 8
    unet, text_encoder, tokenizer, scheduler = (getattr(pipeline, part) for part in _PARTS)
    return DiffusersModel(unet, text_encoder, tokenizer, scheduler, vae_scale_factor=factor)


def load_pipeline(source: str, config: str | None = None, *, with_vae: bool = True) -> Any:
    """Load a `StableDiffusionPipeline` without its safety checker.

    Args:
        source: A diffusers folder, a .safetensors checkpoint, or a name on the hub.
        config: Diffusers folder (or hub name) with the settings and tokenizer for a checkpoint,
            whose weights are not read; None: SD1.5's, from the hub or its cache.
        with_vae: Whether the VAE is read.

    Raises:
        AdapterError: A checkpoint is a pickle, or not whole.
        ConfigError: There is no model there, or another kind of model.
    """
    from diffusers import StableDiffusionPipeline

    left_out = _LEFT_OUT if with_vae else {**_LEFT_OUT, "vae": None}
    if _is_checkpoint(source):
        return _from_file(StableDiffusionPipeline, Path(source), config, left_out)
    if config is not None:
        raise ConfigError(
            f"config is for a checkpoint of one file; {source} has its own settings. Leave it out"
        )
    _check_folder(StableDiffusionPipeline, source)
    return loaded(
        StableDiffusionPipeline.from_pretrained,
        source,
        "a diffusers model",
        use_safetensors=True,
        variant=_variant(Path(source)),
        **left_out,
    )


def _is_checkpoint(source: str) -> bool:
    return Path(source).suffix in _FILES


def _check_folder(pipeline_class: Any, source: str) -> None:
    settings = loaded(pipeline_class.load_config, source, "a diffusers model")
    missing = [part for part in _PARTS if part not in settings]
    if missing or "text_encoder_2" in settings:
        problem = f"it has no {missing[0]}" if missing else "it has a second text encoder"
        raise ConfigError(
            f"{source}: is a {settings.get('_class_name')}, {problem}; choose a Stable Diffusion "
            "1.5 model"
        )


def _from_file(
    pipeline_class: Any, path: Path, config: str | None, left_out: Mapping[str, Any]
) -> Any:
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such file; give a checkpoint, a diffusers folder, or a name on "
            "the hub"
        )
    check_readable(path)
    if config is not None and Path(config).is_absolute() and not Path(config).is_dir():
        raise ConfigError(
            f"{config}: there is no such folder; give a diffusers folder with the model's settings"
        )
    try:
        return pipeline_class.from_single_file(str(path), config=config, **left_out)
    except Exception as error:  # diffusers lets whatever a foreign checkpoint causes through
        what = (
            "with SD1.5's settings from the hub"
            if config is None
            else f"with the settings in {config}"
        )
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{path}: cannot be loaded {what} ({reason}); give as config a diffusers folder of the "
            "same kind, of which only the settings and the tokenizer are read"
        ) from error


def _variant(folder: Path) -> str | None:
    """Return ``fp16`` where a folder holds only such weights."""
    weights = {path.name for path in folder.glob("unet/*.safetensors")}
    return "fp16" if weights and all(".fp16." in name for name in weights) else None


def _vae_scale_factor(source: str) -> int:
    from diffusers import AutoencoderKL

    return 2 ** (len(AutoencoderKL.load_config(source, subfolder="vae")["block_out_channels"]) - 1)
