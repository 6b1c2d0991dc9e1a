"""LoRA files of Stable Diffusion in the format and the module names of `diffusers`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..errors import AdapterError
from .families import Family
from .groups import key_of, split_key
from .limits import json_value
from .model_keys import ModelKeys
from .peft import Scales
from .roles import ALPHA, DOWN, told_of

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<level>\d+)\.(?P<kind>[a-z]+)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_IN_MIDDLE = re.compile(r"mid_block\.(?P<kind>[a-z]+)\.(?P<index>\d+)\.(?P<rest>.+)")


def ldm_names(paths: Iterable[str]) -> dict[str, str]:
    """Return diffusers' path of a UNet module -> its original path. Paths without a counterpart are
    omitted.

    Args:
        paths: diffusers' paths of all modules of the UNet; they tell how many blocks it has.
    """
    paths = list(paths)
    in_blocks = [match for match in map(_IN_BLOCK.fullmatch, paths) if match]
    resnets = [int(m["index"]) for m in in_blocks if (m["side"], m["kind"]) == ("down", "resnets")]
    layers = max(resnets, default=-1) + 1  # resnets of a down block; an up block has one more
    attending = {m["level"] for m in in_blocks if (m["side"], m["kind"]) == ("up", "attentions")}
    names = {path: name for path, name in _ENDS.items() if path in paths}
    for match in in_blocks:
        level = int(match["level"])
        index = int(match["index"])
        if match["kind"] == "downsamplers":
            names[match[0]] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        elif match["kind"] == "upsamplers":
            position = 2 if match["level"] in attending else 1
            names[match[0]] = (
                f"output_blocks.{level * (layers + 1) + layers}.{position}.{match['rest']}"
            )
        else:
            number = level * (layers + 1) + index + (match["side"] == "down")
            block = "input_blocks" if match["side"] == "down" else "output_blocks"
            names[match[0]] = f"{block}.{number}.{_inside(match)}"
    for match in filter(None, map(_IN_MIDDLE.fullmatch, paths)):
        position = 1 if match["kind"] == "attentions" else 2 * int(match["index"])
        names[match[0]] = f"middle_block.{position}.{_inside(match).partition('.')[2]}"
    return names


def _inside(match: re.Match[str]) -> str:
    """Return the rest of an original path after its block: the place in the block, and the module
    there.
    """
    if match["kind"] == "attentions":
        return f"1.{match['rest']}"
    name, dot, more = match["rest"].partition(".")
    return f"0.{_RESNET.get(name, name)}{dot}{more}"


UNET_PREFIX = "unet."
_UNET = "unet"
TEXT_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # -> ComfyUI's name
_PARTS = (_UNET, *TEXT_ENCODERS)
_PREDICTIONS = {"v_prediction": "v"}  # what diffusers names otherwise than ModelSpec
_SETTINGS_KEY = "lora_adapter_metadata"  # in a file's metadata: PEFT's settings of each part


def model_keys(modules: Mapping[str, nn.Module], family: Family, prediction_type: str) -> ModelKeys:
    """Return the keys of a model.

    Args:
        modules: Module path -> module. Paths begin with ``unet.``, ``text_encoder.`` or
            ``text_encoder_2.``; in a text encoder they go on with ``text_model.`` or are
            ``text_projection``.
        prediction_type: What the model predicts, as diffusers names it.
    """
    original = ldm_names(
        path.removeprefix(UNET_PREFIX) for path in modules if path.startswith(UNET_PREFIX)
    )
    parts = {path: path.partition(".")[0] for path in modules}
    encoders = [part for part in TEXT_ENCODERS if part in parts.values()]
    starts = dict.fromkeys(encoders, family.text_bases)
    if len(encoders) > 1:  # each has its own
        starts = {part: (start,) for part, start in zip(encoders, family.text_bases, strict=False)}
    bases: dict[str, str] = {}
    ambiguous: set[str] = set()
    saved_as = {}
    for path, part in parts.items():
        name = path.removeprefix(f"{part}.")
        if part == _UNET:
            own = name if family.names_of_diffusers else original.get(name, name)
            saved_as[path] = "lora_unet_" + own.replace(".", "_")
            spellings = _unet_spellings(name, original.get(name))
        else:
            saved_as[path] = starts[part][0] + name.replace(".", "_")
            spellings = _text_spellings(part, name, starts[part])
            olds = _old_names(name)
            bare = [prefix + old for prefix in ("", "base_model.model.") for old in olds]
            if len(encoders) > 1:  # they do not say which
                ambiguous.update(bare)
            else:
                bases |= dict.fromkeys(bare, path)
        bases |= dict.fromkeys(spellings, path)
    return ModelKeys.of(
        family,
        modules,
        bases,
        saved_as,
        ambiguous=frozenset(ambiguous),
        prediction_type=_PREDICTIONS.get(prediction_type, prediction_type),
    )


def _unet_spellings(name: str, original: str | None) -> Iterator[str]:
    yield "lora_unet_" + name.replace(".", "_")
    for prefix in ("", "unet.", "base_model.model.", "base_model.model.unet."):
        yield prefix + name
        if ".to_" in name:  # the attention processors of diffusers before 0.22
            yield prefix + name.replace(".to_", ".processor.to_").removesuffix(".0")
    if original is not None:
        yield "lora_unet_" + original.replace(".", "_")
        yield from ("diffusion_model." + original, "model.diffusion_model." + original)


def _text_spellings(part: str, name: str, starts: Iterable[str]) -> Iterator[str]:
    """Yield the bases that name a module and its text encoder; in kohya's style they begin with one
    of `starts`.
    """
    for start in starts:
        yield start + name.replace(".", "_")
    for prefix in ("", "text_encoders."):  # ComfyUI's
        yield f"{prefix}{TEXT_ENCODERS[part]}.transformer.{name}"
    for prefix in (f"{part}.", f"base_model.model.{part}."):
        yield from (prefix + old for old in _old_names(name))


def _old_names(name: str) -> set[str]:
    """Return a module's name, those in old versions of diffusers, and those in transformers 5."""
    names = {
        name,
        name.replace("q_proj", "to_q").replace("k_proj", "to_k").replace("v_proj", "to_v"),
        name.replace("out_proj", "to_out"),
    }
    return names | {name.removeprefix("text_model.") for name in names}


