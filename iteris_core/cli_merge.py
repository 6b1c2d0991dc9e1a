"""The commands `iteris merge ...`: adapters merged from files into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import cli_options as options
from .cli_merge_sd15 import SD15_HELP, merge_sd15_command
from .cli_options import ModulesOption, PaddingOption, PrecisionOption
from .cli_terminal import dtype_of, one_line_errors, progress_bars, quiet_libraries
from .config import MergeConfig
from .errors import ConfigError
from .families import blip, t5
from .families.base_models import load_processor, load_tokenizer
from .families.merged_model import check_free as check_model_free
from .families.merged_model import save_merged_model
from .families.text_samples import TextOptions, TextSample, read_texts, read_token_ids
from .formats import peft
from .merge import MergeResult

app = typer.Typer(no_args_is_help=True, help="Merge adapters into one.")
app.command("sd15", help=SD15_HELP)(merge_sd15_command)

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
adapter's own model writes about a picture. --preserve takes ordinary pictures in the same format, about which the merged model
is to write as the base model does. Exit codes as of `iteris merge t5`.
"""


@app.command("t5", help=_T5_HELP)
def merge_t5_command(
    base: options.BaseSetting,
    adapter: options.AdapterSetting,
    output: options.OutputSetting,
    samples: Annotated[list[Path] | None, typer.Option(help="An adapter's samples; one per --adapter, in order.")] = None,
    token_ids: Annotated[
        Path | None,
        typer.Option(
            help="A .safetensors with `input_ids` (adapters, samples, length), without padding, instead of --samples."
        ),
    ] = None,
    preserve: Annotated[Path | None, typer.Option(help="Inputs on which the base model is kept as it is.")] = None,
    preserve_weight: options.PreserveWeightSetting = 1.0,
    method: options.MethodSetting = MergeConfig.method,
    method_option: options.MethodOptionSetting = None,
    alpha: options.AlphaSetting = MergeConfig.alpha,
    engine: options.EngineSetting = options.ENGINE,
    max_iter: options.MaxIterSetting = MergeConfig.max_iter,
    ridge: options.RidgeSetting = options.RIDGE,
    balance: options.BalanceSetting = options.BALANCE,
    target: options.TargetSetting = options.TARGET,
    rank: options.RankSetting = "sum",
    modules: Annotated[ModulesOption, typer.Option(help="encoder leaves the decoder out.")] = ModulesOption.all,
    weights: options.WeightsSetting = None,
    input_mix: options.InputMixSetting = 0.0,
    padding: options.PaddingSetting = PaddingOption.ignore,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; what is longer is cut.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer, where samples have no target.")] = 32,
    samples_per_chunk: options.SamplesPerChunkSetting = 8,
    dtype: options.DtypeSetting = PrecisionOption.float32,
    save_dtype: options.SaveDtypeSetting = PrecisionOption.float32,
    device: options.DeviceSetting = "cpu",
    save_model: options.SaveModelSetting = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
) -> None:
    with one_line_errors("iteris merge t5", "language"):
        _check_free(output, save_model, overwrite)
        config = options.merge_config(
            method=method, method_option=method_option, engine=engine, max_iter=max_iter, alpha=alpha, ridge=ridge,
            balance=balance, target=target, rank=rank, input_mix=input_mix, samples_per_chunk=samples_per_chunk,
            save_dtype=save_dtype,
        )  # fmt: skip
        reading = TextOptions(modules.value, padding.value, max_length, max_new_tokens)
        tasks, kept = _samples(samples, token_ids), _preserved(preserve)
        placed = {"dtype": dtype_of(dtype.value), "device": device}
        weighted = {"weights": options.numbers("--weights", weights), "preserve_weight": preserve_weight}
        quiet_libraries()
        with progress_bars() as progress:
            result = t5.merge_t5(base, adapter, tasks, config, reading, preserve=kept, progress=progress, **weighted, **placed)
        if save_model:
            model = t5.load_base(base, placed["dtype"])
            _save_model(model, result, save_model, load_tokenizer, base, overwrite)
        peft.save(result.adapter, output, base, t5.TASK_TYPE, overwrite=overwrite)
        options.tell(result.adapter.name, result.report, output, report)


