"""Patterns of layers in PEFT's settings (``rank_pattern``, ``alpha_pattern``).

PEFT compiles them as regular expressions, ``(.*\\.)?(pattern)$``. Those of a stranger's file can
keep a machine busy for ever, so none is compiled here: names and ends of paths are compared as
texts, which are what programs write, and ``.*`` stands for any text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .limits import GAPPED_PATTERNS

_SPECIAL = frozenset("\\^$.|?*+()[]{}")
_GAP = ".*"


@dataclass(frozen=True)
class _Pattern:
    """A pattern as texts.

    Args:
        pieces: Texts that a path has in this order, the last at its end; between them is anything.
        at_start: Whether the first is at the start of the path, and not behind a dot, too.
    """

    pieces: tuple[str, ...]
    at_start: bool

    def fits(self, path: str) -> bool:
        first, *inner = self.pieces
        start = 0 if self.at_start or not first else _after_dot(path, first)
        if start < 0 or not path.startswith(first, start):
            return False
        end = start + len(first)
        for piece in inner[:-1]:
            start = path.find(piece, end)
            if start < 0:
                return False
            end = start + len(piece)
        return path.endswith(inner[-1]) and len(path) - len(inner[-1]) >= end


@dataclass
class _Node:
    """A place in the tree of the names of plain patterns, from the last name to the first.

    Args:
        number: Place of the pattern that begins here; None: none does.
        before: Name -> the node of the names before it.
    """

    number: int | None = None
    before: dict[str, _Node] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerPatterns:
    """Patterns that are compared with the paths of layers, in time in proportion to a path.

    Args:
        patterns: The patterns, the first before the others.
    """

    patterns: tuple[str, ...]
    _ends: _Node
    _wholes: dict[str, int]
    _gapped: tuple[tuple[int, _Pattern], ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> LayerPatterns:
        """Return patterns that are ready to be compared.

        Raises:
            ValueError: A pattern is more than names, their ends and ``.*``; says which.
        """
        patterns = tuple(patterns)
        ends = _Node()
        wholes: dict[str, int] = {}
        gapped = []
        for number, text in enumerate(patterns):
            pattern = _read(text)
            if len(pattern.pieces) > 1:
                gapped.append((number, pattern))
            elif pattern.at_start:
                wholes.setdefault(pattern.pieces[0], number)
            else:
                node = ends
                for name in reversed(pattern.pieces[0].split(".")):
                    node = node.before.setdefault(name, _Node())
                node.number = number if node.number is None else node.number
        if len(gapped) > GAPPED_PATTERNS:
            raise ValueError(f"{len(gapped)} patterns with .*, of which {GAPPED_PATTERNS} are read")
        return cls(patterns, ends, wholes, tuple(gapped))

    def first(self, path: str) -> str | None:
        """Return the first pattern that is the whole path, or its end behind a dot, as PEFT does;
        None if there is none.
        """
        numbers = [number for number, pattern in self._gapped if pattern.fits(path)]
        if path in self._wholes:
            numbers.append(self._wholes[path])
        node: _Node | None = self._ends
        for name in reversed(path.split(".")):
            node = node.before.get(name) if node else None
            if node is None:
                break
            if node.number is not None:
                numbers.append(node.number)
        return self.patterns[min(numbers)] if numbers else None


def _read(text: str) -> _Pattern:
    """Return a pattern as texts. A dot is read as a dot, though it fits any letter in PEFT: people
    and programs write the paths of layers so.

    Raises:
        ValueError: It is more than that.
    """
    at_start = text.startswith("^")
    rest = text.removeprefix("^")
    if rest.endswith("$") and not rest.endswith("\\$"):
        rest = rest[:-1]
    pieces = [""]
    position = 0
    while position < len(rest):
        letter = rest[position]
        if rest.startswith(_GAP, position):
            pieces.append("")
            position += len(_GAP)
            continue
        if letter == "\\" and position + 1 < len(rest) and not rest[position + 1].isalnum():
            position += 1
            letter = rest[position]
        elif letter != "." and letter in _SPECIAL:
            raise ValueError(f"the pattern {text[:60]!r}, a regular expression ({letter!r})")
        pieces[-1] += letter
        position += 1
    return _Pattern(tuple(pieces), at_start)


def _after_dot(path: str, text: str) -> int:
    """Return the first position of a text at the start of a path, or behind a dot; -1: none."""
    if path.startswith(text):
        return 0
    return path.find(f".{text}") + 1 or -1
