"""The commands `python -m benchmarks.paper`: the paper's tasks, next to its figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iteris_core.cli import options
from iteris_core.cli.options import Placement
from iteris_core.cli.terminal import progress_bars, quiet_libraries
from iteris_core.errors import ConfigError, plain

from .drawing import Sampling
from .figures import PaperRow, caption_figures, picture_figures, text_figures
from .language import Extent, Run, Scores, evaluate_captions, evaluate_texts
from .language_tasks import CAPTION_TASKS, TEXT_TASKS, read_caption_task, read_text_task
from .pictures import PROMPTS, VIT_L, Concept, PictureRun, evaluate_pictures
from .style_classifiers import train_style_classifier
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
paper's table 3; scores.json has all metrics. Predictions are kept in --output: the same command goes \
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
--style-classifier is a file of captions {{"text", "label"}} on which one is trained. --prompt takes the words before a caption with which \
an adapter was trained. Predictions are kept in --output: the same command goes on where it was \
stopped.

Exit code 0: scored; 2: something is wrong with the files or settings, and one line says what.
"""

SD15_HELP = """Draw the concepts of LoRAs together in one picture, and let CLIP judge the pictures.

Example:

    python -m benchmarks.paper sd15 --base sd15.safetensors --output pictures/ --device cuda
        --lora merged.safetensors --lora stacked.safetensors
        --concept pot=photos/pot --words "pot=a <v1> pot"
        --concept teddybear=photos/teddybear --words "teddybear=a <v2> teddybear"

By default this is the paper's protocol: 8 prompts x 50 pictures of 512 x 512, DDPM with 100 \
steps, guidance 12; on a CPU that takes days. Image alignment is the mean cosine of CLIP \
(ViT-L/14) between pictures and a concept's photos. Text alignment is CLIPScore, 2.5 max(cos, 0), \
with the prompt in ordinary words. The prompts are ours, in the paper's number.

Pictures are kept in --output: the same command goes on where it was stopped.

Exit code 0: scored; 2: something is wrong with the files or settings, and one line says what.
"""

AdapterSetting = Annotated[
    list[Path] | None, typer.Option(help="A PEFT adapter's folder, a row of the table.")
]
TaskSetting = Annotated[list[str], typer.Option(help="NAME=FILE; give it once for every task.")]
SCORES = "scores.json"  # in the output, with all metrics
OutputSetting = Annotated[Path, typer.Option(help="Folder for what is made.")]
_TEXT_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "scaled_matthews": "(1 + MCC) / 2",
}
_CAPTION_METRICS = {
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
    extent: Extent,
    generation: Generation,
    placement: Placement,
) -> None:
    run = Run(base, tuple(adapter or ()), output, extent, placement.dtype, placement.device)
    files = assigned(task, "--task", TEXT_TASKS)
    prompts = assigned(prompt, "--prompt", TEXT_TASKS)
    tasks = []
    for name, file in files.items():
        definition = replace(TEXT_TASKS[name], prompt=prompts.get(name, TEXT_TASKS[name].prompt))
        tasks.append((definition, read_text_task(definition, Path(file))))
    quiet_libraries()
    with progress_bars() as progress:
        scores = evaluate_texts(run, tasks, generation, progress)
    shown = {definition.name: definition.score for definition, _ in tasks}
    paper = text_figures(list(shown))
    counts = {entry.task: f"{entry.task}: {entry.examples} examples" for entry in scores}
    rows = {
        entry.row: {one.task: one.values[shown[one.task]] for one in scores if one.row == entry.row}
        for entry in scores
    }
    heads = {task: f"{task}\n{_TEXT_METRICS[metric]}" for task, metric in shown.items()}
    _print_table(", ".join(counts.values()), heads, rows, paper, with_mean=True)
    typer.echo(f"predictions in {output}")
    settings = {"generation": asdict(generation), "prompts": _prompts(tasks)}
    _write_report(run, scores, {"tasks": paper}, settings)


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
        Path | None, typer.Option(help="A file of captions and their styles, to learn from.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="NAME=TEXT that captions of a task begin with.")
    ] = None,
    extent: Extent,
    generation: Generation,
    placement: Placement,
) -> None:
    run = Run(base, tuple(adapter or ()), output, extent, placement.dtype, placement.device)
    files = assigned(task, "--task", CAPTION_TASKS)
    prompts = assigned(prompt, "--prompt", CAPTION_TASKS)
    tasks = []
    for name, file in files.items():
        definition = replace(
            CAPTION_TASKS[name], prompt=prompts.get(name, CAPTION_TASKS[name].prompt)
        )
        tasks.append((definition, read_caption_task(Path(file))))
    quiet_libraries()
    styles = None if style_classifier is None else train_style_classifier(style_classifier)
    with progress_bars() as progress:
        scores = evaluate_captions(run, tasks, generation, styles, progress)
    paper = {definition.name: caption_figures(definition.name) for definition, _ in tasks}
    for name, rows in paper.items():
        of_task = {entry.row: entry.values for entry in scores if entry.task == name}
        count = next(entry.examples for entry in scores if entry.task == name)
        _print_table(f"{name}, {count} pictures", _CAPTION_METRICS, of_task, rows)
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
    _write_report(run, scores, paper, settings)


