"""The commands `iteris merge ...`: adapters merged from files into files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import MergeConfig
from ..errors import ConfigError
from ..files import peft
from ..files.pretrained import load_processor, load_tokenizer
from ..language import blip, t5
from ..language.caption_samples import CaptionOptions, CaptionSample, read_images
from ..language.job import PRESERVE_WEIGHT, PeftMergeResult
from ..language.merged_model import check_free as check_model_free
from ..language.merged_model import save_merged_model
from ..language.text_samples import TextOptions, TextSample, read_texts, read_token_ids
from . import options as options
from .merge_sd15 import SD15_HELP, merge_sd15_command
from .options import ModulesOption, PaddingOption, PrecisionOption
from .paths import check_places
from .terminal import dtype_of, one_line_errors, progress_bars, quiet_libraries

app = typer.Typer(no_args_is_help=True, help="Merge adapters into one.")
app.command("sd15", help=SD15_HELP)(merge_sd15_command)

_PRESERVE_WEIGHT_HELP = f"How much --preserve counts; {PRESERVE_WEIGHT} if left out."
PreserveWeightSetting = Annotated[float | None, typer.Option(help=_PRESERVE_WEIGHT_HELP)]

_T5_HELP = """Merge PEFT adapters of a T5, FLAN-T5 or BART into one PEFT adapter.

Every adapter is run on its own samples; the merged one is solved for, layer by layer, so that it does the same.

Example:

    iteris merge t5 --base google/flan-t5-base --output merged/
        --adapter rte/ --samples rte.jsonl
        --adapter mrpc/ --samples mrpc.jsonl

Samples are a text file with one input a line, or JSON lines {"input": ..., "target": ...}. Without targets the decoder reads
what each adapter's own model answers. --preserve takes ordinary inputs in the same format, on which the merged model is to
answer as the base model does.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""

_BLIP_HELP = """Merge PEFT adapters of a BLIP captioning model into one PEFT adapter.

Example:

    iteris merge blip --base Salesforce/blip-image-captioning-base
        --adapter positive/ --images positive.jsonl
        --adapter negative/ --images pictures/ --output merged/

Samples are a folder of pictures, or JSON lines {"image": ..., "caption": ...}. Without captions the decoder reads what each
adapter's own model writes about a picture. --prompt is what an adapter's captions began with in its training, such as "a photo
in a happy and pleasant mood of"; captions that are given are to be without it. --preserve takes ordinary pictures in the same
format, about which the merged model is to write as the base model does. Exit codes as of `iteris merge t5`.
"""


