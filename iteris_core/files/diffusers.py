"""LoRA files of Stable Diffusion in the format and the module names of `diffusers`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..errors import AdapterError
from . import peft
from .families import Family
from .groups import key_of, split_key
from .kinds import ALPHA, DOWN
from .ldm_names import ldm_names
from .metadata import base_metadata
from .model_keys import ModelKeys
from .peft_settings import scale_at

UNET_PREFIX = "unet."
TEXT_PREFIX = "text_encoder.text_model."
_PARTS = ("unet", "text_encoder")
_PREDICTIONS = {"v_prediction": "v"}  # what diffusers names otherwise than ModelSpec
_SETTINGS_KEY = "lora_adapter_metadata"  # in a file's metadata: PEFT's settings of each part


def model_keys(modules: Mapping[str, nn.Module], family: Family, prediction_type: str) -> ModelKeys:
    """Return the keys of a model.

    Args:
        modules: Module path -> module. Paths begin with `UNET_PREFIX` or `TEXT_PREFIX`.
        family: The family of the model.
        prediction_type: What the model predicts, as diffusers names it.
    """
    original = ldm_names(
        path.removeprefix(UNET_PREFIX) for path in modules if path.startswith(UNET_PREFIX)
    )
    bases: dict[str, str] = {}
    for path in modules:
        if path.startswith(UNET_PREFIX):
            name = path.removeprefix(UNET_PREFIX)
            spellings = _unet_spellings(name, original.get(name))
        else:
            spellings = _text_spellings(path.removeprefix(TEXT_PREFIX))
        bases |= dict.fromkeys(spellings, path)
    return ModelKeys.of(
        family,
        modules,
        bases,
        {path: _kohya_base(path) for path in modules},
        prediction_type=_PREDICTIONS.get(prediction_type, prediction_type),
    )


def _kohya_base(path: str) -> str:
    if path.startswith(UNET_PREFIX):
        return "lora_unet_" + path.removeprefix(UNET_PREFIX).replace(".", "_")
    return "lora_te_text_model_" + path.removeprefix(TEXT_PREFIX).replace(".", "_")


def _unet_spellings(name: str, original: str | None) -> Iterator[str]:
    yield _kohya_base(UNET_PREFIX + name)
    for prefix in ("", "unet.", "base_model.model.", "base_model.model.unet."):
        yield prefix + name
        if ".to_" in name:  # the attention processors of diffusers before 0.22
            yield prefix + name.replace(".to_", ".processor.to_").removesuffix(".0")
    if original is not None:
        yield "lora_unet_" + original.replace(".", "_")
        yield from ("diffusion_model." + original, "model.diffusion_model." + original)


def _text_spellings(name: str) -> Iterator[str]:
    flat = "text_model_" + name.replace(".", "_")
    yield from ("lora_te_" + flat, "lora_te1_" + flat)
    yield from (
        f"{start}transformer.text_model.{name}" for start in ("clip_l.", "text_encoders.clip_l.")
    )  # ComfyUI's own
    for old in {
        name,
        name.replace("q_proj", "to_q").replace("k_proj", "to_k").replace("v_proj", "to_v"),
        name.replace("out_proj", "to_out"),
    }:
        for prefix in ("", "text_encoder.", "base_model.model.", "base_model.model.text_encoder."):
            yield f"{prefix}text_model.{old}"
            if prefix:  # transformers 5 has no `text_model` level
                yield prefix + old


def with_alphas(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors, with the alphas that newer diffusers keep in the metadata.

    Args:
        name: Name of the file, for errors.
        tensors: Key -> tensor.
        metadata: The file's metadata.

    Raises:
        AdapterError: The settings cannot be read, or do not go with the factors.
    """
    if _SETTINGS_KEY not in metadata:
        return dict(tensors)
    try:
        settings = dict(json.loads(metadata[_SETTINGS_KEY]))
    except (ValueError, TypeError) as error:
        raise AdapterError(
            f"{name}: {_SETTINGS_KEY} of its metadata cannot be read ({error}); download it again"
        ) from error
    alphas = {}
    for part in _PARTS:
        own = {
            key.removeprefix(f"{part}."): value
            for key, value in settings.items()
            if key.startswith(f"{part}.")
        }
        for key, tensor in tensors.items() if own else ():
            base, role = split_key(key) or (key, "")
            if role != DOWN or not base.startswith(f"{part}."):
                continue
            rank = tensor.shape[0]
            try:
                scale = scale_at(own, base.removeprefix(f"{part}."), rank)
            except AdapterError as error:
                raise AdapterError(f"{name}: {base!r} {error}") from error
            alphas[key_of(base, ALPHA)] = torch.tensor(scale * rank)
    return {**tensors, **alphas}


def check_vectors(adapter: Adapter) -> None:
    """Refuse an adapter that diffusers' format cannot hold.

    Raises:
        AdapterError: It changes biases or norms, for which the format has no place.
    """
    if adapter.vectors:
        raise AdapterError(
            f"{adapter.name}: it changes biases or norms ({min(adapter.vectors)!r} among "
            f"{len(adapter.vectors)}), which diffusers' format cannot hold; save in the style of "
            "kohya"
        )


def to_tensors(adapter: Adapter, kernels: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Return an adapter as ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``, as diffusers
    saves LoRAs.

    Args:
        adapter: The adapter, in the precision in which it is to be saved.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.

    Raises:
        AdapterError: See `check_vectors`.
    """
    check_vectors(adapter)
    return {
        key.removeprefix(peft.PREFIX): tensor
        for key, tensor in peft.to_tensors(adapter, kernels).items()
    }


def metadata_of(adapter: Adapter, keys: ModelKeys) -> dict[str, str]:
    """Return the title of an adapter and its base model; where its layers have different ranks,
    also the settings by which diffusers gives them their alphas.
    """
    settings: dict[str, Any] = {}
    for part in _PARTS:
        inside = adapter.select(partial(_is_inside, part))
        if len({delta.rank for delta in inside.deltas.values()}) > 1:
            # paths without `text_model`, which fit the text encoder of every version of
            # transformers
            names = {
                path.removeprefix(TEXT_PREFIX).removeprefix(f"{part}."): d
                for path, d in inside.deltas.items()
            }
            own = peft.settings_of(Adapter(adapter.name, names), "", None)
            settings |= {
                f"{part}.{key}": own[key]
                for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
            }
    return (
        {"modelspec.title": adapter.name}
        | base_metadata(keys.family, keys.prediction_type)
        | ({_SETTINGS_KEY: json.dumps(settings)} if settings else {})
    )


def _is_inside(part: str, path: str) -> bool:
    return path.startswith(f"{part}.")


def kohya_warning(adapter: Adapter) -> str | None:
    """Return a warning about an adapter in kohya's style that `diffusers` would misread; None if it
    reads it well.

    Without keys of ``out_proj``, diffusers mistakes the text encoder's keys for another format and
    then omits attention layers.
    """
    text = [path for path in adapter.deltas if path.startswith(TEXT_PREFIX)]
    if not text or any(path.endswith(".out_proj") for path in text):
        return None
    return (
        "the text encoder part has no out_proj, so that diffusers misreads it in a file in kohya's "
        "style (ComfyUI and A1111 do not); for diffusers, save it in the style of diffusers"
    )