@options.command(
    "python -m benchmarks.paper sd15", "paper", sampling=Sampling(), placement=Placement()
)
def eval_sd15_command(
    *,
    base: Annotated[
        str,
        typer.Option(
            help="Stable Diffusion 1.5: a diffusers folder, a .safetensors, or a name on the hub."
        ),
    ],
    concept: Annotated[
        list[str],
        typer.Option(help="NAME=FOLDER with photos; one per concept, in the prompts' order."),
    ],
    output: OutputSetting,
    lora: Annotated[
        list[Path] | None, typer.Option(help="A LoRA file, a row of the table.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(help='NAME=WORDS for the concept in prompts; "a NAME" if left out.'),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="For a checkpoint: a folder with its settings; SD1.5's if left out."),
    ] = None,
    clip: Annotated[
        str, typer.Option(help="The judge: a CLIP model's folder, or its name on the hub.")
    ] = VIT_L,
    batch: Annotated[int, typer.Option(help="Pictures of one call.")] = PictureRun.batch,
    sampling: Sampling,
    placement: Placement,
) -> None:
    files = tuple(lora or ())
    run = PictureRun(
        base,
        files,
        output,
        config=config,
        clip=clip,
        batch=batch,
        dtype=placement.dtype,
        device=placement.device,
    )
    concepts = concepts_of(concept, words)
    quiet_libraries()
    with progress_bars() as progress:
        scores = evaluate_pictures(run, concepts, sampling, progress)
    paper = picture_figures([one.name for one in concepts])
    heads = {f"image_{n}": f"image\n{one.name}" for n, one in enumerate(concepts, 1)}
    rows = {entry.row: entry.values for entry in scores}
    title = f"{scores[0].examples} pictures a row"
    _print_table(title, {**heads, "text": "text"}, rows, paper)
    typer.echo(f"pictures in {output}")
    content = {
        "base": base,
        "loras": {file.stem: str(file) for file in files},
        "clip": clip,
        "sampling": asdict(sampling),
        "prompts": PROMPTS,
        "concepts": {one.name: one.in_prompts for one in concepts},
        "scores": [asdict(entry) for entry in scores],
        "paper": [asdict(row) for row in paper],
    }
    options.write_report(content, output / SCORES, overwrite=True)


def assigned(
    texts: Sequence[str] | None, option: str, known: Collection[str] | None = None
) -> dict[str, str]:
    """Return NAME=VALUE options by name, or raise `ConfigError`."""
    values: dict[str, str] = {}
    for text in texts or ():
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise ConfigError(f"{option} is {text!r}; write NAME=VALUE")
        if known is not None and name not in known:
            raise ConfigError(f"{option} {name!r} is not known; give one of {', '.join(known)}")
        if name in values:
            raise ConfigError(
                f"{option} {name!r} is given twice; run the command again for another"
            )
        values[name] = value
    return values


def concepts_of(texts: Sequence[str], words: Sequence[str] | None) -> list[Concept]:
    folders = assigned(texts, "--concept")
    words_of = assigned(words, "--words", folders)
    return [Concept(name, Path(at), words_of.get(name)) for name, at in folders.items()]


def _prompts(tasks: Sequence[tuple[Any, Any]]) -> dict[str, str]:
    return {definition.name: definition.prompt for definition, _ in tasks}


def _print_table(
    title: str,
    heads: Mapping[str, str],
    rows: Mapping[str, Mapping[str, float]],
    paper: Sequence[PaperRow],
    *,
    with_mean: bool = False,
) -> None:
    """Print scores, and the paper's below them.

    Args:
        title: Title of the table.
        heads: Score -> heading of its column.
        rows: Name of a row -> its scores.
        paper: The paper's rows.
        with_mean: Whether the last column is the mean of the others.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for head in [*heads.values(), *(["mean"] if with_mean else [])]:
        table.add_column(head, justify="right")

    def cells(values: Mapping[str, float]) -> list[str]:
        found = [f"{values[key]:.3f}" if key in values else "" for key in heads]
        if with_mean:
            found.append(f"{fmean(values[key] for key in heads):.3f}" if all(found) else "")
        return found

    for name, values in rows.items():
        table.add_row(Text(plain(name)), *cells(values))  # not markup
    table.add_section()
    for row in paper:
        table.add_row(f"paper, {row.method} ({row.source})", *cells(row.values), style="dim")
    Console().print(table)


def _write_report(
    run: Run,
    scores: Sequence[Scores],
    paper: Mapping[str, Sequence[PaperRow]],
    settings: Mapping[str, Any],
) -> None:
    content = {
        "base": run.base,
        "adapters": {name: str(folder) for name, folder in run.rows.items()},
        "dtype": str(run.dtype),
        "limit": run.extent.limit,
        **settings,
        "scores": [asdict(entry) for entry in scores],
        "paper": {name: [asdict(row) for row in rows] for name, rows in paper.items()},
    }
    options.write_report(content, run.output / SCORES, overwrite=True)
