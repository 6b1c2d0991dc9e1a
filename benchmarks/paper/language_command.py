"""The commands `python -m benchmarks.paper t5` and `python -m benchmarks.paper blip`: base models and adapters on the paper's
tasks, next to the paper's figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from iteris_core.cli import options
from iteris_core.cli.options import Placement
from iteris_core.cli.paths import Places
from iteris_core.cli.terminal import as_cell, progress_bars, quiet_libraries
from iteris_core.errors import ConfigError

from .figures import PaperRow, caption_figures, text_figures
from .language import Extent, Run, Scores, evaluate_captions, evaluate_texts
from .language_tasks import CAPTION_TASKS, TEXT_TASKS, read_caption_task, read_text_task
from .style_classifiers import TrainedStyles, load_style_classifier
from .writers import CAPTIONS, Generation

T5_HELP = f"""Score a T5, FLAN-T5 or BART, bare and with each adapter, on classification tasks.

Example:

    python -m benchmarks.paper t5 --base google/flan-t5-base --output scores/
        --adapter rte/ --adapter mrpc/ --adapter merged/
        --task rte=rte/validation.parquet --task mrpc=mrpc/validation.jsonl

Tasks are {", ".join(TEXT_TASKS)}. A file is .jsonl, .json (a list), .tsv or .csv (with a header) \
or .parquet, with the field names that the data set has on the hub. The emotion sets (emoint, ec, \
tec, isear) are lists of {{"instruction", "output"}}.

An adapter is what `iteris merge` reads: a PEFT folder of a LoRA. It answers well only to the \
prompts of its training. Those of GLUE are in words of ours here, with the published answers \
(mnli: yes, maybe, no); --prompt takes others.

Shown are accuracy, (1 + Matthews correlation) / 2 for cola, and macro F1 for emotions, as in the \
paper's table 3; --json has all metrics. Predictions are kept in --output: the same command goes \
on where it was stopped.

Exit code 0: scored; 2: something is wrong with the files or settings, and one line says what.
"""

BLIP_HELP = f"""Score a BLIP captioning model, bare and with each adapter, on captions of a style.

Example:

    python -m benchmarks.paper blip --base Salesforce/blip-image-captioning-base --output scores/
        --adapter positive/ --adapter merged/ --style-classifier captions.jsonl
        --task senticap-positive=positive/test.parquet
        --task senticap-negative=negative/test.parquet

Tasks are {", ".join(CAPTION_TASKS)}. A file is .parquet with "image" and "text" (a caption, or a \
JSON list of them), or JSON lines {{"image": "a.png", "references": ["..."]}}, paths relative to \
the file.

BLEU, ROUGE-L and CIDEr are pycocoevalcap's, on tokens without punctuation, cut by a plain \
tokenizer after the rules of the Penn Treebank (pycocoevalcap's own is a Java program). \
--style-classifier is a folder of a sequence classifier of transformers, or a file of captions \
{{"text", "label"}} on which one is trained. --prompt takes the words before a caption with which \
an adapter was trained. Predictions are kept in --output: the same command goes on where it was \
stopped.

