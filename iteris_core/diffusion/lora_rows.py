r"""LoRAs as the rows of a text, one LoRA a line:

    <lora:sks_dog:0.8> subject priority=2 | a photo of sks dog | sks dog on a beach
    # <lora:ink:1:0.6> style called="in ink style"

``web/rows_text.js`` reads and writes the same grammar, and ``tests/data/rows.json`` holds examples
for both. A row begins with ``<lora:NAME:MODEL:CLIP>``; the strengths may be missing. Words follow
in any order, and then prompts, each after a ``|``. A ``|`` in curly braces or after a backslash
belongs to its prompt. In quotes a backslash takes the next character as it is. A line that begins
with ``#`` is switched off, and is not looked at. A line of tags alone is several rows. A row
whose file is still to be chosen has no name, ``<lora::0.8>``; a merge cannot read it.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from ..errors import ConfigError, IterisError
from ..settings import checked, shown
from .lora_use import Kind, LoraUse, Strength, Weight, check_count

# A name may begin with a drive of Windows.
TAG = re.compile(r"<lora:((?:[a-z]:(?=[\\/]))?[^:<>\n]*)(?::([^<>\n]*))?>", re.IGNORECASE)
_ANGLE_IN_NAME = re.compile(r"<lora:[^:>\n]*<", re.IGNORECASE)
# One word after the tag; a value may be in quotes. Each place is looked at once.
_WORD = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^\s|"])+')
_QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"')
_ESCAPED = re.compile(r"\\(.)")
_PROMPT = re.compile(r"(?:\\\||\{[^{}]*\}|[^|])+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^\s|"]+')  # a value that needs no quotes
_KINDS = get_args(Kind)
_NAMED = ("priority", "called", "blocks", "without")
_WORDS = (*_KINDS, *(f"{name}=" for name in _NAMED))
_EXAMPLE = "<lora:name:0.8> subject | a photo of sks dog"
# What other programs write into a tag before a strength and an equals sign.
_IN_TAG = {"unet": "model", "te": "clip"}
_PARTS = {"model": "strength", "clip": "text encoder strength"}
# Mistaken word -> what was probably meant.
_MEANT = {"weight": "priority=", "strength": "<lora:name:0.8>", "prompt": "| a photo of sks dog"}


@dataclass(frozen=True)
class Row:
    """A LoRA as a text or another pack's stack names it; other fields are as in `LoraUse`.

    Args:
        name: Its name there: a file of ComfyUI's list, with or without folder and suffix.
        kind: Kind of the LoRA; None: nothing is said about it.
        called: Phrase for it in captions with others; may contain ``{trigger}``.
        prompts: Its prompts; may contain ``{trigger}``.
    """

    name: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    kind: Kind | None = None
    priority: float = 1.0
    called: str = ""
    blocks: str = ""
    without: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    where: str = ""


def read_rows(text: str, source: str = "") -> list[Row]:
    """Return the rows of a text that are switched on.

    Args:
        source: The option or the file that has the text; errors then name its line. Without one
            they name the row, counted without empty lines.

    Raises:
        ConfigError: Names the place, what it has, and what it may have; or there are too many.
    """
    place = f"{source}, line" if source else "Row"
    lines = text.split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines if source else filter(str.strip, lines), 1):
        rows += rows_in(line, f"{place} {number}")
        check_count(len(rows))
    return rows


def rows_in(line: str, where: str = "") -> list[Row]:
    """Return the rows of a line; none if it is empty or switched off.

    Args:
        where: Its place, for errors; empty: they name none.

    Raises:
        ConfigError: What the line has, and what it may have.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    with placed(where):
        return [replace(row, where=where) for row in _rows_in(line)]


def written(rows: Iterable[Row]) -> str:
    """Return the text of rows, one a line."""
    return "\n".join(map(_line, rows))


