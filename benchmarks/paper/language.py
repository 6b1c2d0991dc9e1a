"""Base models and adapters on the tasks of `language_tasks`: predictions, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from iteris_core.adapters import Adapter
from iteris_core.base_models import load_processor, load_tokenizer
from iteris_core.errors import ConfigError
from iteris_core.files import peft
from iteris_core.language import blip, t5
from iteris_core.language.job import load_adapter
from iteris_core.memory import with_smaller_calls
from iteris_core.progress import Stage, StageProgress, nobody
from iteris_core.settings import MOST_AT_ONCE, settings

from .errors import EvaluationError
from .language_tasks import CaptionExample, CaptionTask, TextExample, TextTask
from .predictions import file_fingerprint, fingerprint, predict
from .style_classifiers import TrainedStyles
from .text_metrics import caption_scores, classification_scores
from .writers import CAPTIONS, Generation, all_wearing, caption_writer, text_writer

BASE = "base"


@settings
class Extent:
    """How much is evaluated."""

    limit: Annotated[
        int | None,
        Field(ge=1, le=10**9, description="Examples per task, the first ones; all if left out."),
    ] = None
    batch: Annotated[int, Field(ge=1, le=MOST_AT_ONCE, description="Examples of one call.")] = 8


@dataclass(frozen=True)
class Run:
    """The models of an evaluation, and the folder of their predictions.

    Args:
        base: Folder of the base model, or its name on the hub.
        adapters: PEFT folders; each is one row of the table.
        output: Folder for the predictions.
        extent: Extent of the evaluation.
        dtype: Precision of the base model.
        device: Device to run on.
    """

    base: str
    adapters: tuple[Path, ...]
    output: Path
    extent: Extent = Extent()
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_row_names([folder.resolve().name for folder in self.adapters])

    @property
    def rows(self) -> dict[str, Path]:
        """Name of a row -> its adapter, which has the name of its folder."""
        return {folder.resolve().name: folder for folder in self.adapters}


def check_row_names(names: Sequence[str]) -> None:
    """Refuse rows of a table that would have one name by a `ConfigError`."""
    if len(set(names)) < len(names) or BASE in names:
        raise ConfigError(
            f"what is evaluated is called {', '.join(names)}; every row needs a name of its own, "
            f"none of them {BASE}"
        )


@dataclass(frozen=True)
class Scores:
    """The scores of one row of the table in one task.

    Args:
        row: Name of the adapter, or ``base``.
        task: Name of the task.
        examples: Number of examples that were scored.
        values: Metric -> value, 0 to 1 (CIDEr may be larger).
    """

    row: str
    task: str
    examples: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A row of the table: the base model, bare or with an adapter.

    Args:
        name: Name of the adapter, or ``base``.
        adapter: Adapter of the row; None: the bare base model.
        content: Hash of the adapter's files; empty for the bare model.
    """

    name: str
    adapter: Adapter | None = None
    content: str = ""


@dataclass(frozen=True)
class Work:
    """The inputs of a model in one task, and the function that answers them.

    Args:
        task: Name of the task.
        inputs: Inputs of the model, one per example.
        made_by: Everything that a prediction depends on besides the base model and the adapter, as
            JSON.
        write: Function that lets the model answer a batch of inputs.
    """

    task: str
    inputs: Sequence[Any]
    made_by: Mapping[str, Any]
    write: Callable[[Sequence[Any]], list[str]]


def evaluate_texts(
    run: Run,
    tasks: Sequence[tuple[TextTask, Sequence[TextExample]]],
    generation: Generation | None = None,
    progress: StageProgress = nobody,
) -> list[Scores]:
    """Let a T5, FLAN-T5 or BART answer every task, bare and with each adapter.

    Args:
        run: Model, adapters, place.
        tasks: Tasks with all their examples.
        generation: Settings for writing answers; None: greedily.
        progress: Listener for (stage, examples done, examples in all); may raise to cancel.

    Raises:
        IterisError: The base or an adapter cannot be used, or the output folder has predictions of
            other settings.
    """
    generation = generation or Generation()
    _check_names([task.name for task, _ in tasks])
    model = t5.load_base(run.base, run.dtype, run.device)
    write = text_writer(model, load_tokenizer(run.base), generation)
    scores = []
    for row in _rows(run, model):
        for task, examples in tasks:
            prompts = [example.prompt for example in examples]
            made_by = {"generation": asdict(generation), "examples": fingerprint(*prompts)}
            work = Work(task.name, prompts, made_by, write)
            predictions = _predictions(run, model, row, work, progress)
            answers = [example.answer for example in examples[: run.extent.limit]]
            values = text_scores(predictions, answers)
            scores.append(Scores(row.name, task.name, len(predictions), values))
    return scores


