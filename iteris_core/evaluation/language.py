"""Base models and adapters on the tasks of `language_tasks`: predictions, and scores from
predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters import Adapter
from ..devices import with_smaller_calls
from ..errors import ConfigError
from ..files import peft
from ..files.pretrained import load_adapter, load_processor, load_tokenizer
from ..language import blip, t5
from .language_tasks import CaptionExample, CaptionTask, TextExample, TextTask
from .predictions import file_fingerprint, fingerprint, predict
from .style_classifiers import TrainedStyles
from .text_metrics import EvaluationError, caption_scores, classification_scores, style_accuracy
from .writers import CAPTIONS, Generation, all_wearing, caption_writer, text_writer

# (what runs, examples done, examples in all); may raise to cancel.
StageProgress = Callable[[str, int, int], None]
BASE = "base"


@dataclass(frozen=True)
class Run:
    """Where an evaluation runs, and where it leaves its predictions.

    Args:
        base: Folder or hub name.
        adapters: PEFT folders; each is one row of the table.
        output: Folder for the predictions.
        with_base: Whether the base model without an adapter is a row, too.
        limit: Examples per task, the first ones; None: all.
        batch: Examples of one call.
        dtype: In which the base runs.
        device: Where it runs.
        overwrite: Begin again instead of going on with the predictions that are there.
    """

    base: str
    adapters: tuple[Path, ...]
    output: Path
    with_base: bool = True
    limit: int | None = None
    batch: int = 8
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("limit", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")
        if not self.adapters and not self.with_base:
            raise ConfigError("there is nothing to evaluate; give an adapter, or let the base run")

    def row_names(self) -> list[str]:
        """Return a name per adapter: its folder's, with a number where two are the same."""
        names: list[str] = []
        for folder in self.adapters:
            name = folder.resolve().name
            number = 2
            while name in (*names, BASE):
                name = f"{folder.resolve().name}-{number}"
                number = number + 1
            names.append(name)
        return names


@dataclass(frozen=True)
class Scores:
    """What one row of the table reached in one task.

    Args:
        row: Name of the adapter, or ``base``.
        task: Name of the task.
        examples: How many were scored.
        values: Metric -> value, 0 to 1 (CIDEr may be larger).
    """

    row: str
    task: str
    examples: int
    values: Mapping[str, float]


def evaluate_texts(
    run: Run,
    tasks: Sequence[tuple[TextTask, Sequence[TextExample]]],
    how: Generation | None = None,
    progress: StageProgress | None = None,
) -> list[Scores]:
    """Let a T5, FLAN-T5 or BART answer every task, bare and with each adapter.

    Args:
        run: Model, adapters, place.
        tasks: With all their examples.
        how: Of writing; None: greedy.
        progress: Told about examples; may raise to cancel.

    Raises:
        IterisError: An unusable base or adapter, or predictions of other settings in the output
            folder.
    """
    how = how or Generation()
    model = t5.load_base(run.base, run.dtype, run.device)
    tokenizer = load_tokenizer(run.base)
    write = text_writer(model, tokenizer, how)

    def on_task(row: str, adapter: Adapter | None, made_by: dict[str, Any], index: int) -> Scores:
        task, examples = tasks[index]
        prompts = [example.prompt for example in examples]
        made_by |= {"generation": asdict(how), "examples": fingerprint(*prompts)}
        found = _predictions(
            run, model, adapter, (row, task.name), made_by, prompts[: run.limit], write, progress
        )
        scores = text_scores(found, [example.answer for example in examples[: run.limit]])
        return Scores(row, task.name, len(found), scores)

    return _all_rows(run, model, [task.name for task, _ in tasks], on_task)


