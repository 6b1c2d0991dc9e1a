"""Block weights: how strongly a LoRA's layers count, by block of the model, and layers left out.

Three spellings are known, as the webui's extension of block weights and its kin have them:

    1,0,0,0.5,...        a number for each block of a family, the text encoders first
    OUTALL               a list that has a name
    IN01:0.5, MID:0      blocks by name; the others stay as they are

Blocks go by the names of `layers.block_of`: IN, MID and OUT in a UNet, D (``double``), S
(``single``) and B (``blocks``) in a transformer. ``BASE`` is all that is in none of them: the text
encoders, and layers such as those that read the time. ``IN`` is every block of this name, ``D0-18``
several, ``ALL`` everything. Where entries name a block twice, the last one counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from ..adapters import Adapter
from ..errors import ConfigError
from ..layers import block_of
from ..settings import MOST_LETTERS, shown
from .families import Family
from .limits import KEY_LETTERS

MOST_WEIGHT = 100  # of a block, as of strengths
MOST_PATTERNS = 50  # of layers left out, for one LoRA
_BASE = "BASE"
_ALL = "ALL"
# Kinds of blocks in a diffusion model. All others are text encoders' and the like.
_KINDS = ("IN", "MID", "OUT", "D", "S", "B", "NR", "CR")
_OF_TEXT = ("TE", "TG")  # which may also be named
_WORDS = {
    "M": "MID",
    "MIDDLE": "MID",
    "DOUBLE": "D",
    "SINGLE": "S",
    "BLOCK": "B",
    "BLOCKS": "B",
}
_ENTRY = re.compile(r"([A-Za-z]+)[ _]*(?:(\d{1,4})(?:\s*-\s*[A-Za-z]*(\d{1,4}))?)?\s*[:=]\s*(\S+)")
_LETTER = re.compile(r"[A-Za-z]([+-]?[\d.]+)?")
_SHOWN = 12  # blocks in an error
_LEAST = 12  # numbers in a list
_LONGEST = 60  # characters of an entry


def _numbered(kind: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{kind}{number:02}" for number in numbers)


_FLUX = (*_numbered("D", range(19)), *_numbered("S", range(38)))
# Family -> the blocks of each list of numbers.
_LISTS: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "SD1.5": (
            (
                _BASE,
                *_numbered("IN", (1, 2, 4, 5, 7, 8)),
                "MID",
                *_numbered("OUT", range(3, 12)),
            ),
            (_BASE, *_numbered("IN", range(12)), "MID", *_numbered("OUT", range(12))),
        ),
        "SDXL": (
            (_BASE, *_numbered("IN", (4, 5, 7, 8)), "MID", *_numbered("OUT", range(6))),
            (_BASE, *_numbered("IN", range(9)), "MID", *_numbered("OUT", range(9))),
        ),
        "Flux.1": (_FLUX, (_BASE, *_FLUX)),
        "Chroma": (_FLUX, (_BASE, *_FLUX)),
    }
)
# The lists that have a name, by the blocks that stay; those of a UNet for UNets of any size.
_PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "NONE": "ALL:0",
        "ALL": "ALL:1",
        "ALL0.5": "ALL:0.5",
        "INS": "ALL:0,BASE:1,IN0-4:1",
        "IND": "ALL:0,BASE:1,IN5-11:1",
        "INALL": "ALL:0,BASE:1,IN:1",
        "MIDD": "ALL:0,BASE:1,IN5-11:1,MID:1,OUT0-6:1",
        "OUTD": "ALL:0,BASE:1,OUT0-6:1",
        "OUTS": "ALL:0,BASE:1,OUT7-11:1",
        "OUTALL": "ALL:0,BASE:1,OUT:1",
    }
)
_ANY_MODEL = ("NONE", "ALL", "ALL0.5")
_HAVE_UNET = ("SD1.5", "SDXL")


# A block: its name without the number, and the number.
_Place = tuple[str, int]


@dataclass(frozen=True)
class _Entry:
    """A weight of some blocks.

    Args:
        text: What was written.
        kind: The name of the blocks without numbers, ``BASE`` or ``ALL``.
        first: Number of the first block.
        last: Number of the last one; None: all that there are.
        weight: Their weight.
    """

    text: str
    kind: str
    first: int
    last: int | None
    weight: float

    def fits(self, place: _Place) -> bool:
        """Whether it is for a block, or for what is in none."""
        kind, number = place
        if self.kind == _BASE:
            return kind not in _KINDS
        if self.kind not in (_ALL, kind):
            return False
        return self.first <= number and (self.last is None or number <= self.last)


@dataclass(frozen=True)
class LayerWeights:
    """How strongly each layer of one LoRA counts.

    Args:
        name: Name of the LoRA, for errors.
        entries: Weights of blocks; of several that fit, the last counts.
        is_named: Whether each entry was written by a name, so that it must fit a layer.
        is_whole: Whether there is a number for every layer, so that one must fit each.
        without: Patterns of the paths of layers that are left out.
        own_path: Module path -> the same in the model's original code, which entries and patterns
            mean.
    """

    name: str
    entries: tuple[_Entry, ...]
    is_named: bool
    is_whole: bool
    without: tuple[str, ...]
    own_path: Callable[[str], str]

    def of(self, path: str) -> float:
        """Return the weight of a layer.

        Raises:
            ConfigError: A list of numbers has none for it.
        """
        own = self.own_path(path)
        if any(fnmatchcase(own, pattern) for pattern in self.without):
            return 0.0
        place = _place(own)
        entry = next((entry for entry in reversed(self.entries) if entry.fits(place)), None)
        if entry is not None:
            return entry.weight
        if self.is_whole:
            raise ConfigError(
                f"LoRA {shown(self.name)}: its block weights are {len(self.entries)} numbers, none "
                f"of which is for {block_of(own)}, where it changes {own!r}. Programs differ in "
                "what they make of that. Write the longer list of numbers, or name the blocks: "
                "IN01:0.5, MID:0"
            )
        return 1.0

    def applied_to(self, adapter: Adapter) -> Adapter:
        """Return an adapter with its deltas and vectors scaled; those of weight 0 are left out.

        Raises:
            ConfigError: An entry or a pattern fits no layer of the adapter; shows which it has.
        """
        modules = dict.fromkeys([*adapter.deltas, *map(_module, adapter.vectors)])
        if not self.entries and not self.without:
            return adapter
        self._check_used([self.own_path(path) for path in modules])
        weights = {path: self.of(path) for path in modules}
        kept = adapter.select(lambda path: bool(weights.get(path, weights.get(_module(path)))))
        return replace(
            kept,
            deltas={path: delta.scaled(weights[path]) for path, delta in kept.deltas.items()},
            vectors={
                path: vector * weights[_module(path)] for path, vector in kept.vectors.items()
            },
        )

    def _check_used(self, paths: Sequence[str]) -> None:
        places = set(map(_place, paths))
        unused = [entry for entry in self.entries if not any(map(entry.fits, places))]
        if unused and self.is_named:
            raise ConfigError(
                f"LoRA {shown(self.name)}: its block weights have {shown(unused[0].text)}, and it "
                f"changes no such block. It has {_some(map(_block, paths))}"
            )
        for pattern in self.without:
            if not any(fnmatchcase(path, pattern) for path in paths):
                example = f", such as {paths[0]!r}" if paths else ""
                raise ConfigError(
                    f"LoRA {shown(self.name)}: no layer that it changes has a path like "
                    f"{shown(pattern)}, which is to be left out. A pattern fits the whole path of "
                    f"a layer{example}; * fits any text, as in *attn2*"
                )


def layer_weights(
    name: str,
    blocks: str,
    without: Sequence[str],
    family: Family,
    own_path: Callable[[str], str] = lambda path: path,
) -> LayerWeights:
    """Return the weights of a LoRA's layers.

    Args:
        name: Name of the LoRA, for errors.
        blocks: Weights of blocks in one of the known spellings; empty: 1.
        without: Patterns of the paths of layers that are left out, as a shell has them.
        family: Family of the model, which decides what numbers mean.
        own_path: See `LayerWeights`.

    Raises:
        ConfigError: See `check_spelling`; or a list that is not for this family.
    """
    check_spelling(name, blocks, without)
    text = _plain(blocks)
    numbers = _numbers(name, text)
    is_named = False
    if not text:
        entries: tuple[_Entry, ...] = ()
    elif text.upper() in _PRESETS:
        if text.upper() not in _ANY_MODEL and family.name not in _HAVE_UNET:
            raise ConfigError(
                f"LoRA {shown(name)}: the block weights {shown(text)} are for a UNet, and "
                f"{family.name} has none. Name its blocks, such as {_example(family)}"
            )
        entries = _entries(name, _PRESETS[text.upper()])
    elif numbers:
        lists = {len(names): names for names in _LISTS.get(family.name, ())}
        if len(numbers) not in lists:
            known = " or ".join(map(str, lists)) or "no list of numbers"
            raise ConfigError(
                f"LoRA {shown(name)}: its block weights are {len(numbers)} numbers; for "
                f"{family.name} there can be {known}. Write as many, or name the blocks: "
                f"{_example(family)}"
            )
        pairs = zip(lists[len(numbers)], numbers, strict=True)
        entries = _entries(name, ",".join(f"{block}:{number}" for block, number in pairs))
    else:
        entries = _entries(name, text)
        is_named = True
    return LayerWeights(name, entries, is_named, bool(numbers), tuple(without), own_path)


def check_spelling(name: str, blocks: str, without: Sequence[str]) -> None:
    """Refuse block weights that can be read for no model, and patterns that are not paths.

    Raises:
        ConfigError: Says what stands there, and what may.
    """
    if len(blocks) > MOST_LETTERS:
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights have {len(blocks)} characters; there can be "
            f"{MOST_LETTERS}"
        )
    text = _plain(blocks)
    numbers = _numbers(name, text)
    lengths = sorted({len(names) for lists in _LISTS.values() for names in lists})
    if numbers and len(numbers) not in lengths:
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights are {len(numbers)} numbers; there can be 17 or "
            "26 for SD1.5, 12 or 20 for SDXL, 57 or 58 for Flux.1. Write as many, or name the "
            "blocks: IN01:0.5, MID:0"
        )
    if not numbers and text and text.upper() not in _PRESETS:
        _entries(name, text)
    if len(without) > MOST_PATTERNS:
        raise ConfigError(
            f"LoRA {shown(name)}: {len(without)} patterns of layers to leave out; there can be "
            f"{MOST_PATTERNS}. Join some of them with *"
        )
    odd = next((text for text in without if not 0 < len(text.strip()) <= KEY_LETTERS), None)
    if odd is not None:
        raise ConfigError(
            f"LoRA {shown(name)}: a pattern of layers to leave out is {shown(odd)}; it must be 1 "
            f"to {KEY_LETTERS} characters, such as *attn2*"
        )


def _plain(blocks: str) -> str:
    """Return a spelling without what other programs write before it."""
    text = blocks.strip().rstrip(",;").strip()
    text = re.sub(r"^(lbw|blocks?)\s*=\s*", "", text, flags=re.IGNORECASE)
    if text.upper().removeprefix("SD-") in _PRESETS:
        return text.upper().removeprefix("SD-")
    _, _, numbers = text.partition(":")  # after the name of a list
    return numbers if numbers.count(",") >= _LEAST - 1 and ":" not in numbers else text


def _numbers(name: str, text: str) -> list[float]:
    """Return the numbers of a list; none if a text is not a list of numbers.

    Raises:
        ConfigError: A list with a letter, for which other programs draw a number.
    """
    parts = [part.strip() for part in text.split(",")] if "," in text else []
    letter = next((part for part in parts if _LETTER.fullmatch(part)), None)
    if letter is not None:
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights have {shown(letter)}, for which other programs "
            "draw or look up a number. Write the number itself"
        )
    if any(":" in part or "=" in part for part in parts):
        return []
    return [_weight(name, part) for part in parts]


def _entries(name: str, text: str) -> tuple[_Entry, ...]:
    return tuple(_entry(name, part.strip()) for part in re.split(r"[,;\n]", text) if part.strip())


def _entry(name: str, text: str) -> _Entry:
    found = _ENTRY.fullmatch(text) if len(text) <= _LONGEST else None
    kind = _WORDS.get(found[1].upper(), found[1].upper()) if found else ""
    if found is None or kind not in (_ALL, _BASE, *_KINDS, *_OF_TEXT):
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights have {shown(text)}; write BLOCK:WEIGHT with a "
            f"block such as IN01, MID, OUT3-5, double 0-18, single, blocks 0-9, BASE (the text "
            f"encoders) or ALL; or as many numbers as the model has blocks; or one of "
            f"{', '.join(_PRESETS)}"
        )
    weight = _weight(name, found[4])
    if found[2] is None or kind in (_ALL, _BASE, "MID"):
        return _Entry(text, kind, 0, None, weight)
    first, last = sorted((int(found[2]), int(found[3] or found[2])))
    return _Entry(text, kind, first, last, weight)


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= MOST_WEIGHT:
        raise ConfigError(
            f"LoRA {shown(name)}: a block weight is {shown(text)}; it must be a number from "
            f"{-MOST_WEIGHT} to {MOST_WEIGHT}"
        )
    return weight


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _place(path: str) -> _Place:
    block = block_of(path)
    kind = block.rstrip("0123456789")
    return kind, int(block[len(kind) :] or 0)


def _block(path: str) -> str:
    return block_of(path) if _place(path)[0] in (*_KINDS, *_OF_TEXT) else _BASE


def _some(blocks: Iterable[str]) -> str:
    names = list(dict.fromkeys(blocks))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}" if names else "none at all"


def _example(family: Family) -> str:
    if family.name in _HAVE_UNET:
        return "IN01:0.5, MID:0"
    has_streams = family.name in ("Flux.1", "Flux.2", "Chroma", "AuraFlow")
    return "double 0-9:0.5, single:0" if has_streams else "blocks 0-9:0.5"
