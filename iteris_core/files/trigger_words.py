"""Trigger words of LoRA files: in their metadata or in files next to them, and prompts made of
them. What a list shows of a file is read from its header, once.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AdapterError, CalibrationError
from ..settings import shown
from .adapter_kinds import DOWN
from .families import Family, base_family, family_of, model_families
from .groups import grouped
from .limits import (
    LISTED_WORDS,
    NAME_CHARACTERS,
    PICTURE_BYTES,
    SEARCHED_CHARACTERS,
    SIDECAR_BYTES,
    WORD_CHARACTERS,
    budget,
    first,
    json_value,
    spend,
)
from .tensors import read_header, version

# --- files next to a LoRA's: the words that other programs keep there, and a picture ---

# That of LoRA Manager comes first: its user may have edited the words. The other one, of several
# downloaders, is what Civitai said.
CARD = ".metadata.json"
_WORDS = (CARD, ".civitai.info")
PICTURES = (
    *(".preview" + ending for ending in (".png", ".jpg", ".jpeg", ".webp")),
    *(".png", ".jpg", ".jpeg", ".webp"),
)
_START_BYTES = 12  # that tell pictures apart


def words_beside(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the name of the first file next to a LoRA's that lists its trigger words, and the
    words as written there; empty where there is none that can be read.
    """
    for sidecar in sidecars(path):
        words = _listed_beside(_content(sidecar, SIDECAR_BYTES))
        if words:
            return sidecar.name, words
    return "", ()


def sidecars(path: Path) -> Iterator[Path]:
    """Yield the files next to a LoRA's that may list its trigger words."""
    yield from map(path.with_suffix, _WORDS)


def picture_beside(path: Path) -> tuple[bytes, str] | None:
    """Return the picture next to a LoRA's file and its media type; None where there is none.

    A picture is a PNG, JPEG or WebP by its first bytes, whatever its name says.
    """
    for picture in map(path.with_suffix, PICTURES):
        content = _content(picture, PICTURE_BYTES)
        if kind := _kind(content):
            return content, kind
    return None


def has_picture(path: Path) -> bool:
    """Whether `picture_beside` finds one."""
    pictures = map(path.with_suffix, PICTURES)
    return any(_kind(_content(picture, PICTURE_BYTES, _START_BYTES)) for picture in pictures)


def _content(path: Path, most: int, count: int = -1) -> bytes:
    """Return the first bytes of a plain file, by default all; nothing of a larger one, and of what
    is not a plain file or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return b""
        with path.open("rb") as file:
            return file.read(most if count < 0 else count)
    except (OSError, ValueError):  # the latter of names that no file can have
        return b""


def base_beside(path: Path) -> str | None:
    """Return what LoRA Manager's file next to a LoRA calls its base model, "" if it does not say;
    None where there is no such file.
    """
    value = _read(_content(path.with_suffix(CARD), SIDECAR_BYTES))
    if not isinstance(value, dict):
        return None
    base = value.get("base_model")
    return base if isinstance(base, str) and len(base) <= NAME_CHARACTERS else ""


def _read(content: bytes) -> Any:
    try:
        return json_value(content.decode("utf-8-sig")) if content else None
    except ValueError:
        return None


def _listed_beside(content: bytes) -> tuple[str, ...]:
    value = _read(content)
    inner = value.get("civitai") if isinstance(value, dict) else None
    lists = [of.get("trainedWords") for of in (value, inner) if isinstance(of, dict)]
    return _phrases(next((words for words in lists if words and isinstance(words, list)), []))


def _kind(start: bytes) -> str:
    """Return the media type of a picture that begins so; empty: it is not a picture."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if start.startswith(b"RIFF") and start[8:12] == b"WEBP" else ""


# --- words, and prompts ---

