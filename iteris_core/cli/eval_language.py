"""The commands `iteris eval ...`: base models and adapters on the paper's tasks, beside the paper's
figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from ..evaluation.language import Run, Scores, evaluate_captions, evaluate_texts
from ..evaluation.language_tasks import CAPTION_TASKS, TEXT_TASKS, read_caption_task, read_text_task
from ..evaluation.paper_figures import PaperRow, caption_figures, text_figures
from ..evaluation.style_classifiers import TrainedStyles, load_style_classifier
from ..evaluation.writers import CAPTIONS, Generation
from .eval_sd15 import SD15_HELP, eval_sd15_command
from .paths import check_places
from .terminal import dtype_of, one_line_errors, progress_bars, quiet_libraries

app = typer.Typer(no_args_is_help=True, help="Score adapters on the paper's tasks.")
app.command("sd15", help=SD15_HELP)(eval_sd15_command)

_T5_HELP = f"""Score a T5, FLAN-T5 or BART, bare and with each adapter, on classification tasks.

Example:

    iteris eval t5 --base google/flan-t5-base --adapter rte/ --adapter mrpc/ --adapter merged/
        --task rte=rte/validation.parquet --task mrpc=mrpc/validation.jsonl --output scores/

Tasks are {", ".join(TEXT_TASKS)}. A file is .jsonl, .json (a list), .tsv or .csv (with a header) or .parquet, with the field
names that the data set has on the hub; the emotion sets (emoint, ec, tec, isear) are lists of {{"instruction", "output"}}.

An adapter is what `iteris merge` reads: a PEFT folder of a LoRA. It answers well only to the prompts of its training; those of
GLUE here are in words of ours, with the published answers (mnli: yes, maybe, no), and --prompt takes others.

Shown are accuracy, (1 + Matthews correlation) / 2 for cola and macro F1 for emotions, as in the paper's table 3; --json has all
metrics. Predictions are kept in --output: the same command goes on where it was stopped.

Exit code 0: scored; 2: something is wrong with the files or settings, and one line says what.
"""

_BLIP_HELP = f"""Score a BLIP captioning model, bare and with each adapter, on captions of a style.

Example:

    iteris eval blip --base Salesforce/blip-image-captioning-base --adapter positive/ --adapter merged/
        --task senticap-positive=positive/test.parquet --task senticap-negative=negative/test.parquet
        --style-classifier captions.jsonl --output scores/

Tasks are {", ".join(CAPTION_TASKS)}. A file is .parquet with "image" and "text" (a caption, or a JSON list of them), or JSON
lines {{"image": "a.png", "references": ["..."]}}, paths relative to the file.

