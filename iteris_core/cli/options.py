"""What the commands `iteris merge ...` have in common: options, settings made of them, and how the
result is told.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..config import BaselineOptions, MergeConfig
from ..errors import ConfigError
from ..report.records import MergeReport
from ..rivals import METHODS
from .terminal import dtype_of


def _choice(name: str, *values: str) -> Any:
    return enum.Enum(name, {value: value for value in values}, type=str)


EngineOption = _choice("EngineOption", "sweep", "iterate")
RidgeOption = _choice("RidgeOption", "consistent", "paper")
BalanceOption = _choice("BalanceOption", "delta", "full", "uniform")
TargetOption = _choice("TargetOption", "full_output", "delta")
ModulesOption = _choice("ModulesOption", "all", "encoder")
PaddingOption = _choice("PaddingOption", "ignore", "count")
StyleOption = _choice("StyleOption", "kohya", "diffusers")
PrecisionOption = _choice("PrecisionOption", "float32", "bfloat16", "float16", "float64")
# The settings' own defaults.
ENGINE = EngineOption(MergeConfig.engine)
RIDGE = RidgeOption(MergeConfig.ridge)
BALANCE = BalanceOption(MergeConfig.balance)
TARGET = TargetOption(MergeConfig.target)

_ITERIS_ONLY = ("engine", "max_iter", "ridge", "input_mix")
_WORDS = {int: "a whole number", float: "a number", str: "a word", NoneType: "none"}

_METHODS_HELP = f"iteris, or a rival: {', '.join(METHODS)}."
_OPTIONS_HELP = (
    f"NAME=VALUE for a rival: {', '.join(item.name for item in fields(BaselineOptions))}."
)

BaseSetting = Annotated[str, typer.Option(help="The base model: a folder, or a name on the hub.")]
AdapterSetting = Annotated[list[Path], typer.Option(help="A PEFT adapter's folder; one or more.")]
OutputSetting = Annotated[Path, typer.Option(help="Folder for the merged adapter.")]
SaveModelSetting = Annotated[
    Path | None, typer.Option(help="Folder for the whole merged model, too.")
]
MethodSetting = Annotated[str, typer.Option(help=_METHODS_HELP)]
MethodOptionSetting = Annotated[list[str] | None, typer.Option(help=_OPTIONS_HELP)]
AlphaSetting = Annotated[
    float, typer.Option(help="Ridge, relative to the size of the inputs' Gram matrix.")
]
EngineSetting = Annotated[EngineOption, typer.Option(help="One sweep, or the paper's iteration.")]
MaxIterSetting = Annotated[int, typer.Option(help="Solves of --engine iterate, at most.")]
RidgeSetting = Annotated[RidgeOption, typer.Option(help="The consistent ridge, or the paper's.")]
BalanceSetting = Annotated[
    BalanceOption, typer.Option(help="Weight of a task; full is the published code's.")
]
TargetSetting = Annotated[
    TargetOption, typer.Option(help="What is fitted: whole outputs, or what adapters add.")
]
RankSetting = Annotated[str, typer.Option(help="Of the merged adapter: a number, sum or full.")]
WeightsSetting = Annotated[
    str | None, typer.Option(help="How much each task counts, such as 1,0.5.")
]
PreserveWeightSetting = Annotated[
    float, typer.Option(help="How much the task counts that keeps the base model as it is.")
]
InputMixSetting = Annotated[
    float, typer.Option(help="Share of the teacher's inputs in the student's, from 0 to below 1.")
]
PaddingSetting = Annotated[
    PaddingOption,
    typer.Option(
        help="count: fill inputs (not targets) up to --max-length and count that, as published."
    ),
]
SamplesPerChunkSetting = Annotated[int, typer.Option(help="Samples in one forward call.")]
DtypeSetting = Annotated[PrecisionOption, typer.Option(help="In which the base model runs.")]
SaveDtypeSetting = Annotated[PrecisionOption, typer.Option(help="Of the merged adapter.")]
DeviceSetting = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")]
OverwriteSetting = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in the way of the output.")
]
ReportSetting = Annotated[
    Path | None, typer.Option("--json", help="Write the report to this file, as JSON.")
]


def merge_config(
    *, rank: str, save_dtype: Any, method_option: Sequence[str] | None, **options: Any
) -> MergeConfig:
    """Return the settings that a command's options mean.

    Args:
        rank: A number, or a word that `MergeConfig` knows.
        save_dtype: Of the merged adapter.
        method_option: ``NAME=VALUE``, of `BaselineOptions`.
        options: Further fields of `MergeConfig`; of a choice, its value is taken.

    Raises:
        ConfigError: A setting out of its range, or an unknown one.
    """
    values = {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in options.items()
    }
    config = MergeConfig(
        rank=int(rank) if rank.isdecimal() else rank,
        output_dtype=dtype_of(save_dtype.value),
        baseline=_baseline_options(method_option or ()),
        **values,
    )
    _check_used(config, bool(method_option))
    return config


def _check_used(config: MergeConfig, method_option: bool) -> None:
    """Refuse what the method or engine would not look at."""
    changed = [name for name in _ITERIS_ONLY if getattr(config, name) != getattr(MergeConfig, name)]
    if config.method != "iteris" and changed:
        option = "--" + changed[0].replace("_", "-")
        raise ConfigError(
            f"{option} is for the method iteris; {config.method} does not use it. Leave it out"
        )
    if config.method == "iteris" and method_option:
        raise ConfigError(
            "--method-option is for rivals; iteris has no such options. Name a rival with "
            "--method, or leave it out"
        )
    if config.engine == "sweep" and config.max_iter != MergeConfig.max_iter:
        raise ConfigError(
            "--max-iter is for --engine iterate; the sweep solves every layer once. Leave it out"
        )


def _baseline_options(texts: Sequence[str]) -> BaselineOptions:
    known = {item.name for item in fields(BaselineOptions)}
    found = {}
    for text in texts:
        name, is_named, value = text.partition("=")
        if not is_named or name not in known:
            raise ConfigError(
                f"--method-option is {text!r}; write NAME=VALUE with one of "
                f"{', '.join(sorted(known))}"
            )
        found[name] = _number_or_word(value)
        kinds = _kinds(get_type_hints(BaselineOptions)[name])
        if type(found[name]) not in kinds and not (float in kinds and isinstance(found[name], int)):
            raise ConfigError(
                f"--method-option is {text!r}; {name} must be "
                f"{' or '.join(_WORDS[kind] for kind in kinds)}"
            )
    return BaselineOptions(**found)


def _kinds(hint: Any) -> list[type]:
    """Return of which types a value may be."""
    if get_origin(hint) is Literal:
        return [str]
    return [kind for part in get_args(hint) for kind in _kinds(part)] or [hint]


def _number_or_word(text: str) -> int | float | str | None:
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def numbers(option: str, text: str | None) -> list[float] | None:
    """Return the numbers of an option such as ``1,0.5``; None if it was not given.

    Raises:
        ConfigError: Something else stands there.
    """
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}; write one number per adapter, such as 1,0.5"
        ) from None


def tell(name: str, report: MergeReport, output: Path, file: Path | None) -> None:
    """Print the report and where the result is, and write the report to a file if one was asked
    for.

    Args:
        name: Of the merged adapter.
        report: Of the merge.
        output: Where the adapter is.
        file: Where the report is to be; None: nowhere.
    """
    typer.echo(str(report))
    typer.echo(f"saved to {output}")
    if file is not None:
        content = {"output": str(output), "adapter": name, **report.to_dict()}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
