"""Keys of LoRA files for the modules of ComfyUI's models, in every spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from ..iteris_core.files.diffusers_names import diffusers_name
from ..iteris_core.files.families import Family
from ..iteris_core.files.model_keys import ModelKeys, WeightPart
from ..iteris_core.layers import layer_shapes

UNET_PREFIX = "diffusion_model."
# The host's name of a text encoder -> diffusers' name.
_TOWERS = {"clip_l.transformer.": "text_encoder.", "clip_g.transformer.": "text_encoder_2."}

# How trainers begin the names of a transformer's modules.
_WITH_POINTS = (
    "",
    "transformer.",
    UNET_PREFIX,
    "base_model.model.",
    "base_model.model.transformer.",
)
_WITH_UNDERSCORES = ("lora_unet_", "lora_transformer_", "lycoris_")

# A part of a weight as the host has it in its tables and patches: (dimension, start, length).
Offset = tuple[int, int, int]


def is_text(path: str) -> bool:
    """Whether a module or parameter is a text encoder's."""
    return not path.startswith(UNET_PREFIX)


@dataclass(frozen=True)
class HostWeight:
    """What a base of keys changes, as the host's loader has it in its table.

    Args:
        offset: The part of the weight; None: all of it.
        function: Function that the host applies to a change; None: none.
    """

    weight: str
    offset: Offset | None = None
    function: Callable[..., Any] | None = None

    @property
    def module(self) -> str:
        """Path of the module that has the weight."""
        return self.weight.removesuffix(".weight")

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole weight, in the model's own order."""
        return self.offset is None and self.function is None

    def part_of(self, d_out: int) -> WeightPart | None:
        """Return the part of a weight of so many rows; None if it is not made of its rows."""
        dimension, start, length = self.offset or (0, 0, d_out)
        if dimension or start + length > d_out:
            return None
        return WeightPart(self.module, start, length, self.function)

    @classmethod
    def of(cls, entry: Any) -> HostWeight:
        """Return an entry of the host's table: a name, or (name, offset[, function])."""
        return cls(entry) if isinstance(entry, str) else cls(*entry)


@dataclass(frozen=True)
class HostKeys(ModelKeys):
    """Names and sizes of a model's modules, with their names in the host's loader.

    Args:
        host_keys: Table of the host's LoRA loader: base of a key -> `HostWeight` in the host's own
            form.
    """

    host_keys: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def table(self) -> dict[str, Any]:
        """The host's table, after entries for the spellings that it does not know."""
        wholes = {base: f"{path}.weight" for base, path in self.module_of_base.items()}
        parts = {}
        for base, part in self.part_of_base.items():
            rows = (
                None if part.length == self.shapes[part.path][0] else (0, part.start, part.length)
            )
            function = () if part.reorder is None else (part.reorder,)
            parts[base] = (f"{part.path}.weight", rows, *function)
        return {**wholes, **parts, **self.host_keys}


def model_keys(
    family: Family,
    modules: Mapping[str, nn.Module],
    host_keys: Mapping[str, Any],
    diffusers_names: Mapping[str, str],
    prediction_type: str = "epsilon",
) -> HostKeys:
    """Return the keys of a model: in the host's spellings, and in spellings of PEFT and diffusers
    that it does not know.

    Args:
        modules: Module path -> module, of the diffusion model and the text encoders.
        host_keys: Table of the host's LoRA loader: base of a key -> name of a weight, or (name,
            (dimension, start, length) or None[, function]) for a part of it.
        diffusers_names: Name of a UNet parameter in diffusers -> its name in the host; empty for
            transformers, whose names are in the host's table.
        prediction_type: See `ModelKeys`.
    """
    entries = {
        base: weight
        for base, weight in ((base, HostWeight.of(entry)) for base, entry in host_keys.items())
        if weight.weight.endswith(".weight")
    }
    of_diffusers = {
        name.removesuffix(".weight"): HostWeight(UNET_PREFIX + weight)
        for name, weight in diffusers_names.items()
        if name.endswith(".weight")
    }
    shapes = layer_shapes(modules)
    spelled = _spelled(entries, of_diffusers, family, shapes)
    of_text, ambiguous = _of_text(modules)
    for base, path in of_text.items():
        spelled.setdefault(base, HostWeight(f"{path}.weight"))
    saved_as = _saved_as(family, entries, of_diffusers)
    module_of_base = {}
    part_of_base = {}
    for base, weight in spelled.items():
        path = weight.module
        if path not in modules or path not in saved_as:
            continue
        if weight.is_whole:
            module_of_base[base] = path
        elif path in shapes and (part := weight.part_of(shapes[path][0])) is not None:
            part_of_base[base] = part
    return HostKeys.of(
        family,
        modules,
        module_of_base,
        saved_as,
        part_of_base=part_of_base,
        ambiguous=ambiguous,
        prediction_type=prediction_type,
        host_keys=host_keys,
    )


