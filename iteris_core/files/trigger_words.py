"""Trigger words of LoRA files, and prompts made of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CalibrationError
from ..settings import TRIGGER, shown
from .limits import LISTED_WORDS, WORD_CHARACTERS, first, json_value
from .metadata import RECIPE_KEY

# Kind of a LoRA -> prompts for it, which are English with "sks dog" and with "in ink style".
TEMPLATES = {
    "subject": ("a photo of {trigger}", "{trigger}", "{trigger}, outdoors"),
    "style": ("a landscape, {trigger}", "{trigger}", "a portrait of a person, {trigger}"),
}
_ARTICLE = re.compile(r"(an?|the)\s", re.IGNORECASE)
_ARTICLE_BEFORE = re.compile(r"\b(an?|the)\s+\{trigger\}", re.IGNORECASE)
_MOST_WORDS = 8  # that tags bring a file to
_MOST_STATED = 100
_CHARACTERS = 16_000  # of all words
_MOST_TRIGGERS = 4
_TAGS_IN_A_CAPTION = 4
_NO_NAMES = re.compile(r"(img|images?|data|dataset|train|training|\d*)", re.IGNORECASE)
_NO_PHRASES = ("none", "null", "n/a")  # what programs write where the author wrote nothing


@dataclass(frozen=True)
class TriggerWords:
    """The trigger words in the metadata of one file: all, most likely first; those that replace
    ``{trigger}`` in a prompt; the metadata field or the file next to the LoRA's that names these;
    and the commonest tags together, as in training (empty where the author named the triggers). Of
    a merge also the prompts that its LoRAs were measured on, and their kind: a subject if one of
    them is.
    """

    words: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    source: str = ""
    caption: str = ""
    prompts: tuple[str, ...] = ()
    kind: str = ""


def trigger_words(
    metadata: Mapping[str, str], beside: tuple[str, tuple[str, ...]] = ("", ())
) -> TriggerWords:
    """Return the words that another program keeps next to the file, where its user sees and edits
    them (see `words_beside`); or else the phrase that the author named, or the commonest tags of
    the training captions. A merge's recipe has them for each of its LoRAs.
    """
    if not any(map(_is_phrase, beside[1])):
        merged = _merged(metadata.get(RECIPE_KEY, ""))
        if merged.prompts:
            return merged
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    tags = _tags(metadata.get("ss_tag_frequency", ""))
    found = {
        beside[0]: tuple(filter(_is_phrase, beside[1])),
        "modelspec.trigger_phrase": (phrase,) if _is_phrase(phrase) else (),
        "ss_tag_frequency": tags,
    }
    source = next((field for field, words in found.items() if words), "")
    stated = _once(word for field in list(found)[:-1] for word in found[field])[:_MOST_STATED]
    most = max(len(stated), _MOST_WORDS)
    words = tuple(first(_once([*stated, *tags])[:most], _CHARACTERS))
    if source == "ss_tag_frequency":
        return TriggerWords(words, tags[:1], source, ", ".join(tags[:_TAGS_IN_A_CAPTION]))
    return TriggerWords(words, found.get(source, ())[:_MOST_TRIGGERS], source)


def _merged(recipe: str) -> TriggerWords:
    """Return the trigger words of the LoRAs in a merge's recipe, and the prompts that it was
    measured on; none where it cannot be read.
    """
    try:
        loras = [
            lora
            for lora in json_value(recipe or "{}").get("loras", [])
            if lora["strength_model"] or lora["strength_clip"]
        ]
        named = [word for lora in loras for word in lora["trigger_words"] or [lora["trigger"]]]
        written = [prompt for lora in loras for prompt in lora["prompts"]]
        is_subject = any(lora["kind"] == "subject" for lora in loras)
    except (ValueError, AttributeError, TypeError, LookupError):
        return TriggerWords()
    words, prompts = (tuple(first(phrases(each), _CHARACTERS)) for each in (named, written))
    kind = "subject" if is_subject else "style"
    return TriggerWords(words, words, RECIPE_KEY, prompts=prompts, kind=kind)


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def with_trigger(words: str, trigger: str) -> str:
    """Return words with a trigger in place of ``{trigger}``, without an article twice, nor any word
    where they meet.

    >>> with_trigger("a photo of a {trigger}", "a sks robot")
    'a photo of a sks robot'
    >>> with_trigger("in {trigger} style", "in qpr style")
    'in qpr style'
    """
    if _ARTICLE.match(trigger):
        words = _ARTICLE_BEFORE.sub(TRIGGER, words)
    own = [re.escape(word) for word in trigger.split()]
    if own:
        before, after = rf"\b{own[0]}\s+(?=\{{trigger\}})", rf"(?<=\{{trigger\}})\s+{own[-1]}\b"
        words = re.sub(f"{before}|{after}", "", words, flags=re.IGNORECASE)
    return words.replace(TRIGGER, trigger)


def prompts_from(found: TriggerWords, templates: Sequence[str]) -> tuple[str, ...]:
    """Return each template with each trigger in place of ``{trigger}``."""
    return _once(
        with_trigger(template, trigger) for trigger in found.triggers for template in templates
    )


def default_prompts(found: TriggerWords, kind: str) -> tuple[str, ...]:
    """Return the prompts of a LoRA whose user names none, those of a merge's own LoRAs if it is
    one; empty if its file names no trigger words.

    Args:
        kind: One of `TEMPLATES`.
    """
    by_templates = [*prompts_from(found, TEMPLATES[kind]), found.caption]
    return found.prompts or _once(filter(None, by_templates))


def fill_in(name: str, prompts: Sequence[str], found: TriggerWords, kind: str) -> tuple[str, ...]:
    """Return the user's prompts of a LoRA with its trigger words in place of ``{trigger}``; without
    any, default prompts, or none if its file names no trigger words either.

    Args:
        kind: One of `TEMPLATES`.

    Raises:
        CalibrationError: A prompt without words; or one with ``{trigger}``, and the file names no
            trigger words.
    """
    if empty := next((prompt for prompt in prompts if not has_words(prompt)), None):
        raise CalibrationError(
            f"{name}: the prompt {shown(empty)} has no words in it. Write what you would type to "
            "use this LoRA, such as 'a photo of sks dog', or remove the prompt"
        )
    if prompts and not any(TRIGGER in prompt for prompt in prompts):
        return tuple(prompts)
    if not prompts:
        return default_prompts(found, kind)
    if not found.triggers:
        raise CalibrationError(
            f"{name} has {TRIGGER} in a prompt, and the file's metadata names no trigger "
            "words (no modelspec.trigger_phrase or ss_tag_frequency that can be read, and no "
            ".metadata.json or .civitai.info with trainedWords next to it). Write them in its "
            "place; the page that you downloaded it from names them"
        )
    return prompts_from(found, prompts)


def _is_phrase(text: str) -> bool:
    """Whether a text can be a trigger word; see `limits` for its length."""
    return len(text) <= WORD_CHARACTERS and text.lower() not in _NO_PHRASES and has_words(text)


def has_words(text: str) -> bool:
    """Whether a text holds more than blanks and punctuation; emoji count as words."""
    return any(unicodedata.category(character)[0] not in "ZCP" for character in text)


def phrases(words: Sequence[Any]) -> tuple[str, ...]:
    """Return the words of a list that can be trigger words, each once."""
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
            # without how often its pictures are shown: "sks dog" of "10_sks dog"
            names.append(re.sub(r"^\d+_", "", folder).strip())
            for tag, count in tags.items():
                if len(tag) <= WORD_CHARACTERS:  # a longer one is not a phrase, and costs time
                    counts[tag.strip()] += int(count)
    except (ValueError, AttributeError, TypeError, OverflowError):
        return ()
    words = {word for tag in counts for word in tag.split()}

    def is_subject(name: str) -> bool:
        """Whether a folder's name names the subject: a tag does, words that are all general do not;
        others do if they are several (kohya's instance and class) or a word of a tag, or if there
        are no tags.
        """
        if name in counts:
            return True
        if all(map(_NO_NAMES.fullmatch, name.split())):
            return False
        return not counts or " " in name or name in words

    subjects = filter(is_subject, filter(_is_phrase, names))
    common = [tag for tag, _ in counts.most_common(_MOST_WORDS)]
    return _once([*subjects, *filter(_is_phrase, common)])[:_MOST_WORDS]
