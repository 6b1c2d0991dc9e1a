"""The command `iteris eval sd15`: concepts of LoRAs in one picture, as the paper's table 1 has
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from ..evaluation.drawing import Sampling
from ..evaluation.language import Scores
from ..evaluation.paper_figures import PaperRow, picture_figures
from ..evaluation.pictures import (
    PROMPTS,
    VIT_L,
    Concept,
    PictureRun,
    evaluate_pictures,
    read_prompts,
)
from .paths import check_places
from .terminal import dtype_of, one_line_errors, progress_bars, quiet_libraries

SD15_HELP = """Draw the concepts of LoRAs together in one picture, and let CLIP say how much of each is there.

Example:

    iteris eval sd15 --base sd15.safetensors --lora merged.safetensors --lora stacked.safetensors
        --concept pot=photos/pot --words "pot=a <v1> pot"
        --concept teddybear=photos/teddybear --words "teddybear=a <v2> teddybear" --output pictures/ --device cuda

The paper's protocol, by default: 8 prompts x 50 pictures of 512 x 512, DDPM with 100 steps, guidance 12; on a CPU that takes
days. Image alignment is the mean cosine of CLIP (ViT-L/14) between pictures and a concept's photos, text alignment CLIPScore,
2.5 max(cos, 0), with the prompt in ordinary words. The prompts are ours, in the paper's number; --prompts takes others.

Pictures are kept in --output: the same command goes on where it was stopped. Exit codes as of `iteris eval t5`.
"""


def eval_sd15_command(
    base: Annotated[
        str,
        typer.Option(
            help="Stable Diffusion 1.5: a diffusers folder, a .safetensors, a name on the hub."
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
        list[str] | None, typer.Option(help='NAME=WORDS of the prompts; "a NAME" if left out.')
    ] = None,
    embedding: Annotated[
        list[Path] | None,
        typer.Option(help="Learned tokens (textual inversion) that the words use."),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="For a checkpoint: a folder with its settings; else SD1.5's.")
    ] = None,
    clip: Annotated[
        str, typer.Option(help="The judge: a CLIP model's folder, or its name on the hub.")
    ] = VIT_L,
    prompts: Annotated[
        Path | None, typer.Option(help="One prompt a line, with {concepts} in it.")
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures per prompt.")] = 50,
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = 100,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 12.0,
    size: Annotated[int, typer.Option(help="Side of a picture, in pixels.")] = 512,
    scheduler: Annotated[str, typer.Option(help="ddpm, or model for the model's own.")] = "ddpm",
    seed: Annotated[int, typer.Option(help="Pictures of all rows begin with the same noise.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures of one call.")] = 4,
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Leave the row of the bare base model out.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="In which the base model runs: float32, bfloat16, float16, float64.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file, as JSON.")
    ] = None,
) -> None:
    with one_line_errors("iteris eval sd15", "eval"):
        sampling = Sampling(count, steps, guidance, size, scheduler, seed)
        files = tuple(lora or ())
        learned = tuple(embedding or ())
        kind = dtype_of(dtype)
        run = PictureRun(
            base, files, output, not no_base, config, learned, clip, batch, kind, device
        )
        read = {"--base": [base], "--lora": files, "--embedding": learned, "--prompts": [prompts]}
        check_places(folders={"--output": output}, files={"--json": report}, inputs=read)
        concepts = _concepts(concept, words)
        templates = PROMPTS if prompts is None else read_prompts(prompts)
        quiet_libraries()
        with progress_bars() as progress:
            scores = evaluate_pictures(run, concepts, sampling, templates, progress)
        paper = picture_figures([one.name for one in concepts])
        Console().print(_table(concepts, scores, paper))
        typer.echo(f"pictures in {output}")
        if report is not None:
            content = {
                "base": base,
                "loras": {file.stem: str(file) for file in files},
                "clip": clip,
                "sampling": asdict(sampling),
                "prompts": list(templates),
                "concepts": {one.name: one.in_prompts for one in concepts},
                "scores": [asdict(found) for found in scores],
                "paper": [asdict(row) for row in paper],
            }
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _concepts(given: Sequence[str], words: Sequence[str] | None) -> list[Concept]:
    called = dict(_split(text, "--words", 'pot="a <v1> pot"') for text in words or ())
    concepts = [
        Concept(name, Path(folder), called.pop(name, None))
        for name, folder in (_split(text, "--concept", "pot=photos/pot") for text in given)
    ]
    if called:
        raise ConfigError(
            f"--words {next(iter(called))!r} is no --concept; the concepts are "
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
    for found in scores:
        table.add_row(found.row, *(f"{found.values[metric]:.3f}" for metric in metrics))
    table.add_section()
    for row in paper:
        table.add_row(
            f"paper, {row.method} ({row.source})",
            *(f"{row.values[metric]:.3f}" for metric in metrics),
            style="dim",
        )
    return table
