"""Block weights: how strongly a LoRA's layers count, by block of the model, and layers left out.

They are written by name, such as ``IN01:0.5, MID:0``: IN, MID and OUT in a UNet, D (``double``), S
(``single``) and B (``blocks``) in a transformer. ``BASE`` is all that is in none of them: the text
encoders, and layers such as those that read the time. ``IN`` is every block of this name, ``D0-18``
several, ``ALL`` everything. Of entries that name a block twice, the last one counts; blocks that
are not named stay as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..adapters import Adapter
from ..errors import ConfigError
from ..settings import shown, some_of
from .limits import KEY_CHARACTERS

MOST_WEIGHT = 100  # of a block, as of strengths
_BASE = "BASE"
_ALL = "ALL"
_BLOCKS = {  # name -> how the paths of its layers begin, with the number if there are several
    "IN": re.compile(r"diffusion_model\.input_blocks\.(\d+)\."),
    "MID": re.compile(r"diffusion_model\.middle_block\.()"),
    "OUT": re.compile(r"diffusion_model\.output_blocks\.(\d+)\."),
    "D": re.compile(r"diffusion_model\.double_(?:blocks|layers)\.(\d+)\."),
    "S": re.compile(r"diffusion_model\.single_(?:blocks|layers)\.(\d+)\."),
    "B": re.compile(r"diffusion_model\.(?:(?:joint_|transformer_)?blocks|layers)\.(\d+)\."),
}
_WORDS = {"DOUBLE": "D", "SINGLE": "S", "BLOCKS": "B"}
_ENTRY = re.compile(r"([A-Za-z]+)[ _]*(?:(\d{1,4})(?:\s*-\s*[A-Za-z]*(\d{1,4}))?)?\s*[:=]\s*(\S+)")
_LONGEST = 60  # characters of an entry

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
        if self.kind not in (_ALL, kind):
            return False
        return self.first <= number and (self.last is None or number <= self.last)


@dataclass(frozen=True)
class LayerWeights:
    """How strongly each layer of one LoRA counts.

    Args:
        entries: Weights of blocks; of several that fit, the last counts.
        without: Patterns of the paths of layers that are left out.
        own_path: Module path -> the same in the model's original code, which entries and patterns
            mean.
    """

    name: str
    entries: tuple[_Entry, ...]
    without: tuple[str, ...]
    own_path: Callable[[str], str]

    def of(self, path: str) -> float:
        """Return the weight of a layer."""
        own = self.own_path(path)
        if any(fnmatchcase(own, pattern) for pattern in self.without):
            return 0.0
        place = _place(own)
        return next((entry.weight for entry in reversed(self.entries) if entry.fits(place)), 1.0)

    def applied_to(self, adapter: Adapter) -> Adapter:
        """Return an adapter with its deltas and vectors scaled, or left out where the weight is 0.

        Raises:
            ConfigError: An entry or a pattern fits no layer of the adapter; shows which it has.
        """
        if not self.entries and not self.without:
            return adapter
        paths = dict.fromkeys([*adapter.deltas, *map(_module, adapter.vectors)])
        self._check_used([self.own_path(path) for path in paths])
        weights = {path: self.of(path) for path in paths}
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
        if unused:
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
    own_path: Callable[[str], str] = lambda path: path,
) -> LayerWeights:
    """Return the weights of a LoRA's layers; for the arguments see `LayerWeights` and `LoraUse`.

    Raises:
        ConfigError: See `check_spelling`.
    """
    check_spelling(name, blocks, without)
    return LayerWeights(name, _entries(name, blocks), tuple(without), own_path)


def check_spelling(name: str, blocks: str, without: Sequence[str]) -> None:
    """Refuse block weights that can be read for no model, and patterns that are not paths.

    Raises:
        ConfigError: Says what was found, and what may be there.
    """
    _entries(name, blocks)
    odd = next((text for text in without if not 0 < len(text.strip()) <= KEY_CHARACTERS), None)
    if odd is not None:
        raise ConfigError(
            f"LoRA {shown(name)}: a pattern of layers to leave out is {shown(odd)}; it must be 1 "
            f"to {KEY_CHARACTERS} characters, such as *attn2*"
        )


def _entries(name: str, text: str) -> tuple[_Entry, ...]:
    return tuple(_entry(name, part.strip()) for part in re.split(r"[,;\n]", text) if part.strip())


def _entry(name: str, text: str) -> _Entry:
    found = _ENTRY.fullmatch(text) if len(text) <= _LONGEST else None
    kind = _WORDS.get(found[1].upper(), found[1].upper()) if found else ""
    if found is None or kind not in (_ALL, _BASE, *_BLOCKS):
        raise ConfigError(
            f"LoRA {shown(name)}: its block weights have {shown(text)}. Write each as "
            "BLOCK:WEIGHT, by name and not as a list of numbers: IN01:0.5, MID:0, OUT3-5:0 in a "
            "UNet; double 0-18:0.5, single:0 in Flux; blocks 0-9:0.5 in other transformers; BASE:0 "
            "for the text encoders and all else; ALL:0"
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
    for kind, pattern in _BLOCKS.items():
        if found := pattern.match(path):
            return kind, int(found[1] or 0)
    return _BASE, 0


def _block(path: str) -> str:
    kind, number = _place(path)
    return kind if kind in (_BASE, "MID") else f"{kind}{number:02}"
