"""The command `python -m benchmarks.paper sd15`: concepts of LoRAs in one picture, as in the paper's table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from iteris_core.cli import options
from iteris_core.cli.options import Placement
from iteris_core.cli.paths import Places
from iteris_core.cli.terminal import as_cell, progress_bars, quiet_libraries
from iteris_core.errors import ConfigError

from .drawing import Sampling
from .figures import PaperRow, picture_figures
from .language import Scores
from .pictures import (
    PROMPTS,
    VIT_L,
    Concept,
    PictureRun,
    evaluate_pictures,
    read_prompts,
)

SD15_HELP = """Draw the concepts of LoRAs together in one picture, and let CLIP judge the pictures.

Example:

    python -m benchmarks.paper sd15 --base sd15.safetensors --output pictures/ --device cuda
        --lora merged.safetensors --lora stacked.safetensors
        --concept pot=photos/pot --words "pot=a <v1> pot"
        --concept teddybear=photos/teddybear --words "teddybear=a <v2> teddybear"

By default this is the paper's protocol: 8 prompts x 50 pictures of 512 x 512, DDPM with 100 \
steps, guidance 12; on a CPU that takes days. Image alignment is the mean cosine of CLIP \
(ViT-L/14) between pictures and a concept's photos. Text alignment is CLIPScore, 2.5 max(cos, 0), \
with the prompt in ordinary words. The prompts are ours, in the paper's number; --prompts takes \
others.

Pictures are kept in --output: the same command goes on where it was stopped.

Exit code 0: scored; 2: something is wrong with the files or settings, and one line says what.
"""


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
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    lora: Annotated[
        list[Path] | None, typer.Option(help="A LoRA file, a row of the table.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(help='NAME=WORDS for the concept in prompts; "a NAME" if left out.'),
    ] = None,
    embedding: Annotated[
        list[Path] | None,
        typer.Option(help="Learned tokens (textual inversion) that the words use."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="For a checkpoint: a folder with its settings; SD1.5's if left out."),
    ] = None,
    clip: Annotated[
        str, typer.Option(help="The judge: a CLIP model's folder, or its name on the hub.")
    ] = VIT_L,
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one prompt a line, with {concepts} in it.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures of one call.")] = PictureRun.batch,
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Leave the row of the bare base model out.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file, as JSON.")
    ] = None,
    sampling: Sampling,
    placement: Placement,
) -> None:
    files = tuple(lora or ())
    learned = tuple(embedding or ())
    run = PictureRun(
        base,
        files,
        output,
        with_base=not no_base,
        config=config,
        embeddings=learned,
        clip=clip,
        batch=batch,
        dtype=placement.dtype,
        device=placement.device,
    )
    inputs = {"--base": [base], "--lora": files, "--embedding": learned, "--prompts": [prompts]}
    Places(folders={"--output": output}, files={"--json": report}, inputs=inputs).check()
    told = options.ReportFile(report)
    told.check()
    concepts = _concepts(concept, words)
    templates = PROMPTS if prompts is None else read_prompts(prompts)
    quiet_libraries()
    with progress_bars() as progress:
        scores = evaluate_pictures(run, concepts, sampling, templates, progress)
    paper = picture_figures([one.name for one in concepts])
    Console().print(_table(concepts, scores, paper))
    typer.echo(f"pictures in {output}")
    content = {
        "base": base,
        "loras": {file.stem: str(file) for file in files},
        "clip": clip,
        "sampling": asdict(sampling),
        "prompts": list(templates),
        "concepts": {one.name: one.in_prompts for one in concepts},
        "scores": [asdict(entry) for entry in scores],
        "paper": [asdict(row) for row in paper],
    }
    told.write(content)


def _concepts(texts: Sequence[str], words: Sequence[str] | None) -> list[Concept]:
    words_of = dict(_split(text, "--words", 'pot="a <v1> pot"') for text in words or ())
    concepts = [
        Concept(name, Path(folder), words_of.pop(name, None))
        for name, folder in (_split(text, "--concept", "pot=photos/pot") for text in texts)
    ]
    if words_of:
        raise ConfigError(
            f"--words {next(iter(words_of))!r} is not a --concept; the concepts are "
            f"{', '.join(c.name for c in concepts)}"
        )
    return concepts


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name.strip() or not value.strip():
        raise ConfigError(f"{option} is {text!r}; write a name and a value, such as {example}")
    return name.strip(), value.strip()


def _table(
    concepts: Sequence[Concept], scores: Sequence[Scores], paper: Sequence[PaperRow]
) -> Table:
    metrics = {
        f"image_{number}": f"image\n{concept.name}" for number, concept in enumerate(concepts, 1)
    } | {"text": "text"}
    table = Table(title=f"{scores[0].examples} pictures a row", title_justify="left")
    table.add_column("")
    for heading in metrics.values():
        table.add_column(heading, justify="right")
    for entry in scores:
        table.add_row(as_cell(entry.row), *(f"{entry.values[metric]:.3f}" for metric in metrics))
    table.add_section()
    for row in paper:
        table.add_row(
            f"paper, {row.method} ({row.source})",
            *(f"{row.values[metric]:.3f}" for metric in metrics),
            style="dim",
        )
    return table