@app.command("t5", help=_T5_HELP)
def merge_t5_command(
    base: options.BaseSetting,
    adapter: options.AdapterSetting,
    output: options.OutputSetting,
    samples: Annotated[
        list[Path] | None, typer.Option(help="An adapter's samples; one per --adapter, in order.")
    ] = None,
    token_ids: Annotated[
        Path | None,
        typer.Option(
            help="A .safetensors with `input_ids` (adapters, samples, length), without padding, "
            "instead of --samples."
        ),
    ] = None,
    preserve: Annotated[
        Path | None, typer.Option(help="Inputs on which the base model is kept as it is.")
    ] = None,
    preserve_weight: PreserveWeightSetting = None,
    method: options.MethodSetting = MergeConfig.method,
    method_option: options.MethodOptionSetting = None,
    alpha: options.AlphaSetting = MergeConfig.alpha,
    engine: options.EngineSetting = options.ENGINE,
    max_iter: options.MaxIterSetting = MergeConfig.max_iter,
    ridge: options.RidgeSetting = options.RIDGE,
    balance: options.BalanceSetting = options.BALANCE,
    target: options.TargetSetting = options.TARGET,
    rank: options.RankSetting = "sum",
    modules: Annotated[
        ModulesOption, typer.Option(help="encoder leaves the decoder out.")
    ] = ModulesOption.all,
    weights: options.WeightsSetting = None,
    input_mix: options.InputMixSetting = 0.0,
    padding: options.PaddingSetting = PaddingOption.ignore,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; what is longer is cut.")] = 256,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of an answer, where samples have no target.")
    ] = 32,
    samples_per_chunk: options.SamplesPerChunkSetting = 8,
    dtype: options.DtypeSetting = PrecisionOption.float32,
    save_dtype: options.SaveDtypeSetting = PrecisionOption.float32,
    device: options.DeviceSetting = "cpu",
    save_model: options.SaveModelSetting = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
) -> None:
    with one_line_errors("iteris merge t5", "language"):
        read = {"--samples": samples, "--token-ids": [token_ids], "--preserve": [preserve]}
        _check_places(
            output, save_model, report, {"--base": [base], "--adapter": adapter, **read}, overwrite
        )
        config = options.merge_config(
            method=method,
            method_option=method_option,
            engine=engine,
            max_iter=max_iter,
            alpha=alpha,
            ridge=ridge,
            balance=balance,
            target=target,
            rank=rank,
            input_mix=input_mix,
            samples_per_chunk=samples_per_chunk,
            save_dtype=save_dtype,
        )
        reading = TextOptions(modules.value, padding.value, max_length, max_new_tokens)
        how = {
            "dtype": dtype_of(dtype.value),
            "device": device,
            **_weights(weights, preserve_weight, preserve),
        }
        tasks = _samples(samples, token_ids)
        kept = _preserved(preserve)
        quiet_libraries()
        with progress_bars() as progress:
            result = t5.merge_t5(
                base, adapter, tasks, config, reading, preserve=kept, progress=progress, **how
            )
        _save(result, output, report, overwrite)
        if save_model:
            _save_model(
                t5.load_base(base, how["dtype"]), result, save_model, load_tokenizer, overwrite
            )


@app.command("blip", help=_BLIP_HELP)
def merge_blip_command(
    base: options.BaseSetting,
    adapter: options.AdapterSetting,
    images: Annotated[
        list[Path],
        typer.Option(help="An adapter's pictures, a folder or JSON lines; one per --adapter."),
    ],
    output: options.OutputSetting,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What captions begin with; one per --adapter, in order, or one for all."),
    ] = None,
    preserve: Annotated[
        Path | None, typer.Option(help="Pictures on which the base model is kept as it is.")
    ] = None,
    preserve_weight: PreserveWeightSetting = None,
    method: options.MethodSetting = MergeConfig.method,
    method_option: options.MethodOptionSetting = None,
    alpha: options.AlphaSetting = MergeConfig.alpha,
    engine: options.EngineSetting = options.ENGINE,
    max_iter: options.MaxIterSetting = MergeConfig.max_iter,
    ridge: options.RidgeSetting = options.RIDGE,
    balance: options.BalanceSetting = options.BALANCE,
    target: options.TargetSetting = options.TARGET,
    rank: options.RankSetting = "sum",
    weights: options.WeightsSetting = None,
    input_mix: options.InputMixSetting = 0.0,
    padding: Annotated[
        PaddingOption,
        typer.Option(
            help="count: fill up to --max-length and count it, as the published code does, with "
            "168."
        ),
    ] = PaddingOption.ignore,
    max_length: Annotated[
        int, typer.Option(help="Tokens of a caption with its prompt; what is longer is cut.")
    ] = CaptionOptions.max_length,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of a caption, where samples have none.")
    ] = CaptionOptions.max_new_tokens,
    samples_per_chunk: options.SamplesPerChunkSetting = 8,
    dtype: options.DtypeSetting = PrecisionOption.float32,
    save_dtype: options.SaveDtypeSetting = PrecisionOption.float32,
    device: options.DeviceSetting = "cpu",
    save_model: options.SaveModelSetting = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
) -> None:
    with one_line_errors("iteris merge blip", "language"):
        read = {
            "--base": [base],
            "--adapter": adapter,
            "--images": images,
            "--preserve": [preserve],
        }
        _check_places(output, save_model, report, read, overwrite)
        config = options.merge_config(
            method=method,
            method_option=method_option,
            engine=engine,
            max_iter=max_iter,
            alpha=alpha,
            ridge=ridge,
            balance=balance,
            target=target,
            rank=rank,
            input_mix=input_mix,
            samples_per_chunk=samples_per_chunk,
            save_dtype=save_dtype,
        )
        reading = CaptionOptions(padding is PaddingOption.count, max_length, max_new_tokens)
        how = {
            "dtype": dtype_of(dtype.value),
            "device": device,
            **_weights(weights, preserve_weight, preserve),
        }
        tasks = _captions(images, prompt)
        kept = read_images(preserve) if preserve else ()
        quiet_libraries()
        with progress_bars() as progress:
            result = blip.merge_blip(
                base, adapter, tasks, config, reading, preserve=kept, progress=progress, **how
            )
        _save(result, output, report, overwrite)
        if save_model:
            _save_model(
                blip.load_base(base, how["dtype"]), result, save_model, load_processor, overwrite
            )


