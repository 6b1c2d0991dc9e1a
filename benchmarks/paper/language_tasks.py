"""The tasks of the paper's language and captioning tables, read from files in their public formats.

Answers are the published ones. Prompts say the same as the published ones in words of ours, so that
adapters that were trained with other prompts need theirs (`TextTask.prompt`, `CaptionTask.prompt`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from iteris_core.settings import shown

from .data_files import read_rows
from .errors import EvaluationError

TextScore = Literal["accuracy", "macro_f1", "scaled_matthews"]


@dataclass(frozen=True)
class TextTask:
    """Classification as generation: a prompt is read, an answer is written.

    Args:
        name: Name of the task, as in ``--task name=file``.
        prompt: Text with the data set's field names in braces.
        answers: Words for labels 0, 1, ...; empty if the label field holds the answer.
        label: Name of the label's field.
        score: Score that the paper's table shows.
    """

    name: str
    prompt: str
    answers: tuple[str, ...] = ()
    label: str = "label"
    score: TextScore = "accuracy"

    @property
    def fields(self) -> list[str]:
        """The data set's fields that the prompt reads."""
        return [field for _, field, _, _ in Formatter().parse(self.prompt) if field is not None]


@dataclass(frozen=True)
class CaptionTask:
    """Captions of one style.

    Args:
        name: Name of the task, as in ``--task name=file``.
        style: Style that a classifier should recognise; None: any.
        prompt: Text that the decoder begins with; it is not part of the caption.
    """

    name: str
    style: str | None = None
    prompt: str = ""


@dataclass(frozen=True)
class TextExample:
    """A prompt, and the answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class CaptionExample:
    """A picture (a file, or a file's bytes), and captions by people."""

    image: Path | bytes
    references: tuple[str, ...]


_PAIR = "First: {{{}}} Second: {{{}}} "
TEXT_TASKS: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask(
            "mnli",
            _PAIR.format("premise", "hypothesis")
            + "Does the first follow up to imply the second? Answer yes, maybe or no.",
            ("yes", "maybe", "no"),
        ),
        TextTask(
            "cola",
            "Sentence: {sentence} Is this sentence grammatical English? Answer yes or no.",
            ("no", "yes"),
            score="scaled_matthews",
        ),
        TextTask(
            "qqp",
            _PAIR.format("question1", "question2")
            + "Do these two questions ask the same? Answer yes or no.",
            ("no", "yes"),
        ),
        TextTask(
            "qnli",
            "Question: {question} Text: {sentence} Is the question answered by the text? Answer "
            "yes or no.",
            ("yes", "no"),
        ),
        TextTask(
            "mrpc",
            _PAIR.format("sentence1", "sentence2")
            + "Do these two sentences mean the same? Answer yes or no.",
            ("no", "yes"),
        ),
        TextTask(
            "sst2", "Review: {sentence} Is this review favourable? Answer yes or no.", ("no", "yes")
        ),
        TextTask(
            "rte",
            _PAIR.format("sentence1", "sentence2")
            + "Does the second follow from the first? Answer yes or no.",
            ("yes", "no"),
        ),
        *(
            TextTask(name, "{instruction}", label="output", score="macro_f1")
            for name in ("emoint", "ec", "tec", "isear")
        ),
    )
}
CAPTION_TASKS: dict[str, CaptionTask] = {
    task.name: task
    for task in (
        CaptionTask("senticap-positive", "positive", "a photo in a happy and pleasant mood of "),
        CaptionTask("senticap-negative", "negative", "a photo in a sad and unpleasant mood of "),
        CaptionTask("flickrstyle-romantic", "romantic", "a photo with romantic feelings of "),
        CaptionTask("flickrstyle-humorous", "humorous", "a photo with a funny joke of "),
        CaptionTask("captions"),
    )
}


def read_text_task(task: TextTask, path: Path) -> list[TextExample]:
    """Read a task's examples by the data set's field names; `EvaluationError` names a wrong row."""
    examples = []
    for number, row in enumerate(read_rows(path), 1):
        place = f"{path}, row {number}"
        for field in (*task.fields, task.label):
            if row.get(field) is None:
                raise EvaluationError(
                    f"{place}: has no field {field!r} but {', '.join(row)}; {task.name} reads "
                    f"{', '.join(task.fields)} and {task.label}, as on the hub"
                )
        values = {field: str(row[field]) for field in task.fields}
        examples.append(
            TextExample(task.prompt.format(**values), _answer(task, row[task.label], place))
        )
    return examples


def _answer(task: TextTask, label: Any, place: str) -> str:
    text = str(label).strip()
    known = dict(zip(task.answers, task.answers, strict=True))
    known |= {str(number): answer for number, answer in enumerate(task.answers)}
    if text in known or (text and not known):
        return known.get(text, text)
    raise EvaluationError(
        f"{place}: {task.label!r} is {shown(label)}; {task.name} has the labels "
        f"{', '.join(known) or 'of any text'}, and -1 where a test split hides them"
    )


def read_caption_task(path: Path) -> list[CaptionExample]:
    """Read pictures and references from parquet or JSON lines; or raise `EvaluationError`."""
    examples = []
    for number, row in enumerate(read_rows(path), 1):
        place = f"{path}, row {number}"
        references = row["references"] if "references" in row else row.get("text")
        if row.get("image") is None or references is None:
            raise EvaluationError(
                f'{place}: has {", ".join(row)}; give parquet with "image" and "text", or JSON lines '
                '{"image": "a.png", "references": ["..."]}'
            )
        examples.append(
            CaptionExample(_image(row["image"], path.parent, place), _references(references, place))
        )
    return examples


def _image(image: Any, folder: Path, place: str) -> Path | bytes:
    if isinstance(image, Mapping):  # as the `datasets` library stores pictures
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image:
        return folder / image
    raise EvaluationError(
        f'{place}: "image" is {type(image).__name__}; give a file name, or the bytes of a picture'
    )


def _references(value: Any, place: str) -> tuple[str, ...]:
    """Return the captions of a list, of a text that holds a JSON list, or of one caption."""
    try:
        is_list = isinstance(value, str) and value.lstrip().startswith("[")
        captions = json.loads(value) if is_list else [value] if isinstance(value, str) else value
        found = tuple(text for text in captions if text.strip())
    except (ValueError, RecursionError, TypeError, AttributeError):
        found = ()
    if not found:
        raise EvaluationError(
            f"{place}: its references are {value!r:.80}; give one caption or a list of captions"
        )
    return found