@app.command("blip", help=_BLIP_HELP)
def merge_blip_command(
    base: options.BaseSetting,
    adapter: options.AdapterSetting,
    images: Annotated[list[Path], typer.Option(help="An adapter's pictures, a folder or JSON lines; one per --adapter.")],
    output: options.OutputSetting,
    preserve: Annotated[Path | None, typer.Option(help="Pictures on which the base model is kept as it is.")] = None,
    preserve_weight: options.PreserveWeightSetting = 1.0,
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
    padding: options.PaddingSetting = PaddingOption.ignore,
    samples_per_chunk: options.SamplesPerChunkSetting = 8,
    dtype: options.DtypeSetting = PrecisionOption.float32,
    save_dtype: options.SaveDtypeSetting = PrecisionOption.float32,
    device: options.DeviceSetting = "cpu",
    save_model: options.SaveModelSetting = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
) -> None:
    with one_line_errors("iteris merge blip", "language"):
        _check_free(output, save_model, overwrite)
        config = options.merge_config(
            method=method, method_option=method_option, engine=engine, max_iter=max_iter, alpha=alpha, ridge=ridge,
            balance=balance, target=target, rank=rank, input_mix=input_mix, samples_per_chunk=samples_per_chunk,
            save_dtype=save_dtype,
        )  # fmt: skip
        tasks, kept = [blip.read_images(path) for path in images], blip.read_images(preserve) if preserve else ()
        placed = {"dtype": dtype_of(dtype.value), "device": device, "count_padding": padding is PaddingOption.count}
        weighted = {"weights": options.numbers("--weights", weights), "preserve_weight": preserve_weight}
        quiet_libraries()
        with progress_bars() as progress:
            result = blip.merge_blip(base, adapter, tasks, config, preserve=kept, progress=progress, **weighted, **placed)
        if save_model:
            model = blip.load_base(base, placed["dtype"])
            _save_model(model, result, save_model, load_processor, base, overwrite)
        peft.save(result.adapter, output, base, None, overwrite=overwrite)
        options.tell(result.adapter.name, result.report, output, report)


def _check_free(output: Path, save_model: Path | None, overwrite: bool) -> None:
    peft.check_free(output, overwrite=overwrite)
    if save_model is not None:
        if save_model.resolve() == output.resolve():
            raise ConfigError(f"--save-model and --output are both {output}; give each a folder of its own")
        check_model_free(save_model, overwrite=overwrite)


def _save_model(model: Any, result: MergeResult, folder: Path, companion: Any, base: str, overwrite: bool) -> None:
    """Save the whole model, with its tokenizer or processor if there is one beside the base."""
    try:
        companions = [companion(base)]
    except ConfigError as error:
        companions = []
        typer.echo(f"{folder} holds the model alone: {error}")
    save_merged_model(model, result.adapter, folder, companions, overwrite=overwrite)
    typer.echo(f"the whole model is in {folder}")


def _samples(files: list[Path] | None, token_ids: Path | None) -> list[list[TextSample]]:
    if bool(files) == (token_ids is not None):
        found = "both --samples and --token-ids" if files else "neither --samples nor --token-ids"
        raise ConfigError(f"there are {found}; give --samples FILE for every adapter, or --token-ids once")
    return read_token_ids(token_ids) if token_ids is not None else [read_texts(file) for file in files]


def _preserved(file: Path | None) -> list[TextSample]:
    if file is None:
        return []
    if file.suffix == ".safetensors":
        return [sample for task in read_token_ids(file) for sample in task]
    return read_texts(file)