BLEU, ROUGE-L and CIDEr are pycocoevalcap's, on tokens without punctuation, cut by a plain tokenizer after the rules of the Penn
Treebank (pycocoevalcap's own is a Java program). --style-classifier is a folder of a sequence classifier of transformers, or a
file of captions {{"text", "label"}} on which one is trained. --prompt takes the words before a caption that an adapter was
trained with. Exit codes and --output as of `iteris eval t5`.
"""

BaseSetting = Annotated[str, typer.Option(help="The base model: a folder, or a name on the hub.")]
AdapterSetting = Annotated[
    list[Path] | None, typer.Option(help="A PEFT adapter's folder, a row of the table.")
]
TaskSetting = Annotated[list[str], typer.Option(help="NAME=FILE; give it once for every task.")]
OutputSetting = Annotated[Path, typer.Option(help="Folder for the predictions.")]
LimitSetting = Annotated[
    int | None, typer.Option(help="Examples per task, the first ones; all if left out.")
]
BatchSetting = Annotated[int, typer.Option(help="Examples of one call.")]
BeamsSetting = Annotated[int, typer.Option(help="Of the beam search; 1 is greedy.")]
NewTokensSetting = Annotated[int, typer.Option(help="Of an answer, at most.")]
NoBaseSetting = Annotated[
    bool, typer.Option("--no-base", help="Leave the row of the bare base model out.")
]
DtypeSetting = Annotated[
    str, typer.Option(help="In which the base model runs: float32, bfloat16, float16, float64.")
]
DeviceSetting = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")]
OverwriteSetting = Annotated[bool, typer.Option("--overwrite", help="Begin again.")]
ReportSetting = Annotated[
    Path | None, typer.Option("--json", help="Write the scores to this file, as JSON.")
]
_METRICS = {
    "style_accuracy": "style",
    "cider": "CIDEr",
    **{f"bleu_{n}": f"B-{n}" for n in range(1, 5)},
    "rouge_l": "ROUGE-L",
}


@app.command("t5", help=_T5_HELP)
def eval_t5_command(
    base: BaseSetting,
    task: TaskSetting,
    output: OutputSetting,
    adapter: AdapterSetting = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help='NAME=TEXT with field names in braces, such as rte="{sentence1} implies {sentence2}?".'
        ),
    ] = None,
    limit: LimitSetting = None,
    batch: BatchSetting = 8,
    beams: BeamsSetting = 1,
    max_length: Annotated[
        int, typer.Option(help="Tokens of a prompt; what is longer is cut.")
    ] = 256,
    max_new_tokens: NewTokensSetting = 16,
    no_base: NoBaseSetting = False,
    dtype: DtypeSetting = "float32",
    device: DeviceSetting = "cpu",
    overwrite: OverwriteSetting = False,
    report: ReportSetting = None,
) -> None:
    with one_line_errors("iteris eval t5", "eval"):
        run = Run(
            base,
            tuple(adapter or ()),
            output,
            not no_base,
            limit,
            batch,
            dtype_of(dtype),
            device,
            overwrite,
        )
        files = _assigned(task, "--task", TEXT_TASKS)
        read = {"--base": [base], "--adapter": adapter, "--task": files.values()}
        check_places(folders={"--output": output}, files={"--json": report}, inputs=read)
        prompts = _assigned(prompt, "--prompt", TEXT_TASKS)
        tasks = []
        for name, file in files.items():
            definition = replace(
                TEXT_TASKS[name], prompt=prompts.get(name, TEXT_TASKS[name].prompt)
            )
            tasks.append((definition, read_text_task(definition, Path(file))))
        how = Generation(beams, max_new_tokens, max_length)
        quiet_libraries()
        with progress_bars() as progress:
            scores = evaluate_texts(run, tasks, how, progress)
        shown = {definition.name: definition.score for definition, _ in tasks}
        paper = text_figures(shown)
        Console().print(_text_table(scores, shown, paper))
        typer.echo(f"predictions in {output}")
        _write(
            report,
            run,
            scores,
            {"tasks": paper},
            {"generation": asdict(how), "prompts": _prompts(tasks)},
        )


@app.command("blip", help=_BLIP_HELP)
def eval_blip_command(
    base: BaseSetting,
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
    limit: LimitSetting = None,
    batch: BatchSetting = 8,
    beams: BeamsSetting = CAPTIONS.beams,
    max_new_tokens: NewTokensSetting = CAPTIONS.max_new_tokens,
    no_base: NoBaseSetting = False,
    dtype: DtypeSetting = "float32",
    device: DeviceSetting = "cpu",
    overwrite: OverwriteSetting = False,
    report: ReportSetting = None,
) -> None:
    with one_line_errors("iteris eval blip", "eval"):
        run = Run(
            base,
            tuple(adapter or ()),
            output,
            not no_base,
            limit,
            batch,
            dtype_of(dtype),
            device,
            overwrite,
        )
        files = _assigned(task, "--task", CAPTION_TASKS)
        read = {
            "--base": [base],
            "--adapter": adapter,
            "--task": files.values(),
            "--style-classifier": [style_classifier],
        }
        check_places(folders={"--output": output}, files={"--json": report}, inputs=read)
        prompts = _assigned(prompt, "--prompt", CAPTION_TASKS)
        tasks = []
        for name, file in files.items():
            definition = replace(
                CAPTION_TASKS[name], prompt=prompts.get(name, CAPTION_TASKS[name].prompt)
            )
            tasks.append((definition, read_caption_task(Path(file))))
        quiet_libraries()
        styles = _styles(style_classifier, style_label, device)
        how = replace(CAPTIONS, beams=beams, max_new_tokens=max_new_tokens)
        with progress_bars() as progress:
            scores = evaluate_captions(run, tasks, how, styles, progress)
        paper = {definition.name: caption_figures(definition.name) for definition, _ in tasks}
        for name, rows in paper.items():
            Console().print(
                _caption_table(name, [found for found in scores if found.task == name], rows)
            )
        if styles is not None and styles.held_out is not None:
            typer.echo(
                f"the style classifier is right on {styles.held_out:.1%} of the captions that it "
                "was not trained on"
            )
        typer.echo(f"predictions in {output}")
        settings = {"generation": asdict(how), "prompts": _prompts(tasks)}
        _write(
            report,
            run,
            scores,
            paper,
            {**settings, "style_classifier_held_out": styles and styles.held_out},
        )


def _assigned(given: Sequence[str] | None, option: str, known: Mapping[str, Any]) -> dict[str, str]:
    """Return NAME=VALUE options by name."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(
                f"{option} is {text!r}; write a name and a value, such as {next(iter(known))}=..."
            )
        if name not in known:
            raise ConfigError(f"{option} {name!r} is no task; the tasks are {', '.join(known)}")
        if name in found:
            raise ConfigError(
                f"{option} {name!r} is given twice; run the command again for another file"
            )
        found[name] = value
    return found


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
    counts = {found.task: found.examples for found in scores}
    table = Table(
        title=", ".join(f"{task}: {counts[task]} examples" for task in shown), title_justify="left"
    )
    table.add_column("")
    for task, metric in shown.items():
        table.add_column(f"{task}\n{names[metric]}", justify="right")
    table.add_column("mean", justify="right")
    rows = {
        found.row: {s.task: s.values[shown[s.task]] for s in scores if s.row == found.row}
        for found in scores
    }
    for name, values in rows.items():
        table.add_row(name, *_cells(values, shown))
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
    ours = [(found.row, found.values, None) for found in scores]
    theirs = [(f"paper, {row.method} ({row.source})", row.values, "dim") for row in paper]
    for part in (ours, theirs):
        for name, values, style in part:
            table.add_row(
                name,
                *(f"{values[key]:.3f}" if key in values else "" for key in _METRICS),
                style=style,
            )
        table.add_section()
    return table


def _write(
    report: Path | None,
    run: Run,
    scores: Sequence[Scores],
    paper: Mapping[str, Sequence[PaperRow]],
    settings: Mapping[str, Any],
) -> None:
    if report is None:
        return
    adapters = dict(zip(run.row_names(), map(str, run.adapters), strict=True))
    content = {
        "base": run.base,
        "adapters": adapters,
        "dtype": str(run.dtype),
        "limit": run.limit,
        **settings,
        "scores": [asdict(found) for found in scores],
        "paper": {name: [asdict(row) for row in rows] for name, rows in paper.items()},
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