def _spelled(
    entries: Mapping[str, HostWeight],
    of_diffusers: Mapping[str, HostWeight],
    family: Family,
    shapes: Mapping[str, tuple[int, int]],
) -> dict[str, HostWeight]:
    """Return base -> weight of the diffusion model, in the host's spellings and all others."""
    spelled = dict(entries)
    for name, weight in of_diffusers.items():
        for prefix in ("", "unet.", "base_model.model.", "base_model.model.unet."):
            spelled[prefix + name] = weight
    if not of_diffusers:
        for base, weight in _of_transformer(entries, family, shapes):
            spelled.setdefault(base, weight)
    return spelled


def _of_transformer(
    entries: Mapping[str, HostWeight], family: Family, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, HostWeight]]:
    """Yield the spellings of trainers for what the host reads under a transformer's names:
    diffusers' names first, since a name can be in both.

    With points they begin as diffusers, PEFT and ComfyUI write them; with underscores as trainers
    of kohya's style, OneTrainer and LyCORIS do.
    """
    of_diffusers = {
        f"transformer.{name}": weight
        for base, weight in entries.items()
        if base.startswith(UNET_PREFIX)
        and (name := diffusers_name(family, base.removeprefix(UNET_PREFIX))) is not None
    }
    entries = {**of_diffusers, **entries, **_numbered_parts(entries, shapes)}
    named = [
        (base.removeprefix(own), weight)
        for own in ("transformer.", UNET_PREFIX)
        for base, weight in entries.items()
        if base.startswith(own)
    ]
    for prefix in _WITH_POINTS:
        for name, weight in named:
            yield prefix + name, weight
    flat: dict[str, set[HostWeight]] = {}
    for name, weight in named:
        flat.setdefault(name.replace(".", "_"), set()).add(weight)
    for prefix in _WITH_UNDERSCORES:
        for name, weights in flat.items():
            if len(weights) == 1:  # else two names look the same, and nobody can tell them apart
                yield prefix + name, next(iter(weights))


def _numbered_parts(
    entries: Mapping[str, HostWeight], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, HostWeight]:
    """Return OneTrainer's names (OMI) of the parts of fused weights: the weight's own name and the
    number of the part, such as ``img_attn.qkv.0``.
    """
    parts: dict[str, set[HostWeight]] = {}
    for weight in entries.values():
        if weight.offset is not None and weight.function is None and weight.offset[0] == 0:
            parts.setdefault(weight.module, set()).add(weight)
    found: dict[str, HostWeight] = {}
    for path, of_weight in parts.items():
        end = 0
        numbered = []
        for weight in sorted(of_weight, key=lambda weight: (weight.offset or (0, 0, 0))[1:]):
            _, start, length = weight.offset or (0, 0, 0)
            if start == end:  # the smaller one, where two begin here
                numbered.append(weight)
                end += length
        if path in shapes and end == shapes[path][0]:
            name = path.removeprefix(UNET_PREFIX)
            found |= {f"transformer.{name}.{i}": weight for i, weight in enumerate(numbered)}
    return found


def _of_text(modules: Iterable[str]) -> tuple[dict[str, str], frozenset[str]]:
    """Return base -> path in the spellings of diffusers and PEFT for CLIP, and the bases that do
    not say which of two text encoders they mean.
    """
    paths = list(modules)
    towers = [tower for tower in _TOWERS if any(path.startswith(tower) for path in paths)]
    bases: dict[str, str] = {}
    unclear: set[str] = set()
    for tower in towers:
        of_tower = _TOWERS[tower] if len(towers) > 1 else "text_encoder."
        for path in paths:
            if not path.startswith(tower):
                continue
            name = path.removeprefix(tower)
            short = name.removeprefix("text_model.")  # transformers 5 has no such level
            for prefix in (of_tower, f"base_model.model.{of_tower}"):
                bases |= {prefix + name: path, prefix + short: path}
            bare = (name, f"base_model.model.{name}", f"base_model.model.{short}")
            if len(towers) > 1:
                unclear.update(bare)
            else:
                bases |= dict.fromkeys(bare, path)
    return bases, frozenset(unclear)


def _saved_as(
    family: Family,
    entries: Mapping[str, HostWeight],
    of_diffusers: Mapping[str, HostWeight],
) -> dict[str, str]:
    """Return module path -> the base of its keys in saved files."""
    saved_as: dict[str, str] = {}
    starts = (*family.text_bases, "text_encoders.")
    for start in (UNET_PREFIX if family.saved_as == "comfy" else "lora_unet_", *starts):
        for base, weight in entries.items():
            if weight.is_whole and base.startswith(start):
                saved_as.setdefault(weight.module, base)
    if family.names_of_diffusers:
        saved_as |= {
            weight.module: "lora_unet_" + name.replace(".", "_")
            for name, weight in of_diffusers.items()
        }
    return saved_as
