"""What the commands `iteris ...` have in common: options made of settings, and the report."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_origin

import torch
import typer
from pydantic import Field
from pydantic.fields import FieldInfo

from ..errors import plain
from ..files.writing import under_free_name, write_text
from ..merging import MergeResult
from ..processes import Processes
from ..settings import (
    Precision,
    alternatives,
    declared,
    from_text,
    labelled,
    schema_of,
    settings,
    words_of,
)
from ..version import __version__
from .terminal import one_line_errors
from .torchrun import started_processes

Body = Callable[..., None]
# What the user typed, name of a parameter -> settings; returns the settings to start from.
Start = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
# Settings of merges that are options, nearly all in the node Merge settings, too; the others are
# set in the library and in recipes.
OF_MERGES = (
    *("trajectories", "resolution", "sampling_steps", "cfg", "negative_prompt", "seed"),
    *("preserve_weight", "preserve_captions", "unconditional_share", "composition_share"),
    *("scene_weight", "scene_forms", "rank", "kept_energy", "output_dtype", "method", "target"),
    *("unit_gain", "alpha", "polish", "max_length", "max_new_tokens"),
    *("dtype", "device"),
)

BaseSetting = Annotated[
    str, typer.Option(help="The base model: a folder, or a name on the Hugging Face hub.")
]
OverwriteSetting = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output that is there.")
]
ReportSetting = Annotated[Path | None, typer.Option("--json", help="File for the report, as JSON.")]


@settings
class Placement:
    """Where the base model runs."""

    dtype: Annotated[Precision, Field(description="Precision of the base model.")] = torch.float32
    device: Annotated[str, Field(description="Device to run on: cpu, cuda, cuda:1, mps ...")] = (
        "cpu"
    )

    def tell(self) -> None:
        """Say where a faster device is not used."""
        if self.device == "cpu" and torch.cuda.is_available() and Processes.current().is_first:
            typer.echo("note: this runs on the CPU; add --device cuda to use the GPU", err=True)


@dataclass(frozen=True)
class Option:
    """The option of one setting on the command line."""

    field: str
    item: FieldInfo
    default: Any

    @property
    def spelling(self) -> str:
        """What the user types."""
        return f"--{(self.item.title or self.field).replace('_', '-')}"

    @property
    def help(self) -> str:
        words = [str(self.item.description)]
        if choices := [
            word for part in alternatives(schema_of(self.item)) for word in words_of(part)
        ]:
            words.append(f"One of {', '.join(choices)}.")
        if self._is_list:
            words.append("Repeat it; what is given replaces the whole list.")
        elif self.default not in (None, ""):
            words.append(f"Default: {str(self.default).removeprefix('torch.')}.")
        return " ".join(words)

    @property
    def parameter(self) -> inspect.Parameter:
        """The function parameter that typer makes the option from."""
        option = typer.Option(self.spelling, metavar="<value>", help=self.help)
        annotation = Annotated[list[str] | None, option]
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.field, kind, default=None, annotation=annotation)

    def read(self, texts: Sequence[str]) -> Any:
        """Return the setting's value; of several texts the last counts, but for lists.

        Raises:
            ConfigError: Names the option.
        """
        return tuple(texts) if self._is_list else from_text(self.spelling, texts[-1], self.item)

    @property
    def _is_list(self) -> bool:
        return get_origin(self.item.annotation) is tuple


def command(
    name: str,
    extra: str,
    *,
    start: Start | None = None,
    only: Collection[str] | None = None,
    **settings: Any,
) -> Callable[[Body], Body]:
    """Turn a function that takes settings into one that typer makes a command of.

    The function's parameters of these names become one option per setting. What a user's files and
    settings can cause becomes exit code 2 and one line on the terminal, which names settings by
    their options.

    Args:
        extra: Extra of this package that installs the libraries that the command needs.
        start: Function that returns the settings that the given options change; None: `settings`.
        only: Settings that are options; None: all. The others stay as they are.
        settings: Name of a parameter -> settings with the defaults.
    """
    options = {
        field: Option(field, item, default)
        for one in settings.values()
        for field, item, default in _fields(one)
        if only is None or field in only
    }
    names = {field: option.spelling for field, option in options.items()}

    def decorate(body: Body) -> Body:
        own = [
            parameter
            for parameter in inspect.signature(body, eval_str=True).parameters.values()
            if parameter.name not in settings
        ]

        @functools.wraps(body)
        def run(**given: Any) -> None:
            with one_line_errors(name, extra), started_processes(), labelled(names):
                typed = {
                    field: option.read(given[field])
                    for field, option in options.items()
                    if given[field]
                }
                before = start(given, settings) if start else settings
                made = {parameter: _changed(one, typed) for parameter, one in before.items()}
                body(**{parameter.name: given[parameter.name] for parameter in own}, **made)

        parameters = [*own, *(option.parameter for option in options.values())]
        # typeshed does not know this attribute of functions, which `inspect` documents
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def _fields(kept: Any) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield the name, declaration and value of each setting, also of settings in settings."""
    for field, item in declared(type(kept)).items():
        value = getattr(kept, field)
        if is_dataclass(value):
            yield from _fields(value)
        else:
            yield field, item, value


def _changed(kept: Any, typed: Mapping[str, Any]) -> Any:
    """Return settings with what was typed, by field, also in the settings that they hold."""
    every = {field: getattr(kept, field) for field in declared(type(kept))}
    inner = {field: _changed(value, typed) for field, value in every.items() if is_dataclass(value)}
    return replace(kept, **inner, **{field: typed[field] for field in every if field in typed})


def write_report(content: Mapping[str, Any], path: Path | None, *, overwrite: bool) -> None:
    """Write what a command found to a file as JSON, if one was asked for.

    Raises:
        NameTakenError, SaveError: It is there already, or cannot be written.
    """
    if path is not None:
        text = json.dumps({"iteris": __version__, **content}, indent=2)
        write_text(text + "\n", path, overwrite=overwrite)


def save_and_tell(
    result: MergeResult,
    save: Callable[[Path, bool], object],
    output: Path,
    report: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Save a merge, print its report and where it is, and write the report if it was asked for.
    Warnings are on stderr, too. Of several processes, the first one does.

    Args:
        save: See `writing.under_free_name`.

    Raises:
        IterisError: One of the files cannot be written.
    """
    if not Processes.current().is_first:
        return
    saved = under_free_name(output, save, overwrite=overwrite)
    typer.echo(str(result.report))
    if saved != output:
        typer.echo(
            f"note: while this merge ran, another program wrote {output}, which is untouched"
        )
    if not sys.stdout.isatty():  # else they are in the report above
        for warning in result.report.warnings:
            typer.echo(plain(warning), err=True)
    typer.echo(f"saved to {saved}")
    content = {"output": str(saved), "adapter": result.adapter.name, **result.report.to_dict()}
    write_report(content, report, overwrite=overwrite)
