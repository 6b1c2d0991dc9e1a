"""Stable Diffusion and SDXL models of `diffusers`, from a folder, a checkpoint file or the hub."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..base_models import DeviceMap, first_line, loaded, placed
from ..errors import ConfigError
from ..files.families import Family
from ..files.tensors import read_header
from .diffusers_model import DiffusersModel

logger = logging.getLogger("iteris")
_USUAL_FACTOR = 8  # pixels of a latent, in each direction, of SD1.5's and SDXL's own VAE
_FILES = (".safetensors", ".ckpt", ".pt", ".bin")
# Parts of a checkpoint of one file that say what kind of SDXL it is.
_SDXL_TEXTS = "conditioner.embedders."
_SECOND_TEXT = "conditioner.embedders.1."
_EDM = "edm_"
_V_PREDICTION = "v_pred"
_ZERO_TERMINAL_SNR = "ztsnr"


@dataclass(frozen=True)
class _Kind:
    """How diffusers holds the models of a family.

    Args:
        left_out: Arguments that leave out what a merge does not need.
    """

    family: str
    pipeline: str
    parts: tuple[str, ...]
    left_out: Mapping[str, Any] = field(default_factory=dict)


_SD15 = _Kind(
    "SD1.5",
    "StableDiffusionPipeline",
    ("unet", "text_encoder", "tokenizer", "scheduler"),
    {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
_SDXL = _Kind(
    "SDXL",
    "StableDiffusionXLPipeline",
    (*_SD15.parts, "text_encoder_2", "tokenizer_2"),
)


def load_diffusers(
    source: str,
    config: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    family: Family | None = None,
    device_map: DeviceMap = "none",
) -> DiffusersModel:
    """Load a Stable Diffusion 1.5 or SDXL model; its VAE and safety checker are not read.

    Args:
        source, config, family: As for `load_pipeline`.
        device, device_map: Where it runs, as for `base_models.placed`.

    Raises:
        AdapterError, ConfigError: It cannot be loaded, as by `load_pipeline`, or not be placed.
    """
    pipeline = load_pipeline(source, config, family=family, with_vae=False)
    described = config if _is_checkpoint(source) else source
    factor = _vae_scale_factor(described) if described is not None else _USUAL_FACTOR
    model = DiffusersModel.of(pipeline, factor)
    for part in (model.unet_model, *model.text_models):
        placed(part.to(dtype), device, device_map)
    return model


def load_pipeline(
    source: str,
    config: str | None = None,
    *,
    family: Family | None = None,
    with_vae: bool = True,
) -> Any:
    """Load a `StableDiffusionPipeline` without its safety checker, or a
    `StableDiffusionXLPipeline`.

    Args:
        source: A diffusers folder, a .safetensors checkpoint, or a name on the hub.
        config: Diffusers folder (or hub name) with the settings and tokenizers for a checkpoint,
            whose weights are not read; None: its family's, from the hub or its cache.
        family: The family that the model must belong to; None: SD1.5 or SDXL.

    Raises:
        AdapterError: A checkpoint is a pickle, or not whole.
        ConfigError: There is no model there, or another kind of model.
    """
    more = {} if with_vae else {"vae": None}
    if _is_checkpoint(source):
        return _from_file(Path(source), config, family, more)
    if config is not None:
        raise ConfigError(
            f"config is for a checkpoint of one file; {source} has its own settings. Leave it out"
        )
    kind = _kind_of_folder(source)
    _check_family(source, kind, family)
    return loaded(
        _class_of(kind).from_pretrained,
        source,
        "a diffusers model",
        use_safetensors=True,
        variant=_variant(Path(source)),
        **kind.left_out,
        **more,
    )


def _class_of(kind: _Kind) -> Any:
    import diffusers

    return getattr(diffusers, kind.pipeline)


def _check_family(source: str | Path, kind: _Kind, family: Family | None) -> None:
    if family is not None and kind.family != family.name:
        raise ConfigError(
            f"{source}: is a model of {kind.family}, but {family.name} is needed; choose another "
            f"model, or the command for {kind.family}"
        )


def _is_checkpoint(source: str) -> bool:
    return Path(source).suffix in _FILES


def _kind_of_folder(source: str) -> _Kind:
    settings = loaded(_class_of(_SD15).load_config, source, "a diffusers model")

    def has(part: str) -> bool:
        return any(settings.get(part) or ())  # the library and the class, or two times nothing

    kind = _SDXL if has("text_encoder_2") else _SD15
    missing = [part for part in kind.parts if not has(part)]
    if missing:
        problem = f"it has no {missing[0]}"
        if settings.get("requires_aesthetics_score"):
            problem += ", as SDXL's refiner"
        raise ConfigError(
            f"{source}: is a {settings.get('_class_name')}, {problem}; choose a Stable Diffusion "
            "1.5 or SDXL base model"
        )
    return kind


def _from_file(
    path: Path, config: str | None, family: Family | None, more: Mapping[str, Any]
) -> Any:
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such file; give a checkpoint, a diffusers folder, or a name on "
            "the hub"
        )
    keys = frozenset(read_header(path)[0])
    kind = _kind_of_file(path, keys)
    _check_family(path, kind, family)
    if config is not None and Path(config).is_absolute() and not Path(config).is_dir():
        raise ConfigError(
            f"{config}: there is no such folder; give a diffusers folder with the model's settings"
        )
    try:
        pipeline = _class_of(kind).from_single_file(
            str(path), config=config, **kind.left_out, **more
        )
    except Exception as error:  # diffusers lets whatever a foreign checkpoint causes through
        what = (
            f"with {kind.family}'s settings from the hub"
            if config is None
            else f"with the settings in {config}"
        )
        raise ConfigError(
            f"{path}: cannot be loaded {what} ({first_line(error)}); give as config a diffusers "
            "folder of the same kind; only its settings and its tokenizer are read"
        ) from error
    if kind is _SDXL:
        pipeline.scheduler = _with_prediction(pipeline.scheduler, keys)
    return pipeline


def _kind_of_file(path: Path, keys: Collection[str]) -> _Kind:
    if not any(key.startswith(_SDXL_TEXTS) for key in keys):
        return _SD15
    if not any(key.startswith(_SECOND_TEXT) for key in keys):
        raise ConfigError(
            f"{path}: has one text encoder under SDXL's names, as SDXL's refiner; choose an SDXL "
            "base model"
        )
    if any(key.startswith(_EDM) for key in keys):
        raise ConfigError(
            f"{path}: is an SDXL of the EDM kind, such as Playground 2.5; merging is not tested on "
            "it; choose a usual SDXL checkpoint"
        )
    return _SDXL


def _with_prediction(scheduler: Any, keys: Collection[str]) -> Any:
    """Return the scheduler with what a checkpoint's marks say, which diffusers does not read."""
    if _V_PREDICTION not in keys:
        return scheduler
    return type(scheduler).from_config(
        scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=_ZERO_TERMINAL_SNR in keys,
    )


def _variant(folder: Path) -> str | None:
    """Return ``fp16`` where a folder holds only such weights."""
    weights = {path.name for path in folder.glob("unet/*.safetensors")}
    return "fp16" if weights and all(".fp16." in name for name in weights) else None


def _vae_scale_factor(source: str) -> int:
    if Path(source).is_dir() and not (Path(source) / "vae").is_dir():
        logger.info("%s has no vae; a latent is taken for 8 x 8 pixels", source)
        return _USUAL_FACTOR
    from diffusers import AutoencoderKL

    channels = AutoencoderKL.load_config(source, subfolder="vae")["block_out_channels"]
    return 1 << (len(channels) - 1)
