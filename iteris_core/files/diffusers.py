"""LoRA files for Stable Diffusion outside of ComfyUI: names of `diffusers`' modules in every
spelling, and its own format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..errors import AdapterError
from . import peft
from .ldm_names import ldm_names
from .model_keys import layer_kernels, layer_shapes, vector_sizes

UNET_PREFIX = "unet."
TEXT_PREFIX = "text_encoder.text_model."
_PARTS = ("unet", "text_encoder")
_SETTINGS_KEY = "lora_adapter_metadata"  # of a file's metadata; PEFT's settings of each part


@dataclass(frozen=True)
class ModelKeys:
    """Names and sizes of one model's modules.

    Args:
        module_of_base: Key base -> module path, in every spelling.
        base_of_module: Module path -> the key base that kohya's trainer gives it, and every program
            knows.
        shapes: Module path -> (d_out, d_in), of layers that can be merged.
        kernels: Module path -> (height, width), of convolutions.
        vector_sizes: Path of a bias or a norm's weight -> its size.
    """

    module_of_base: Mapping[str, str]
    base_of_module: Mapping[str, str]
    shapes: Mapping[str, tuple[int, int]]
    kernels: Mapping[str, tuple[int, int]]
    vector_sizes: Mapping[str, int]


def model_keys(modules: Mapping[str, nn.Module]) -> ModelKeys:
    """Return the tables of a model.

    Args:
        modules: Module path -> module; paths begin with `UNET_PREFIX` or `TEXT_PREFIX`.
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
    return ModelKeys(
        module_of_base=bases,
        base_of_module={path: _kohya_base(path) for path in modules},
        shapes=layer_shapes(modules),
        kernels=layer_kernels(modules),
        vector_sizes=vector_sizes(modules),
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
    """Return a file's tensors with the alphas that newer versions of diffusers keep in its
    metadata, as keys of their own.

    Raises:
        AdapterError: Settings that cannot be read, or that the factors do not go with.
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
            if key.startswith(f"{part}.") and key.endswith(".lora_A.weight"):
                base = key.removesuffix(".lora_A.weight")
                rank = tensor.shape[0]
                scale = peft.scale_at(name, own, base.removeprefix(f"{part}."), rank)
                alphas[f"{base}.alpha"] = torch.tensor(scale * rank)
    return {**tensors, **alphas}


def to_tensors(adapter: Adapter, kernels: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Return the adapter as ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``, as diffusers
    saves LoRAs.

    Args:
        adapter: In the precision in which it is to be saved.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.

    Raises:
        AdapterError: It changes biases or norms, for which the format has no place.
    """
    if adapter.vectors:
        raise AdapterError(
            f"{adapter.name}: it changes biases or norms ({min(adapter.vectors)!r} among "
            f"{len(adapter.vectors)}), which diffusers' format cannot hold; save it in the style of "
            "kohya"
        )
    return {
        key.removeprefix(peft.PREFIX): tensor
        for key, tensor in peft.to_tensors(adapter, kernels).items()
    }


def metadata_of(adapter: Adapter) -> dict[str, str]:
    """Return the metadata with which diffusers gives layers of different ranks their alphas; none
    where ranks are equal.
    """
    settings = {}
    for part in _PARTS:
        inside = adapter.select(lambda path, part=part: path.startswith(f"{part}."))
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
    return {"modelspec.title": adapter.name} | (
        {_SETTINGS_KEY: json.dumps(settings)} if settings else {}
    )


def kohya_warning(adapter: Adapter) -> str | None:
    """Return what `diffusers` would make of the adapter in a file in kohya's style, where that is
    not what is meant.

    It takes text encoder keys for another format if there are none of ``out_proj``, and then leaves
    attention layers out.
    """
    text = [path for path in adapter.deltas if path.startswith(TEXT_PREFIX)]
    if not text or any(path.endswith(".out_proj") for path in text):
        return None
    return (
        "the text encoder part has no out_proj, so that diffusers misreads it in a file in kohya's "
        "style (ComfyUI and A1111 do not); for diffusers, save it in the style of diffusers"
    )