def text_scores(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return `classification_scores`, and Matthews correlation on a scale of 0 to 1, ``(1 + m) /
    2``.
    """
    scores = classification_scores(predictions, answers)
    return {**scores, "scaled_matthews": (1 + scores["matthews"]) / 2}


def evaluate_captions(
    run: Run,
    tasks: Sequence[tuple[CaptionTask, Sequence[CaptionExample]]],
    how: Generation | None = None,
    styles: TrainedStyles | None = None,
    progress: StageProgress | None = None,
) -> list[Scores]:
    """Let a BLIP captioning model write a caption for every picture, bare and with each adapter.

    Args:
        run: Model, adapters, place.
        tasks: With all their examples.
        how: Of writing; None: `CAPTIONS`.
        styles: Tells styles apart; None: style accuracy is left out.
        progress: Told about examples; may raise to cancel.

    Raises:
        IterisError: As `evaluate_texts`; a style that the classifier does not know.
    """
    how = how or CAPTIONS
    for task, examples in tasks:
        if styles is not None and task.style is not None and task.style not in styles.styles:
            raise EvaluationError(
                f"{task.name}: the style classifier knows {', '.join(styles.styles)}, not "
                f"{task.style!r}; say which of its labels that is (--style-label "
                f"{task.style}=LABEL)"
            )
        _check_pictures(task, examples[: run.limit])
    model = blip.load_base(run.base, run.dtype, run.device)
    processor = load_processor(run.base)
    writers = [caption_writer(model, processor, task.prompt, how) for task, _ in tasks]

    def on_task(row: str, adapter: Adapter | None, made_by: dict[str, Any], index: int) -> Scores:
        task, examples = tasks[index]
        pictures = [example.image for example in examples]
        made_by |= {
            "generation": asdict(how),
            "prompt": task.prompt,
            "examples": fingerprint(*map(_identity, pictures)),
        }
        found = _predictions(
            run,
            model,
            adapter,
            (row, task.name),
            made_by,
            pictures[: run.limit],
            writers[index],
            progress,
        )
        scores = caption_scores(found, [example.references for example in examples[: run.limit]])
        if styles is not None and task.style is not None:
            scores = {
                "style_accuracy": style_accuracy(found, task.style, styles.classify),
                **scores,
            }
        return Scores(row, task.name, len(found), scores)

    return _all_rows(run, model, [task.name for task, _ in tasks], on_task)


def _check_pictures(task: CaptionTask, examples: Sequence[CaptionExample]) -> None:
    missing = [
        example.image
        for example in examples
        if isinstance(example.image, Path) and not example.image.is_file()
    ]
    if missing:
        raise EvaluationError(
            f"{task.name}: {len(missing)} of its pictures, such as {missing[0]}, are not there; put "
            "them beside the file that names them"
        )


def _identity(picture: Path | bytes) -> str | bytes:
    return str(picture) if isinstance(picture, Path) else picture


def _all_rows(
    run: Run,
    model: nn.Module,
    names: Sequence[str],
    on_task: Callable[[str, Adapter | None, dict[str, Any], int], Scores],
) -> list[Scores]:
    if len(set(names)) < len(names):
        raise EvaluationError(
            f"a task is given twice ({', '.join(names)}); give each once, for another file run "
            "again"
        )
    adapters: list[tuple[str, Adapter | None, str]] = [(BASE, None, "")] if run.with_base else []
    for name, folder in zip(run.row_names(), run.adapters, strict=True):
        adapter = replace(
            load_adapter(model, folder), name=name
        )  # all are read first: a wrong one is said at once
        hashes = [file_fingerprint(folder / file) for file in (peft.CONFIG_FILE, peft.WEIGHTS_FILE)]
        adapters.append((name, adapter, "-".join(hashes)))
    scores = []
    for name, adapter, content in adapters:
        for index in range(len(names)):
            made_by = {"base": run.base, "dtype": str(run.dtype), "adapter": content}
            scores.append(on_task(name, adapter, made_by, index))
    return scores


def _predictions(
    run: Run,
    model: nn.Module,
    adapter: Adapter | None,
    place: tuple[str, str],
    made_by: Mapping[str, Any],
    inputs: Sequence[Any],
    write: Callable[[Sequence[Any]], list[str]],
    progress: StageProgress | None,
) -> list[str]:
    row, task = place
    path = run.output / row / f"{task}.jsonl"
    if run.overwrite:
        path.unlink(missing_ok=True)
    tell = partial(progress, f"{row}: {task}") if progress is not None else lambda done, total: None
    with all_wearing(dict(model.named_modules()), adapter):
        return with_smaller_calls(
            lambda size: predict(path, made_by, inputs, write, size, tell),
            run.batch,
            f"writing the answers of {task}",
        )