def row_of(use: LoraUse) -> Row:
    """Return a LoRA of the loras folders as a row."""
    return Row(
        str(use.file),
        use.strength_model,
        use.strength_clip,
        use.kind,
        use.weight,
        use.trigger,
        use.blocks,
        use.without,
        use.prompts,
    )


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Put the place of a row before errors about it; empty: it has none."""
    try:
        yield
    except IterisError as error:
        if not where:
            raise
        raise type(error)(f"{where}: {error}") from error


def tagged(tag: re.Match[str], where: str) -> Row:
    """Return the row of a single `TAG`.

    Raises:
        ConfigError: A strength that is not a number or outside its bounds, or something else, such
            as another program's list of block weights.
    """
    with placed(where):
        return replace(_tagged(tag), where=where)


def _tagged(tag: re.Match[str]) -> Row:
    given = _parts_in(tag)
    place = f"a strength in {_short(tag[0])}"
    model, clip = (given.get(name, "") for name in ("model", "clip"))
    strength = _number(model, Strength, place) if model else 1.0
    of_text = _number(clip, Strength, place) if clip else strength
    return Row(tag[1].strip(), strength, of_text)


def _parts_in(tag: re.Match[str]) -> dict[str, str]:
    """Return the strengths in a tag by their names."""
    free = ["model", "clip"]
    given: dict[str, str] = {}
    for part in (tag[2] or "").split(":"):
        name, is_named, value = (text.strip() for text in part.partition("="))
        if not is_named and free:
            value = name
            place = free.pop(0)
        elif is_named and name.lower() in _IN_TAG:
            place = _IN_TAG[name.lower()]
        else:
            raise ConfigError(
                f"{_short(tag[0])} has {shown(part.strip())}, but a tag has strengths alone, for "
                "all sampling steps. Take it out; weights of blocks follow the tag, by name, as in "
                'blocks="IN01:0.5, MID:0"'
            )
        if value and place in given:
            raise ConfigError(f"{_short(tag[0])} has its {_PARTS[place]} twice; write one of them")
        given |= {place: value} if value else {}
    return given


def _rows_in(line: str) -> Iterator[Row]:
    tags: list[re.Match[str]] = []
    end = 0
    while tag := TAG.match(line, end):
        tags.append(tag)
        end = _after_spaces(line, tag.end())
    if _ANGLE_IN_NAME.match(line):
        raise ConfigError(
            f"{_first_word(line)} has a < in the name of a LoRA. Rows cannot name a file with <, > "
            f"or : in its name; rename the file. A row is written as in {_EXAMPLE}"
        )
    if not tags:
        raise ConfigError(
            f"it begins with {_first_word(line)}; write a LoRA first, such as {_EXAMPLE}, or "
            "a # before a line that does not count"
        )
    if not all(tag[1].strip() for tag in tags):
        raise ConfigError("no file yet. Choose one, or remove the row")
    rows = [_tagged(tag) for tag in tags]
    if len(rows) == 1:
        yield _with_words(rows[0], line, end)
    elif end < len(line):
        raise ConfigError(
            f"{_first_word(line[end:])} follows {len(rows)} LoRAs; which one is it for? "
            "Write one LoRA a line"
        )
    else:
        yield from rows


def _with_words(row: Row, line: str, start: int) -> Row:
    """Return a row with the words and prompts from a place of its line on."""
    said: set[str] = set()
    while start < len(line) and line[start] != "|":
        word = _WORD.match(line, start)
        if word is None or line[word.end() :].startswith('"'):
            raise ConfigError(f"the quotes in {_short(line[start:])} are not closed")
        row = _with_word(row, word[0], said)
        start = _after_spaces(line, word.end())
    found = (prompt[0].replace("\\|", "|").strip() for prompt in _PROMPT.finditer(line, start))
    return replace(row, prompts=tuple(prompt for prompt in found if prompt))


def _with_word(row: Row, word: str, said: set[str]) -> Row:
    """Return a row with a word of its line.

    Args:
        said: What the row says already; what the word says is added.
    """
    if word.startswith("<"):
        raise ConfigError(f"a second LoRA, {_short(word)}; write one LoRA a line")
    name, is_named, text = word.partition("=")
    if word not in _KINDS and not (is_named and name in _NAMED):
        raise ConfigError(
            f"{_short(word)} is not a word of a row{_near(word)} After the LoRA "
            f"write {', '.join(_WORDS[:-1])} or {_WORDS[-1]}, and then its prompts, each after a |"
        )
    if word in _KINDS and row.kind not in (None, word):
        raise ConfigError(f"is it a {row.kind} or a {word}? Write one of them")
    key = name + is_named
    if key in said and name != "without":
        raise ConfigError(f"it says {key} twice; write one of them")
    said.add(key)
    if word in _KINDS:
        return replace(row, kind=cast(Kind, word))
    value = _QUOTED.sub(lambda quoted: _ESCAPED.sub(r"\1", quoted[1]), text).strip()
    if not value:
        raise ConfigError(f"there is nothing after {key}; write a value, or leave it out")
    if name == "without":
        return replace(row, without=(*row.without, value))
    if name == "priority":
        return replace(row, priority=_number(value, Weight, "priority"))
    if name == "blocks":
        return replace(row, blocks=value)
    return replace(row, called=value)


def _number(text: str, bounds: Any, place: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ConfigError(f"{place} is {shown(text)}, which is not a number; write one such as 0.8")
    return float(checked(place, float(text), bounds))


def _near(word: str) -> str:
    known = {name.rstrip("="): name for name in _WORDS} | _MEANT
    found = difflib.get_close_matches(word.partition("=")[0].lower()[:40], known, 1)
    return f"; did you mean {known[found[0]]}?" if found else "."


def _first_word(text: str) -> str:
    return _short(text.split(maxsplit=1)[0])


def _short(text: str) -> str:
    return shown(text.strip())


def _after_spaces(line: str, place: int) -> int:
    while place < len(line) and line[place].isspace():
        place += 1
    return place


def _line(row: Row) -> str:
    strengths = [row.strength_model]
    strengths += [row.strength_clip] if row.strength_clip != row.strength_model else []
    words = [f"<lora:{':'.join([row.name, *map(_digits, strengths)])}>"]
    words += [row.kind] if row.kind else []
    words += [f"priority={_digits(row.priority)}"] if row.priority != Row.priority else []
    values = [("called", row.called), ("blocks", row.blocks)]
    values += [("without", pattern) for pattern in row.without]
    words += [f"{name}={_quoted(value)}" for name, value in values if value]
    prompts = ["| " + " ".join(prompt.split()).replace("|", "\\|") for prompt in row.prompts]
    return " ".join([*words, *prompts])


def _digits(number: float) -> str:
    """Return the shortest text of a number."""
    return repr(float(number)).removesuffix(".0")


def _quoted(value: str) -> str:
    value = " ".join(value.split())
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
