"""The commands `iteris merge ...`: adapters of language models, merged from files into files."""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .config import MergeConfig
from .errors import ConfigError, IterisError
from .families import blip, t5
from .families.text_samples import TextOptions, TextSample, read_texts, read_token_ids
from .formats import peft
from .merge import MergeResult

app = typer.Typer(no_args_is_help=True, help="Merge adapters into one.")

_T5_HELP = """Merge PEFT adapters of a T5, FLAN-T5 or BART into one PEFT adapter.

Every adapter is run on its own samples; the merged one is solved for, layer by layer, so that it does the same.

Example:

    iteris merge t5 --base google/flan-t5-base --output merged/
        --adapter rte/ --samples rte.jsonl
        --adapter mrpc/ --samples mrpc.jsonl

Samples are a text file with one input a line, or JSON lines {"input": ..., "target": ...}. Without targets the decoder reads
what each adapter's own model answers.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""

_BLIP_HELP = """Merge PEFT adapters of a BLIP captioning model into one PEFT adapter.

Example:

    iteris merge blip --base Salesforce/blip-image-captioning-base
        --adapter positive/ --images positive.jsonl
        --adapter negative/ --images pictures/ --output merged/

Samples are a folder of pictures, or JSON lines {"image": ..., "caption": ...}. Without captions the decoder reads what each
adapter's own model writes about a picture. Exit codes as of `iteris merge t5`.
"""


def _choice(name: str, *values: str) -> Any:
    return enum.Enum(name, {value: value for value in values}, type=str)


EngineOption = _choice("EngineOption", "sweep", "iterate")
RidgeOption = _choice("RidgeOption", "consistent", "paper")
BalanceOption = _choice("BalanceOption", "delta", "full", "uniform")
TargetOption = _choice("TargetOption", "delta", "full_output")
ModulesOption = _choice("ModulesOption", "all", "encoder")
PaddingOption = _choice("PaddingOption", "ignore", "count")
PrecisionOption = _choice("PrecisionOption", "float32", "bfloat16", "float16", "float64")


# What the commands have in common.
BaseSetting = Annotated[str, typer.Option(help="The base model: a folder, or a name on the hub.")]
AdapterSetting = Annotated[list[Path], typer.Option(help="A PEFT adapter's folder; give it twice or more.")]
OutputSetting = Annotated[Path, typer.Option(help="Folder for the merged adapter.")]
AlphaSetting = Annotated[float, typer.Option(help="Ridge, relative to the size of the inputs' Gram matrix.")]
EngineSetting = Annotated[EngineOption, typer.Option(help="One sweep, or the paper's iteration.")]
MaxIterSetting = Annotated[int, typer.Option(help="Solves of --engine iterate, at most.")]
RidgeSetting = Annotated[RidgeOption, typer.Option(help="The consistent ridge, or the paper's.")]
BalanceSetting = Annotated[BalanceOption, typer.Option(help="Weight of a task; full is the published code's.")]
TargetSetting = Annotated[TargetOption, typer.Option(help="What is fitted: deltas, or whole outputs.")]
RankSetting = Annotated[str, typer.Option(help="Of the merged adapter: a number, sum or full.")]
WeightsSetting = Annotated[str | None, typer.Option(help="How much each task counts, such as 1,0.5.")]
InputMixSetting = Annotated[float, typer.Option(help="Share of the teacher's inputs in the student's, 0 to 1.")]
PaddingSetting = Annotated[PaddingOption, typer.Option(help="count: as the published code does.")]
SamplesPerChunkSetting = Annotated[int, typer.Option(help="Samples in one forward call.")]
DtypeSetting = Annotated[PrecisionOption, typer.Option(help="In which the base model runs.")]
SaveDtypeSetting = Annotated[PrecisionOption, typer.Option(help="Of the merged adapter.")]
DeviceSetting = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")]
OverwriteSetting = Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in --output.")]
ReportSetting = Annotated[Path | None, typer.Option("--json", help="Write the report to this file, as JSON.")]


@app.command("t5", help=_T5_HELP)
def merge_t5_command(
    base: BaseSetting,
    adapter: AdapterSetting,
    output: OutputSetting,
    samples: Annotated[list[Path] | None, typer.Option(help="An adapter's samples; one per --adapter, in order.")] = None,
    token_ids: Annotated[
        Path | None,
        typer.Option(
            help="A .safetensors with `input_ids` (adapters, samples, length), without padding, instead of --samples."
        ),
    ] = None,
    alpha: AlphaSetting = 1e-4,
    engine: EngineSetting = EngineOption.sweep,
    max_iter: MaxIterSetting = 20,
    ridge: RidgeSetting = RidgeOption.consistent,
    balance: BalanceSetting = BalanceOption.delta,
    target: TargetSetting = TargetOption.delta,
    rank: RankSetting = "sum",
    modules: Annotated[ModulesOption, typer.Option(help="encoder leaves the decoder out.")] = ModulesOption.all,
    weights: WeightsSetting = None,
    input_mix: InputMixSetting = 0.0,
    padding: PaddingSetting = PaddingOption.ignore,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; what is longer is cut.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer, where samples have no target.")] = 32,
    samples_per_chunk: SamplesPerChunkSetting = 8,
    dtype: DtypeSetting = PrecisionOption.float32,
    save_dtype: SaveDtypeSetting = PrecisionOption.float32,
    device: DeviceSetting = "cpu",
    overwrite: OverwriteSetting = False,
    report: ReportSetting = None,
) -> None:
    with one_line_errors("iteris merge t5"):
        peft.check_free(output, overwrite=overwrite)
        config = _config(engine, max_iter, alpha, ridge, balance, target, rank, input_mix, samples_per_chunk, save_dtype)
        options = TextOptions(modules.value, padding.value, max_length, max_new_tokens)
        tasks = _samples(samples, token_ids)
        placed = {"dtype": _dtype(dtype), "device": device, "weights": _weights(weights)}
        _quiet_transformers()
        with _progress() as progress:
            result = t5.merge_t5(base, adapter, tasks, config, options, progress=progress, **placed)
        peft.save(result.adapter, output, base, t5.TASK_TYPE, overwrite=overwrite)
        _tell(result, output, report)


@app.command("blip", help=_BLIP_HELP)
def merge_blip_command(
    base: BaseSetting,
    adapter: AdapterSetting,
    images: Annotated[list[Path], typer.Option(help="An adapter's pictures, a folder or JSON lines; one per --adapter.")],
    output: OutputSetting,
    alpha: AlphaSetting = 1e-4,
    engine: EngineSetting = EngineOption.sweep,
    max_iter: MaxIterSetting = 20,
    ridge: RidgeSetting = RidgeOption.consistent,
    balance: BalanceSetting = BalanceOption.delta,
    target: TargetSetting = TargetOption.delta,
    rank: RankSetting = "sum",
    weights: WeightsSetting = None,
    input_mix: InputMixSetting = 0.0,
    padding: PaddingSetting = PaddingOption.ignore,
    samples_per_chunk: SamplesPerChunkSetting = 8,
    dtype: DtypeSetting = PrecisionOption.float32,
    save_dtype: SaveDtypeSetting = PrecisionOption.float32,
    device: DeviceSetting = "cpu",
    overwrite: OverwriteSetting = False,
    report: ReportSetting = None,
) -> None:
    with one_line_errors("iteris merge blip"):
        peft.check_free(output, overwrite=overwrite)
        config = _config(engine, max_iter, alpha, ridge, balance, target, rank, input_mix, samples_per_chunk, save_dtype)
        tasks = [blip.read_images(path) for path in images]
        placed = {"dtype": _dtype(dtype), "device": device, "weights": _weights(weights)}
        _quiet_transformers()
        with _progress() as progress:
            count = padding is PaddingOption.count
            result = blip.merge_blip(base, adapter, tasks, config, count_padding=count, progress=progress, **placed)
        peft.save(result.adapter, output, base, None, overwrite=overwrite)
        _tell(result, output, report)


@contextlib.contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Turn what a user's files and settings can cause into one line on stderr and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f'{command}: needs {error.name}; install it with pip install "iteris-lora-merge[language]"', err=True)
        raise typer.Exit(2) from None
    except (IterisError, OSError) as error:
        typer.echo(f"{command}: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None


def _config(
    engine: Any,
    max_iter: int,
    alpha: float,
    ridge: Any,
    balance: Any,
    target: Any,
    rank: str,
    input_mix: float,
    samples_per_chunk: int,
    save_dtype: Any,
) -> MergeConfig:
    return MergeConfig(
        engine=engine.value,
        max_iter=max_iter,
        alpha=alpha,
        ridge=ridge.value,
        balance=balance.value,
        target=target.value,
        rank=_rank(rank),
        input_mix=input_mix,
        samples_per_chunk=samples_per_chunk,
        output_dtype=_dtype(save_dtype),
    )


def _rank(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _dtype(option: Any) -> torch.dtype:
    return getattr(torch, option.value)


def _weights(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights is {text!r}; write one number per adapter, such as 1,0.5") from None


def _samples(files: list[Path] | None, token_ids: Path | None) -> list[list[TextSample]]:
    if bool(files) == (token_ids is not None):
        found = "both --samples and --token-ids" if files else "neither --samples nor --token-ids"
        raise ConfigError(f"there are {found}; give --samples FILE for every adapter, or --token-ids once")
    return read_token_ids(token_ids) if token_ids is not None else [read_texts(file) for file in files]


def _quiet_transformers() -> None:
    """Keep the loading bars of transformers off the terminal: there is one bar, ours, and errors are one line."""
    with contextlib.suppress(ImportError):  # said where it is needed
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar per stage on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        stages: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total)
            bars.update(stages[stage], completed=done, total=total)

        yield tell


def _tell(result: MergeResult, output: Path, report: Path | None) -> None:
    typer.echo(str(result.report))
    typer.echo(f"saved to {output}")
    if report is not None:
        content = {"output": str(output), "adapter": result.adapter.name, **result.report.to_dict()}
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
