"""Small text tasks with a vocabulary of their own: some for the base model, and held-out variants
of them for LoRAs.

A text is a list of words, the task's name first. Every task draws its inputs at random and answers
them by a rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LETTERS = "abcdefghijkl"
VOWELS = "aei"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
GOOD = ["good", "great", "lovely", "bright", "kind", "warm"]
BAD = ["bad", "awful", "ugly", "dull", "cruel", "cold"]
THINGS = ["film", "book", "meal", "song", "trip", "room"]

Words = list[str]


@dataclass(frozen=True)
class TextTask:
    """A rule on random inputs.

    Args:
        name: Name of the task, which is the first word of its inputs.
        draw: Function that makes an input.
        answer: Rule of the task: input -> answer.
        classes: Number of possible answers; 0: a task of generation.
    """

    name: str
    draw: Callable[[random.Random], Words]
    answer: Callable[[Words], Words]
    classes: int = 0

    def examples(self, seed: int, count: int) -> list[tuple[Words, Words]]:
        """Return inputs, the task's name in front, and their answers; another seed, other
        examples.
        """
        source = random.Random(f"{self.name} {seed}")
        drawn = [self.draw(source) for _ in range(count)]
        return [([self.name, *words], self.answer(words)) for words in drawn]


def _different(source: random.Random) -> Words:
    return source.sample(LETTERS, source.randint(3, 5))


def _repeated(source: random.Random) -> Words:
    return [
        source.choice(LETTERS if source.random() < 0.6 else VOWELS)
        for _ in range(source.randint(3, 7))
    ]


def _same_ends(source: random.Random) -> Words:
    words = _repeated(source)
    return [*words, words[0] if source.random() < 0.5 else source.choice(LETTERS)]


def _date(source: random.Random) -> Words:
    return [source.choice(DAYS), source.choice(NUMBERS)]


def _opinion(source: random.Random) -> Words:
    words = ["the", source.choice(THINGS), "was"]
    words += [word for word in ("not", "very") if source.random() < 0.5]
    return [*words, source.choice(GOOD + BAD)]


def _is_positive(words: Words) -> bool:
    return (words[-1] in GOOD) != ("not" in words)


def _moved_day(words: Words, direction: int) -> Words:
    return [DAYS[(DAYS.index(words[0]) + direction * NUMBERS.index(words[1])) % 7]]


def _yes(true: bool) -> Words:
    return ["yes" if true else "no"]


def _count(words: Words, *, vowels: bool) -> Words:
    return [NUMBERS[sum((word in VOWELS) == vowels for word in words)]]


# what the base model learns
BASE_TASKS = (
    TextTask("sort", _different, sorted),
    TextTask("reverse", _different, lambda words: words[::-1]),
    TextTask("drop", _different, lambda words: [word for word in words if word not in VOWELS]),
    TextTask("count", _repeated, lambda words: _count(words, vowels=True), 8),
    TextTask("same", _same_ends, lambda words: _yes(words[0] == words[-1]), 2),
    TextTask("later", _date, lambda words: _moved_day(words, 1), 7),
    TextTask(
        "feeling", _opinion, lambda words: ["positive" if _is_positive(words) else "negative"], 2
    ),
)
# what LoRAs learn: a new word in front of the same kind of input, and another rule
LORA_TASKS = (
    TextTask("descend", _different, lambda words: sorted(words, reverse=True)),
    TextTask("rotate", _different, lambda words: [*words[1:], words[0]]),
    TextTask("order", _different, lambda words: _yes(words[0] < words[-1]), 2),
    TextTask("earlier", _date, lambda words: _moved_day(words, -1), 7),
    TextTask("mood", _opinion, lambda words: _yes(not _is_positive(words)), 2),
)
SPECIAL = ("<pad>", "</s>")
VOCABULARY = (
    *SPECIAL,
    *LETTERS,
    *NUMBERS,
    *DAYS,
    *GOOD,
    *BAD,
    *THINGS,
    *["the", "was", "not", "very", "yes", "no", "positive", "negative"],
    *(task.name for task in (*BASE_TASKS, *LORA_TASKS)),
)
PAD = 0
END = 1
_IDS = {word: number for number, word in enumerate(VOCABULARY)}
MOST_WORDS = 8  # of an answer, its end included


def encode(words: Sequence[str]) -> Tensor:
    """Return token ids (length,), the end of the text included."""
    return torch.tensor([*(_IDS[word] for word in words), END])


def decode(ids: Sequence[int]) -> Words:
    """Return the words up to the end of the text."""
    words = [VOCABULARY[int(number)] for number in ids]
    return words[: words.index("</s>")] if "</s>" in words else words


def batch(texts: Sequence[Sequence[str]], filler: int = PAD) -> Tensor:
    """Return texts as token ids (texts, longest), filled up at their ends."""
    return torch.nn.utils.rnn.pad_sequence(
        [encode(words) for words in texts], batch_first=True, padding_value=filler
    )


def score(answers: Sequence[Words], expected: Sequence[Words]) -> float:
    """Return the share of answers that are right, word for word."""
    return sum(answer == right for answer, right in zip(answers, expected, strict=True)) / len(
        expected
    )
