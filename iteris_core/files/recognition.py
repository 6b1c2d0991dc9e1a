"""Recognition of the family that an adapter or a model is of: by keys, shapes and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .families import FAMILIES, Clue, Family
from .groups import split_key
from .limits import NAME_CHARACTERS, SEARCHED_CHARACTERS, first
from .roles import DOWN, UP

# How the keys of the diffusion model begin in a file; in a file of their own they may lack this.
_OF_DENOISER = ("model.diffusion_model.", "diffusion_model.")
# Families whose models have the same modules, but for a few.
_ALIKE = (
    {"Flux.1", "Chroma"},
    {"Flux.1", "LongCat-Image"},
    {"HunyuanVideo", "HunyuanVideo 1.5"},
    {"Flux.1", "Chroma", "Chroma Radiance"},
    {"Anima", "Cosmos Predict2", "LTX-Video", "PixArt"},  # in diffusers' names
)
_Shapes = Mapping[str, tuple[int, int]]  # base -> (d_out, d_in); 0 where that is unknown

# In what follows, of tensors (key -> tensor) only the shapes are read, and metadata are a file's.


def family_of(tensors: Mapping[str, Tensor]) -> Family | None:
    """Return the family that an adapter's keys and shapes show; None if nothing is distinctive."""
    shapes: dict[str, tuple[int, int]] = {}
    for key, tensor in tensors.items():
        base, role = split_key(key) or (key, "")
        d_out, d_in = shapes.get(base, (0, 0))
        if role == UP and tensor.ndim:
            d_out = tensor.shape[0]
        elif role == DOWN and tensor.ndim > 1:
            d_in = tensor.shape[1]
        shapes[base] = d_out, d_in
    return next(_families_in(shapes), None)


def model_families(tensors: Mapping[str, Tensor]) -> tuple[Family, ...]:
    """Return the families that the keys and shapes of a checkpoint or of a diffusion model show,
    its own first; none if nothing is distinctive. The model has modules by which adapters of the
    later ones are told, too, so that an adapter which seems to be for one of them may fit it.
    """
    start = next((start for start in _OF_DENOISER if any(k.startswith(start) for k in tensors)), "")
    shapes = {
        key.removeprefix(start).removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for key, tensor in tensors.items()
        if key.startswith(start) and key.endswith(".weight") and tensor.ndim > 1
    }
    return tuple(_families_in(shapes))


def _families_in(shapes: _Shapes) -> Iterator[Family]:
    searched = {base: shapes[base] for base in first(shapes, SEARCHED_CHARACTERS)}
    bases = "\n".join(searched)
    for family in FAMILIES.values():
        clues = (*([Clue(family.keys)] if family.keys else ()), *family.clues)
        if any(_is_seen(clue, bases, searched) for clue in clues):
            yield family


def _is_seen(clue: Clue, bases: str, shapes: _Shapes) -> bool:
    """Whether a clue is among the bases, which are also given one a line: one search is quick."""
    pattern = re.compile(clue.base, re.MULTILINE)
    if not pattern.search(bases):
        return False
    return any(pattern.search(base) and clue.fits(*shape) for base, shape in shapes.items())


def family_named(*names: str | None) -> Family | None:
    """Return the family of the first name of a base model that is known."""
    for name in filter(None, names):
        for family in FAMILIES.values():
            if family.named and re.search(family.named, name.lower()):
                return family
    return None


def other_family(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], family: Family
) -> Family | None:
    """Return the family of an adapter if it can be none for models of this family; None if it can,
    or if nothing tells. The metadata count where the tensors do not tell.
    """
    found = family_of(tensors) or family_named(*_names(metadata))
    return None if found is None or found.name in fitting(family) else found


def fitting(family: Family) -> list[str]:
    """Return the names of the families whose adapters may be for models of this family, its own
    first.
    """
    alike = [name for names in _ALIKE if family.name in names for name in sorted(names)]
    return list(dict.fromkeys([family.name, *alike]))


def base_family(found: Family | None, metadata: Mapping[str, str]) -> tuple[Family | None, str]:
    """Return the base model family of an adapter, None if nothing tells; and its name, with the
    statement of the file in brackets.

    Args:
        found: What `family_of` says.
    """
    names = _names(metadata)
    name = next(filter(None, names), None)
    family = found or family_named(*names)
    if family is None:
        return None, name or "unknown"
    return family, f"{family.name} ({name})" if name else family.name


def base_of(settings: Mapping[str, Any]) -> str | None:
    """Return what PEFT's settings call the base model; None if that is not a name."""
    return _name(settings.get("base_model_name_or_path"))


def _names(metadata: Mapping[str, str]) -> list[str | None]:
    fields = ("modelspec.architecture", "ss_base_model_version")
    return [_name(metadata.get(field)) for field in fields]


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= NAME_CHARACTERS else None