# Kind of a LoRA -> prompts for it, which are English with "sks dog" and with "in ink style".
TEMPLATES = {
    "subject": ("a photo of {trigger}", "{trigger}", "{trigger}, outdoors"),
    "style": ("a landscape, {trigger}", "{trigger}", "a portrait of a person, {trigger}"),
}
_PLACEHOLDER = "{trigger}"
_ARTICLE = re.compile(r"(an?|the)\s", re.IGNORECASE)
_ARTICLE_BEFORE = re.compile(r"\b(an?|the)\s+\{trigger\}", re.IGNORECASE)
_MOST_WORDS = 8
_MOST_TRIGGERS = 4
_TAGS_IN_A_CAPTION = 4
_NO_NAMES = re.compile(r"(img|images?|data|dataset|train|training|\d*)", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_PUNCTUATION = ".,;:!?()[]{}<>\"'"
_NO_PHRASES = ("none", "null", "n/a")  # what programs write where the author wrote nothing


@dataclass(frozen=True)
class TriggerWords:
    """The trigger words in the metadata of one file: all, most likely first; those that replace
    ``{trigger}`` in a prompt; the metadata field or the file next to the LoRA's that names these;
    and the commonest tags together, as in training (empty where the author named the triggers).
    """

    words: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    source: str = ""
    caption: str = ""


def trigger_words(
    metadata: Mapping[str, str], beside: tuple[str, tuple[str, ...]] = ("", ())
) -> TriggerWords:
    """Return the words that another program keeps next to the file, where its user sees and edits
    them (see `words_beside`); or else the phrase that the author named, or the words, or the
    commonest tags of the training captions.
    """
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    listed = metadata.get("trained_words", "") or metadata.get("trainedWords", "")
    tags = _tags(metadata.get("ss_tag_frequency", ""))
    found = {
        beside[0]: tuple(filter(_is_phrase, beside[1])),
        "modelspec.trigger_phrase": (phrase,) if _is_phrase(phrase) else (),
        "trained_words": _listed(listed),
        "ss_tag_frequency": tags,
    }
    source = next((field for field, words in found.items() if words), "")
    words = _once(word for of_field in found.values() for word in of_field)[:_MOST_WORDS]
    if source == "ss_tag_frequency":
        return TriggerWords(words, tags[:1], source, ", ".join(tags[:_TAGS_IN_A_CAPTION]))
    return TriggerWords(words, found.get(source, ())[:_MOST_TRIGGERS], source)


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def with_trigger(words: str, trigger: str) -> str:
    """Return words with a trigger in place of ``{trigger}``, without an article twice.

    >>> with_trigger("a photo of a {trigger}", "a sks robot")
    'a photo of a sks robot'
    """
    if _ARTICLE.match(trigger):
        words = _ARTICLE_BEFORE.sub(_PLACEHOLDER, words)
    return words.replace(_PLACEHOLDER, trigger)


def prompts_from(found: TriggerWords, templates: Sequence[str]) -> tuple[str, ...]:
    """Return each template with each trigger in place of ``{trigger}``."""
    return _once(
        with_trigger(template, trigger) for trigger in found.triggers for template in templates
    )


def default_prompts(found: TriggerWords, kind: str) -> tuple[str, ...]:
    """Return the prompts of a LoRA whose user names none; empty if its file names no trigger
    words.

    Args:
        kind: One of `TEMPLATES`.
    """
    return _once(filter(None, [*prompts_from(found, TEMPLATES[kind]), found.caption]))


def fill_in(name: str, prompts: Sequence[str], found: TriggerWords, kind: str) -> tuple[str, ...]:
    """Return the user's prompts of a LoRA, which may be none, with its trigger words in place of
    ``{trigger}``; default prompts if there are none.

    Args:
        kind: One of `TEMPLATES`.

    Raises:
        CalibrationError: A prompt without words; or trigger words are needed, and the file names
            none.
    """
    if empty := next((prompt for prompt in prompts if not has_words(prompt)), None):
        raise CalibrationError(
            f"{name}: the prompt {shown(empty)} has no words in it. Write what you would type to "
            "use this LoRA, such as 'a photo of sks dog', or remove the prompt"
        )
    if prompts and not any(_PLACEHOLDER in prompt for prompt in prompts):
        return tuple(prompts)
    if not found.triggers:
        why = f"has {_PLACEHOLDER} in a prompt" if prompts else "has no prompts"
        raise CalibrationError(
            f"{name} {why}, and the file's metadata names no trigger words (no "
            "modelspec.trigger_phrase, trained_words or ss_tag_frequency that can be read, and no "
            ".metadata.json or .civitai.info with trainedWords next to it). Write "
            "what you would type to use this LoRA, one prompt per line, such as 'a photo of sks "
            "dog'; the page that you downloaded it from names its trigger words"
        )
    return prompts_from(found, prompts) if prompts else default_prompts(found, kind)


def _is_phrase(text: str) -> bool:
    """Whether a text can be a trigger word; see `limits` for its length."""
    return len(text) <= WORD_CHARACTERS and text.lower() not in _NO_PHRASES and has_words(text)


def has_words(text: str) -> bool:
    """Whether a text holds more than blanks and punctuation; emoji count as words."""
    return any(unicodedata.category(character)[0] not in "ZCP" for character in text)


def _listed(text: str) -> tuple[str, ...]:
    """Return the words of a field that holds a JSON list, or words between commas."""
    try:
        words = json_value(text)
    except ValueError:
        words = text.split(",", LISTED_WORDS)
    return _phrases(words if isinstance(words, list) else [words])


def _phrases(words: Sequence[Any]) -> tuple[str, ...]:
    stripped = (word.strip(" ,\t\r\n") for word in words[:LISTED_WORDS] if isinstance(word, str))
    return _once(filter(_is_phrase, stripped))


def _tags(text: str) -> tuple[str, ...]:
    """Return the names of the subject in the folders' names, then the commonest tags of all
    training folders.
    """
    counts: Counter[str] = Counter()
    names = []
    try:
        for folder, tags in json_value(text or "{}").items():
            spend()
            # without how often its pictures are shown: "sks dog" of "10_sks dog"
            names.append(re.sub(r"^\d+_", "", folder).strip())
            for tag, count in tags.items():
                if len(tag) <= WORD_CHARACTERS:  # a longer one is not a phrase, and costs time
                    counts[tag.strip()] += int(count)
    except (ValueError, AttributeError, TypeError, OverflowError):
        return ()
    called = _called(tuple(filter(_is_phrase, names)), counts)
    common = [tag for tag, _ in counts.most_common(_MOST_WORDS)]
    return _once([*called, *filter(_is_phrase, common)])[:_MOST_WORDS]


def _called(names: Sequence[str], counts: Counter[str]) -> list[str]:
    """Return the training folders' names that name the subject.

    A name that equals a tag of the captions does. A name of general words alone does not. Any
    other does if there are no tags, if it has several words (kohya's instance and class), or if one
    of the commonest tags has it as a word.
    """
    single = {name for name in names if len(name.split()) == 1}
    searched = (
        first((tag for tag, _ in counts.most_common()), SEARCHED_CHARACTERS) if single else ()
    )
    in_tags = single.intersection(word for tag in searched for word in _words(tag))

    def is_subject(name: str) -> bool:
        words = name.split()
        is_general = all(_NO_NAMES.fullmatch(word) for word in words)
        is_new = not counts or len(words) > 1 or name in in_tags
        return name in counts or (is_new and not is_general)

    return list(filter(is_subject, names))


def _words(tag: str) -> Iterator[str]:
    """Yield the words of a tag: what blanks divide, without the punctuation around it, and of that
    what punctuation divides.
    """
    for word in tag.split():
        yield word.strip(_PUNCTUATION)
        yield from _WORD.findall(word)


# --- headers: quick enough for every file of a list ---

Facts = TypeVar("Facts")
_FILES = 1000  # whose facts are remembered: eight words each, at most
_LOCK = threading.Lock()  # one look at a time: each may take all that the budget allows


def once_per_file(look: Callable[[Path], Facts]) -> Callable[[Path], Facts]:
    """Remember what a look at a file finds, or why it is refused, until it or a file next to it
    changes: a page asks for the same files again and again, and pages of strangers may ask.
    """

    @functools.lru_cache(_FILES)
    def remembered(path: Path, _versions: tuple[object, ...]) -> Facts | str:
        try:
            return look(path)
        except AdapterError as error:
            if isinstance(error.__cause__, OSError):  # a disk may answer next time
                raise
            return str(error)

    @functools.wraps(look)
    def looked(path: Path) -> Facts:
        with _LOCK:
            found = remembered(path, tuple(map(_version, (path, *sidecars(path)))))
        if isinstance(found, str):
            raise AdapterError(found)
        return found

    return looked


def _version(path: Path) -> tuple[int, int] | None:
    try:
        return version(os.stat(path))
    except (OSError, ValueError):  # the latter of names that no file can have
        return None


@dataclass(frozen=True)
class LoraHeader:
    """The facts in a LoRA file's header: the largest rank of its factors (0 if it has none), and
    the family that it was trained for, with the file's own statement and without it (empty if
    nothing shows it), and whether its keys show that; and the digest of its tensors that it states
    (empty if it does not).
    """

    triggers: TriggerWords
    rank: int
    base: str
    family: str
    is_by_keys: bool
    digest: str


@once_per_file
def lora_header(path: Path) -> LoraHeader:
    """Return the facts in a LoRA file's header, and the trigger words next to the file.

    Raises:
        AdapterError: See `read_header`.
    """
    with budget(path):
        tensors, metadata = read_header(path)
        groups, _ = grouped(tensors)
        downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
        ranks = [down.shape[0] for down in downs if down.ndim > 1]
        shown_by_keys = family_of(tensors)
        family, base = base_family(shown_by_keys, metadata)
        triggers = trigger_words(metadata, words_beside(path))
    digest = metadata.get("sshs_model_hash", "")[:NAME_CHARACTERS]
    return LoraHeader(
        triggers,
        rank=max(ranks, default=0),
        base=base,
        family=family.name if family else "",
        is_by_keys=shown_by_keys is not None,
        digest=digest,
    )


@once_per_file
def model_header(path: Path) -> tuple[Family, ...]:
    """Return what `model_families` finds in a checkpoint's or a diffusion model's header.

    Raises:
        AdapterError: See `read_header`.
    """
    with budget(path):
        return model_families(read_header(path)[0])