Exit code 0: scored; 2: something is wrong with the files or settings, and one line says what.
"""

AdapterSetting = Annotated[
    list[Path] | None, typer.Option(help="A PEFT adapter's folder, a row of the table.")
]
TaskSetting = Annotated[list[str], typer.Option(help="NAME=FILE; give it once for every task.")]
OutputSetting = Annotated[Path, typer.Option(help="Folder for the predictions.")]
ReportSetting = Annotated[
    Path | None, typer.Option("--json", help="Write the scores to this file, as JSON.")
]
_METRICS = {
    "style_accuracy": "style",
    "cider": "CIDEr",
    **{f"bleu_{n}": f"B-{n}" for n in range(1, 5)},
    "rouge_l": "ROUGE-L",
}


@options.command(
    "python -m benchmarks.paper t5",
    "paper",
    extent=Extent(),
    generation=Generation(),
    placement=Placement(),
)
def eval_t5_command(
    *,
    base: options.BaseSetting,
    task: TaskSetting,
    output: OutputSetting,
    adapter: AdapterSetting = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help='NAME=TEXT with field names in braces, such as rte="{sentence1}: {sentence2}?".'
        ),
    ] = None,
    report: ReportSetting = None,
    extent: Extent,
    generation: Generation,
    placement: Placement,
) -> None:
    run = Run(base, tuple(adapter or ()), output, extent, placement.dtype, placement.device)
    files = _assigned(task, "--task", TEXT_TASKS)
    _places(run, files, report).check()
    told = options.ReportFile(report, extent.overwrite)
    told.check()
    prompts = _assigned(prompt, "--prompt", TEXT_TASKS)
    tasks = []
    for name, file in files.items():
        definition = replace(TEXT_TASKS[name], prompt=prompts.get(name, TEXT_TASKS[name].prompt))
        tasks.append((definition, read_text_task(definition, Path(file))))
    quiet_libraries()
    with progress_bars() as progress:
        scores = evaluate_texts(run, tasks, generation, progress)
    shown: dict[str, str] = {definition.name: definition.score for definition, _ in tasks}
    paper = text_figures(list(shown))
    Console().print(_text_table(scores, shown, paper))
    typer.echo(f"predictions in {output}")
    settings = {"generation": asdict(generation), "prompts": _prompts(tasks)}
    told.write(_report(run, scores, {"tasks": paper}, settings))


@options.command(
    "python -m benchmarks.paper blip",
    "paper",
    extent=Extent(),
    generation=CAPTIONS,
    placement=Placement(),
)
def eval_blip_command(
    *,
    base: options.BaseSetting,
    task: TaskSetting,
    output: OutputSetting,
    adapter: AdapterSetting = None,
    style_classifier: Annotated[
        Path | None,
        typer.Option(help="A sequence classifier's folder, or a file of labelled captions."),
    ] = None,
    style_label: Annotated[
        list[str] | None,
        typer.Option(help="STYLE=LABEL, where the classifier has another name for a style."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="NAME=TEXT that captions of a task begin with.")
    ] = None,
    report: ReportSetting = None,
    extent: Extent,
    generation: Generation,
    placement: Placement,
) -> None:
    run = Run(base, tuple(adapter or ()), output, extent, placement.dtype, placement.device)
    files = _assigned(task, "--task", CAPTION_TASKS)
    places = _places(run, files, report)
    inputs = {**places.inputs, "--style-classifier": [style_classifier]}
    replace(places, inputs=inputs).check()
    told = options.ReportFile(report, extent.overwrite)
    told.check()
    prompts = _assigned(prompt, "--prompt", CAPTION_TASKS)
    tasks = []
    for name, file in files.items():
        definition = replace(
            CAPTION_TASKS[name], prompt=prompts.get(name, CAPTION_TASKS[name].prompt)
        )
        tasks.append((definition, read_caption_task(Path(file))))
    quiet_libraries()
    styles = _styles(style_classifier, style_label, placement.device)
    with progress_bars() as progress:
        scores = evaluate_captions(run, tasks, generation, styles, progress)
    paper = {definition.name: caption_figures(definition.name) for definition, _ in tasks}
    for name, rows in paper.items():
        of_task = [entry for entry in scores if entry.task == name]
        Console().print(_caption_table(name, of_task, rows))
    held_out = None if styles is None else styles.held_out
    if held_out is not None:
        typer.echo(
            f"the style classifier is right on {held_out:.1%} of the captions on which it was not "
            "trained"
        )
    typer.echo(f"predictions in {output}")
    settings = {
        "generation": asdict(generation),
        "prompts": _prompts(tasks),
        "style_classifier_held_out": held_out,
    }
    told.write(_report(run, scores, paper, settings))


def _places(run: Run, files: Mapping[str, str], report: Path | None) -> Places:
    inputs = {"--base": [run.base], "--adapter": run.adapters, "--task": list(files.values())}
    return Places(folders={"--output": run.output}, files={"--json": report}, inputs=inputs)


def _assigned(texts: Sequence[str] | None, option: str, tasks: Mapping[str, Any]) -> dict[str, str]:
    """Return NAME=VALUE options by name."""
    values: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(
                f"{option} is {text!r}; write a name and a value, such as {next(iter(tasks))}=..."
            )
        if name not in tasks:
            raise ConfigError(f"{option} {name!r} is not a task; the tasks are {', '.join(tasks)}")
        if name in values:
            raise ConfigError(
                f"{option} {name!r} is given twice; run the command again for another file"
            )
        values[name] = value
    return values


def _styles(path: Path | None, labels: Sequence[str] | None, device: str) -> TrainedStyles | None:
    if path is None:
        if labels:
            raise ConfigError(
                "--style-label needs --style-classifier: the classifier whose label it is"
            )
        return None
    styles = {task.style: None for task in CAPTION_TASKS.values() if task.style is not None}
    return load_style_classifier(path, _assigned(labels, "--style-label", styles), device)


def _prompts(tasks: Sequence[tuple[Any, Any]]) -> dict[str, str]:
    return {definition.name: definition.prompt for definition, _ in tasks}


def _text_table(
    scores: Sequence[Scores], shown: Mapping[str, str], paper: Sequence[PaperRow]
) -> Table:
    names = {"accuracy": "accuracy", "macro_f1": "macro F1", "scaled_matthews": "(1 + MCC) / 2"}
    counts = {entry.task: entry.examples for entry in scores}
    table = Table(
        title=", ".join(f"{task}: {counts[task]} examples" for task in shown), title_justify="left"
    )
    table.add_column("")
    for task, metric in shown.items():
        table.add_column(f"{task}\n{names[metric]}", justify="right")
    table.add_column("mean", justify="right")
    rows = {
        entry.row: {s.task: s.values[shown[s.task]] for s in scores if s.row == entry.row}
        for entry in scores
    }
    for name, values in rows.items():
        table.add_row(as_cell(name), *_cells(values, shown))
    table.add_section()
    for row in paper:
        table.add_row(
            f"paper, {row.method} ({row.source})", *_cells(row.values, shown), style="dim"
        )
    return table


def _cells(values: Mapping[str, float], columns: Mapping[str, str]) -> list[str]:
    cells = [f"{values[name]:.3f}" if name in values else "" for name in columns]
    return [
        *cells,
        f"{sum(values[name] for name in columns) / len(columns):.3f}" if all(cells) else "",
    ]


def _caption_table(task: str, scores: Sequence[Scores], paper: Sequence[PaperRow]) -> Table:
    table = Table(title=f"{task}, {scores[0].examples} pictures", title_justify="left")
    table.add_column("")
    for name in _METRICS.values():
        table.add_column(name, justify="right")
    for entry in scores:
        table.add_row(as_cell(entry.row), *_metric_cells(entry.values))
    table.add_section()
    for row in paper:
        name = f"paper, {row.method} ({row.source})"
        table.add_row(name, *_metric_cells(row.values), style="dim")
    return table


def _metric_cells(values: Mapping[str, float]) -> list[str]:
    return [f"{values[key]:.3f}" if key in values else "" for key in _METRICS]


def _report(
    run: Run,
    scores: Sequence[Scores],
    paper: Mapping[str, Sequence[PaperRow]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the results of a run as JSON."""
    return {
        "base": run.base,
        "adapters": dict(zip(run.row_names(), map(str, run.adapters), strict=True)),
        "dtype": str(run.dtype),
        "limit": run.extent.limit,
        **settings,
        "scores": [asdict(entry) for entry in scores],
        "paper": {name: [asdict(row) for row in rows] for name, rows in paper.items()},
    }