def text_scores(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return `classification_scores`, and Matthews correlation from 0 to 1, ``(1 + m) / 2``."""
    scores = classification_scores(predictions, answers)
    return {**scores, "scaled_matthews": (1 + scores["matthews"]) / 2}


def evaluate_captions(
    run: Run,
    tasks: Sequence[tuple[CaptionTask, Sequence[CaptionExample]]],
    generation: Generation | None = None,
    styles: TrainedStyles | None = None,
    progress: StageProgress = nobody,
) -> list[Scores]:
    """Let a BLIP captioning model write a caption for every picture, bare and with each adapter.

    Args:
        run: Model, adapters, place.
        tasks: Tasks with all their examples.
        generation: Settings for writing captions; None: `CAPTIONS`.
        styles: Classifier of styles; None: style accuracy is not measured.
        progress: Listener for (stage, examples done, examples in all); may raise to cancel.

    Raises:
        IterisError: See `evaluate_texts`; or the classifier does not know a style.
    """
    generation = generation or CAPTIONS
    _check_names([task.name for task, _ in tasks])
    for task, _ in tasks:
        _check_style(task, styles)
    model = blip.load_base(run.base, run.dtype, run.device)
    processor = load_processor(run.base)
    works = [
        Work(
            task.name,
            [example.image for example in examples],
            {
                "generation": asdict(generation),
                "prompt": task.prompt,
                "examples": fingerprint(*(_identity(example.image) for example in examples)),
            },
            caption_writer(model, processor, task.prompt, generation),
        )
        for task, examples in tasks
    ]
    scores = []
    for row in _rows(run, model):
        for work, (task, examples) in zip(works, tasks, strict=True):
            captions = _predictions(run, model, row, work, progress)
            references = [example.references for example in examples[: run.extent.limit]]
            values = caption_scores(captions, references)
            if styles is not None and task.style is not None:
                values = {"style_accuracy": styles.accuracy(captions, task.style), **values}
            scores.append(Scores(row.name, task.name, len(captions), values))
    return scores


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise EvaluationError(
            f"a task is given twice ({', '.join(names)}); give each once, for another file run "
            "again"
        )


def _check_style(task: CaptionTask, styles: TrainedStyles | None) -> None:
    if styles is not None and task.style is not None and task.style not in styles.styles:
        raise EvaluationError(
            f"{task.name}: the style classifier knows {', '.join(styles.styles)}, not "
            f"{task.style!r}; label captions of that style so"
        )


def _identity(picture: Path | bytes) -> str | bytes:
    return str(picture) if isinstance(picture, Path) else picture


def _rows(run: Run, model: nn.Module) -> list[Row]:
    """Return the rows of the table; all adapters are read first, so that wrong ones stop early."""
    rows = [Row(BASE)]
    for name, folder in run.rows.items():
        adapter = replace(load_adapter(model, folder), name=name)
        hashes = [file_fingerprint(folder / file) for file in (peft.CONFIG_FILE, peft.WEIGHTS_FILE)]
        rows.append(Row(name, adapter, "-".join(hashes)))
    return rows


def _predictions(
    run: Run, model: nn.Module, row: Row, work: Work, progress: StageProgress
) -> list[str]:
    """Return the predictions of a row's model in a task."""
    path = run.output / row.name / f"{work.task}.json"
    model_of_row = {"base": run.base, "dtype": str(run.dtype), "adapter": row.content}
    made_by = {**model_of_row, **work.made_by}
    inputs = work.inputs[: run.extent.limit]
    told = partial(progress, Stage(f"{row.name}: {work.task}"))
    with all_wearing(dict(model.named_modules()), row.adapter):
        return with_smaller_calls(
            lambda size: predict(path, made_by, inputs, work.write, size, told),
            run.extent.batch,
            f"writing the answers of {work.task}",
        )