def _check_places(
    output: Path,
    save_model: Path | None,
    report: Path | None,
    inputs: Mapping[str, Sequence[Any] | None],
    overwrite: bool,
) -> None:
    check_places(
        whole={"--output": output, "--save-model": save_model},
        files={"--json": report},
        inputs=inputs,
    )
    peft.check_free(output, overwrite=overwrite)
    if save_model is not None:
        check_model_free(save_model, overwrite=overwrite)


def _weights(
    weights: str | None, preserve_weight: float | None, preserve: Path | None
) -> dict[str, Any]:
    if preserve_weight is not None and preserve is None:
        raise ConfigError(
            "--preserve-weight needs --preserve: the inputs on which the base model is to be kept "
            "as it is"
        )
    kept = PRESERVE_WEIGHT if preserve_weight is None else preserve_weight
    return {"weights": options.numbers("--weights", weights), "preserve_weight": kept}


def _save(result: PeftMergeResult, output: Path, report: Path | None, overwrite: bool) -> None:
    result.save(output, overwrite=overwrite)
    options.tell(result.adapter.name, result.report, output, report)


def _save_model(
    model: Any, result: PeftMergeResult, folder: Path, companion: Any, overwrite: bool
) -> None:
    """Save the whole model, with its tokenizer or processor if there is one beside the base."""
    try:
        companions = [companion(result.base)]
    except ConfigError as error:
        companions = []
        typer.echo(f"{folder} holds the model alone: {error}")
    save_merged_model(model, result.adapter, folder, companions, overwrite=overwrite)
    typer.echo(f"the whole model is in {folder}")


def _captions(images: Sequence[Path], prompts: Sequence[str] | None) -> list[list[CaptionSample]]:
    """Return each adapter's samples, with its prompt."""
    given = list(prompts or [""])
    if len(given) not in (1, len(images)):
        raise ConfigError(
            f"there are {len(images)} --images and {len(given)} --prompt; give one per adapter, or "
            "one for all"
        )
    given = given * len(images) if len(given) == 1 else given
    return [
        [replace(sample, prompt=text) for sample in read_images(path)]
        for path, text in zip(images, given, strict=True)
    ]


def _samples(files: list[Path] | None, token_ids: Path | None) -> list[list[TextSample]]:
    if bool(files) == (token_ids is not None):
        found = "both --samples and --token-ids" if files else "neither --samples nor --token-ids"
        raise ConfigError(
            f"there are {found}; give --samples FILE for every adapter, or --token-ids once"
        )
    return (
        read_token_ids(token_ids) if token_ids is not None else [read_texts(file) for file in files]
    )


def _preserved(file: Path | None) -> list[TextSample]:
    if file is None:
        return []
    if file.suffix == ".safetensors":
        return [sample for task in read_token_ids(file) for sample in task]
    return read_texts(file)