def with_alphas(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors of a file, with the alphas that newer diffusers keep in the metadata.

    Raises:
        AdapterError: The settings cannot be read, or do not go with the factors.
    """
    try:
        settings = dict(json_value(metadata.get(_SETTINGS_KEY, "{}")))
    except (ValueError, TypeError) as error:
        raise AdapterError(
            f"{name}: {_SETTINGS_KEY} of its metadata cannot be read ({error}); download it again"
        ) from error
    scales: dict[str, Scales] = {}
    for part in _PARTS:
        start = f"{part}."
        own = {k.removeprefix(start): value for k, value in settings.items() if k.startswith(start)}
        with told_of(f"{name}: its metadata"):
            scales |= {part: Scales.of(own)} if own else {}
    alphas = {}
    for key, tensor in tensors.items():
        base, role = split_key(key) or (key, "")
        part, _, path = base.partition(".")
        if role != DOWN or part not in scales or not tensor.ndim:
            continue
        rank = tensor.shape[0]
        with told_of(f"{name}: {base!r}"):
            alphas[key_of(base, ALPHA)] = torch.tensor(scales[part].at(path, rank) * rank)
    return {**tensors, **alphas}


def misread_by_diffusers(adapter: Adapter) -> bool:
    """Whether `diffusers` would misread an adapter's file in kohya's style.

    Without keys of ``out_proj``, it mistakes a text encoder's keys for another format and then
    omits attention layers.
    """
    paths = {
        part: [path for path in adapter.deltas if path.startswith(f"{part}.")]
        for part in TEXT_ENCODERS
    }
    return any(
        inside and not any(path.endswith(".out_proj") for path in inside)
        for inside in paths.values()
    )
