"""The T5 side: small text tasks with a vocabulary of their own, some for the base model, and
held-out variants of them for LoRAs on q and v of all attention layers.

A text is a list of words, the task's name first. Every task draws its inputs at random and answers
them by a rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from iteris_core import Adapter, Sample
from iteris_core.language.samples import EncodedSample
from iteris_core.language.t5 import network_of, text_rows, write
from iteris_core.language.teachers import Teachers

from .world import IGNORED, Batch, World

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
    """

    name: str
    draw: Callable[[random.Random], Words]
    answer: Callable[[Words], Words]

    def examples(self, seed: int, count: int) -> list[tuple[Words, Words]]:
        """Return inputs, the task's name in front, and their answers; each seed has its own."""
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
    TextTask("count", _repeated, lambda words: _count(words, vowels=True)),
    TextTask("same", _same_ends, lambda words: _yes(words[0] == words[-1])),
    TextTask("later", _date, lambda words: _moved_day(words, 1)),
    TextTask(
        "feeling", _opinion, lambda words: ["positive" if _is_positive(words) else "negative"]
    ),
)
# what LoRAs learn: a new word in front of the same kind of input, and another rule
LORA_TASKS = (
    TextTask("descend", _different, lambda words: sorted(words, reverse=True)),
    TextTask("rotate", _different, lambda words: [*words[1:], words[0]]),
    TextTask("order", _different, lambda words: _yes(words[0] < words[-1])),
    TextTask("earlier", _date, lambda words: _moved_day(words, -1)),
    TextTask("mood", _opinion, lambda words: _yes(not _is_positive(words))),
)
VOCABULARY = (
    *("<pad>", "</s>"),
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


def decode(ids: Tensor) -> Words:
    """Return the words up to the end of the text."""
    words = [VOCABULARY[number] for number in ids.tolist()]
    return words[: words.index("</s>")] if "</s>" in words else words


def encoded(texts: Sequence[Words], filler: int = PAD) -> Tensor:
    """Return texts as token ids (texts, longest), filled up at their ends."""
    return pad_sequence(list(map(encode, texts)), batch_first=True, padding_value=filler)


class TextWorld(World):
    """A small T5."""

    name = "t5"
    tasks = tuple(task.name for task in LORA_TASKS)
    model_class = "T5ForConditionalGeneration"
    network_of = network_of
    lora: ClassVar = {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}

    def new_model(self) -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        shape = T5Config(
            vocab_size=len(VOCABULARY),
            d_model=self.size.width,
            d_kv=self.size.width // 4,
            num_heads=4,
            d_ff=2 * self.size.width,
            num_layers=self.size.layers,
            dropout_rate=0.0,
            decoder_start_token_id=PAD,
            pad_token_id=PAD,
            eos_token_id=END,
        )
        model = T5ForConditionalGeneration(shape)
        for name, weight in model.named_parameters():
            # T5 draws these so small that so short a training never learns where a word stands:
            # reversing stays at 0.1
            if "relative_attention_bias" in name:
                nn.init.normal_(weight, std=3.0)
        return model

    def batches(self, task: str | None, seed: int) -> Iterator[Batch]:
        """Yield batches without end, all tasks mixed."""
        tasks = [known for known in LORA_TASKS if known.name == task] if task else BASE_TASKS
        source = random.Random(seed)
        while True:
            drawn = [source.choice(tasks) for _ in range(self.size.batch)]
            examples = [
                task.examples(source.randrange(1 << 40) + (1 << 20), 1)[0] for task in drawn
            ]
            ids = encoded([read for read, _ in examples])
            yield {
                "input_ids": ids,
                "attention_mask": (ids != PAD).long(),
                "labels": encoded([right for _, right in examples], IGNORED),
            }

    def written(self, task: str, adapter: Adapter, seed: int) -> list[EncodedSample]:
        (known,) = (known for known in LORA_TASKS if known.name == task)
        examples = known.examples(100 + seed, self.size.samples)
        asked = [EncodedSample(encode(read), None) for read, _ in examples]
        teachers = Teachers(self.model, [adapter], [{0: 1.0}], samples_per_call=64)
        (answered,) = teachers.answered(
            [asked], partial(write, self.model, max_new_tokens=MOST_WORDS)
        )
        return answered

    def ordinary(self, seed: int) -> list[EncodedSample]:
        """Return inputs of the base model's own tasks, in turn."""
        drawn = [
            BASE_TASKS[i % len(BASE_TASKS)].examples(10_000 + 1000 * seed + i, 1)[0]
            for i in range(self.size.samples)
        ]
        return [EncodedSample(encode(read), encode(right)) for read, right in drawn]

    def samples(self, written: Sequence[Sequence[Any]]) -> list[list[Sample]]:
        return text_rows(self.model, written)

    def scores(self, adapter: Adapter | None, names: Sequence[str], seed: int) -> dict[str, float]:
        wanted = [(task, self.size.examples) for task in LORA_TASKS if task.name in names]
        wanted += [(task, self.size.base_examples) for task in BASE_TASKS]
        examples = [task.examples(200 + seed, count) for task, count in wanted]
        with self.wearing(adapter):
            told = iter(self.answers([read for part in examples for read, _ in part]))
        found = {
            task.name: sum(next(told) == right for _, right in part) / len(part)
            for (task, _), part in zip(wanted, examples, strict=True)
        }
        own = {name: found[name] for name in names}
        return {**own, "base": sum(found[task.name] for task in BASE_TASKS) / len(BASE_TASKS)}

    @torch.no_grad()
    def answers(self, texts: Sequence[Words]) -> list[Words]:
        """Return the model's greedy answers."""
        ids = encoded(texts)
        written = self.model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            do_sample=False,
            num_beams=1,
            max_new_tokens=MOST_WORDS,
        )
        return list(map(decode, written[:, 1:]))
