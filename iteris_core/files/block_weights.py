"""Block weights: how strongly a LoRA's layers count, by block of the model, and layers left out.

They are written by name, such as ``IN01:0.5, MID:0``. Blocks go by the names of `blocks.block_of`:
IN, MID and OUT in a UNet, D (``double``), S (``single``) and B (``blocks``) in a transformer.
``BASE`` is all that is in none of them: the text encoders, and layers such as those that read the
time. ``IN`` is every block of this name, ``D0-18`` several, ``ALL`` everything. Of entries that
name a block twice, the last one counts; blocks that are not named stay as they are.

The webui's lists, of a number for each block or under a name such as ``OUTALL``, are put into names
by `_in_names`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..adapters import Adapter
from ..blocks import block_of
from ..errors import ConfigError
from ..settings import shown, some_of
from .families import Family
from .limits import KEY_CHARACTERS

MOST_WEIGHT = 100  # of a block, as of strengths
MOST_PATTERNS = 50  # of layers left out, for one LoRA
_BASE = "BASE"
_ALL = "ALL"
# Kinds of blocks in a diffusion model. All others are text encoders' and the like.
_KINDS = ("IN", "MID", "OUT", "D", "S", "B", "NR", "CR")
_GROUPS = frozenset(("IN", "MID", "OUT", "D", "S", "B"))  # which a family has, see `Family.blocks`
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
_LONGEST = 60  # characters of an entry

# Family -> the blocks of each list of numbers.
_FLUX = ("D0-18 S0-37", "BASE D0-18 S0-37")
_LISTS = {
    "SD1.5": ("BASE IN1-2 IN4-5 IN7-8 MID OUT3-11", "BASE IN0-11 MID OUT0-11"),
    "SDXL": ("BASE IN4-5 IN7-8 MID OUT0-5", "BASE IN0-8 MID OUT0-8"),
    "Flux.1": _FLUX,
    "Chroma": _FLUX,
}
# The lists that have a name, by the blocks that stay; UNets of any size share theirs.
_PRESETS = {
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
_EXAMPLE = "IN01:0.5, MID:0 in a UNet; double 0-9:0.5, single:0 in Flux; blocks 0-9:0.5 in others"

_Place = tuple[str, int]  # a block: its name without the number, and the number


@dataclass(frozen=True)
class _Entry:
    """A weight of some blocks: what was written, the blocks' name without numbers (or ``BASE`` or
    ``ALL``), the first number, the last one (None: all that there are), and the weight.
    """

    text: str
    kind: str
    first: int
    last: int | None
    weight: float

    def fits(self, place: _Place) -> bool:
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
        entries: Weights of blocks; of several that fit, the last counts.
        is_named: Whether the user named the blocks, so that each entry must fit a layer.
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
        if entry is None and self.is_whole:
            raise ConfigError(
                f"LoRA {shown(self.name)}: its block weights are {len(self.entries)} numbers, and "
                f"none is for {block_of(own)}, where it changes {own!r}. Programs differ in what "
                f"they make of that. Write the longer list of numbers, or name the blocks: "
                f"{_EXAMPLE}"
            )
        return 1.0 if entry is None else entry.weight

    def of_layers(self, paths: Iterable[str]) -> dict[str, float]:
        """Return the weights of all layers that a LoRA changes.

        Raises:
            ConfigError: An entry or a pattern fits none of them; shows which there are.
        """
        modules = list(dict.fromkeys(paths))
        self._check_used([self.own_path(path) for path in modules])
        return {path: self.of(path) for path in modules}

    def applied_to(self, adapter: Adapter) -> Adapter:
        """Return an adapter with its deltas and vectors scaled, or left out where the weight is 0.

        Raises:
            ConfigError: An entry or a pattern fits no layer of the adapter; shows which it has.
        """
        if not self.entries and not self.without:
            return adapter
        weights = self.of_layers([*adapter.deltas, *map(_module, adapter.vectors)])
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
                f"changes no such block. It has {some_of(map(_block, paths)) or 'none at all'}"
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
    """Return the weights of a LoRA's layers; for the arguments see `LayerWeights` and `LoraUse`.

    Raises:
        ConfigError: See `check_spelling`; or a list or a block that is not for this family.
    """
    _check_patterns(name, without)
    text, is_list, is_whole = _in_names(name, blocks, family)
    entries = _entries(name, text)
    _check_kinds(name, entries if not is_list else (), family)
    return LayerWeights(name, entries, not is_list, is_whole, tuple(without), own_path)


def _check_kinds(name: str, entries: Iterable[_Entry], family: Family) -> None:
    """Refuse blocks that no model of a family has, where it is known which these have."""
    own = {_WORDS.get(group.upper(), group.upper()) for group in family.blocks}
    foreign = [entry for entry in entries if own and entry.kind in _GROUPS.difference(own)]
    if foreign:
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights have {shown(foreign[0].text)}, and "
            f"{family.name} has no such block. It has {some_of(family.blocks)}"
        )


def check_spelling(name: str, blocks: str, without: Sequence[str]) -> None:
    """Refuse block weights that can be read for no model, and patterns that are not paths.

    Raises:
        ConfigError: Says what was found, and what may be there.
    """
    _entries(name, _in_names(name, blocks, None)[0])
    _check_patterns(name, without)


def _check_patterns(name: str, without: Sequence[str]) -> None:
    if len(without) > MOST_PATTERNS:
        raise ConfigError(
            f"LoRA {shown(name)}: {len(without)} patterns of layers to leave out; at most "
            f"{MOST_PATTERNS} are allowed. Join some of them with *"
        )
    odd = next((text for text in without if not 0 < len(text.strip()) <= KEY_CHARACTERS), None)
    if odd is not None:
        raise ConfigError(
            f"LoRA {shown(name)}: a pattern of layers to leave out is {shown(odd)}; it must be 1 "
            f"to {KEY_CHARACTERS} characters, such as *attn2*"
        )


def _in_names(name: str, blocks: str, family: Family | None) -> tuple[str, bool, bool]:
    """Return block weights by name, whether they were a list of the webui, and whether that was one
    of numbers.
    """
    text = re.sub(r"^(lbw|blocks?)\s*=\s*", "", blocks.strip(" \t\n,;"), flags=re.IGNORECASE)
    preset = text.upper().removeprefix("SD-")
    if preset in _PRESETS:
        is_for_all = preset.startswith(("ALL", "NONE"))
        if family is not None and not family.is_unet and not is_for_all:
            raise ConfigError(
                f"LoRA {shown(name)}: the block weights {shown(text)} are for a UNet, and "
                f"{family.name} has none. Name its blocks, such as {_EXAMPLE}"
            )
        return _PRESETS[preset], True, False
    own_name, _, listed = text.rpartition(":")  # SD-MINE:1,0,0,...
    if "," not in listed or "=" in text or set(own_name) & set(":,;"):
        return text, False, False
    numbers = listed.split(",")
    families = _LISTS if family is None else {family.name: _LISTS.get(family.name, ())}
    lists = {len(found): found for texts in families.values() for found in map(_blocks, texts)}
    if len(numbers) not in lists:
        known = " or ".join(map(str, sorted(lists))) or "no list of numbers"
        whose = f"for {family.name} " if family else ""
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights are {len(numbers)} numbers; {whose}there can "
            f"be {known}. Write as many, or name the blocks: {_EXAMPLE}"
        )
    pairs = zip(lists[len(numbers)], numbers, strict=True)
    return ",".join(f"{block}:{number}" for block, number in pairs), True, True


def _blocks(ranges: str) -> list[str]:
    """Return the blocks of "BASE IN1-2"."""
    found = re.findall(r"([A-Z]+)(?:(\d+)-(\d+))?", ranges)
    return [
        f"{kind}{number}"
        for kind, first, last in found
        for number in (range(int(first), int(last) + 1) if first else [""])
    ]


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
    try:
        weight = float(found[4])
    except ValueError:
        weight = math.nan
    if not abs(weight) <= MOST_WEIGHT:
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights have {shown(text)}; a weight must be a number "
            f"from {-MOST_WEIGHT} to {MOST_WEIGHT}"
        )
    if found[2] is None or kind in (_ALL, _BASE, "MID"):
        return _Entry(text, kind, 0, None, weight)
    first, last = sorted((int(found[2]), int(found[3] or found[2])))
    return _Entry(text, kind, first, last, weight)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _place(path: str) -> _Place:
    block = block_of(path)
    kind = block.rstrip("0123456789")
    return kind, int(block[len(kind) :] or 0)


def _block(path: str) -> str:
    return block_of(path) if _place(path)[0] in (*_KINDS, *_OF_TEXT) else _BASE
