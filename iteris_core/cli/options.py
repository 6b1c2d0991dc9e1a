"""What the commands `iteris ...` have in common: options made of settings, and the report."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_origin

import torch
import typer
from pydantic import Field
from pydantic.fields import FieldInfo
from typer.core import TyperOption

from ..errors import ConfigError, plain
from ..files.writing import check_free, write_text
from ..processes import Processes
from ..report.records import MergeReport
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
_LETTERS_OF_CHOICES = 12  # more are listed in the description, which else has no room beside them
# Settings that `--help` lists; `--help-all` lists all.
_FIRST = ("scene_weight", "rank", "device")

BaseSetting = Annotated[
    str, typer.Option(help="The base model: a folder, or a name on the Hugging Face hub.")
]


def _show_all(context: typer.Context, is_asked: bool) -> None:
    if is_asked:
        for parameter in context.command.params:
            if isinstance(parameter, TyperOption):
                parameter.hidden = not parameter.help
        typer.echo(context.get_help())
        raise typer.Exit


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show all options."),
    ],
)
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
    """The option of one setting on the command line.

    Args:
        panel: Heading in the help under which the option is listed.
    """

    name: str
    item: FieldInfo
    default: Any
    panel: str

    @property
    def spelling(self) -> str:
        """What the user types: the word that the nodes have for the setting."""
        word = (self.item.title or self.name).replace("_", "-")
        return f"--{word}/--no-{word}" if self.item.annotation is bool else f"--{word}"

    @property
    def help(self) -> str:
        words = [str(self.item.description)]
        if not self._lists_choices:
            words.append(f"One of {', '.join(self._choices)}.")
        if self._is_list:
            words.append("It may be given several times; what is given replaces the whole list.")
        if self._default:
            words.append(f"Default: {self._default}.")
        return " ".join(words)

    @property
    def parameter(self) -> inspect.Parameter:
        """The function parameter that typer makes the option from."""
        is_flag = self.item.annotation is bool
        option = typer.Option(
            self.spelling,
            help=self.help,
            metavar=None if is_flag else self._metavar,
            hidden=self.name not in _FIRST,
            rich_help_panel=None if self.name in _FIRST else self.panel,
        )
        is_repeated = self._is_list or self._inner
        kind: Any = bool | None if is_flag else list[str] | None if is_repeated else str | None
        annotation = Annotated[kind, option]
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )

    def read(self, given: Any) -> Any:
        """Return the setting's value from what typer found on the command line.

        Raises:
            ConfigError: Names the option.
        """
        if self.item.annotation is bool or self._is_list:
            return given
        if not self._inner:
            return from_text(self.spelling, given, self.item)
        values = {}
        for text in given:
            name, is_named, value = text.partition("=")
            if not is_named or name not in self._inner:
                raise ConfigError(
                    f"{self.spelling} is {text!r}; write NAME=VALUE with one of "
                    f"{', '.join(sorted(self._inner))}"
                )
            values[name] = from_text(f"{self.spelling} {name}", value, self._inner[name])
        return replace(self.default, **values)

    @property
    def names(self) -> dict[str, str]:
        """What errors call the setting, and the settings in it."""
        inner = {name: f"{self.spelling} {name}" for name in self._inner}
        return {**inner, self.name: self.spelling.partition("/")[0]}

    @property
    def _inner(self) -> Mapping[str, FieldInfo]:
        """The fields of a setting that is a class of settings itself."""
        kind = self.item.annotation
        return declared(kind) if isinstance(kind, type) and is_dataclass(kind) else {}

    @property
    def _is_list(self) -> bool:
        return get_origin(self.item.annotation) is tuple

    @property
    def _choices(self) -> list[str]:
        """The words that can be typed."""
        parts = alternatives(schema_of(self.item))
        return list(self._inner) or [word for part in parts for word in words_of(part)]

    @property
    def _metavar(self) -> str:
        if self._inner:
            return "<name=value>"
        kinds = {"integer": "int", "number": "number", "string": "text", "array": "text"}
        parts = [part for part in alternatives(schema_of(self.item)) if not words_of(part)]
        words = [kinds[part["type"]] for part in parts if part["type"] in kinds]
        words += self._choices if self._lists_choices else ["name"]
        return f"<{'|'.join(words)}>"

    @property
    def _lists_choices(self) -> bool:
        """Whether the words that can be typed are listed after the option's name."""
        return len("|".join(self._choices)) <= _LETTERS_OF_CHOICES

    @property
    def _default(self) -> str:
        """How the default looks in the help; empty: it is not shown."""
        if isinstance(self.default, bool):
            return "on" if self.default else ""
        if isinstance(self.default, tuple):
            return f"{len(self.default)} of our own"
        is_shown = self.default is not None and not self._inner
        return str(self.default).removeprefix("torch.") if is_shown else ""


def as_they_are(_given: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the program."""
    return settings


def command(
    name: str, extra: str, *, start: Start = as_they_are, **settings: Any
) -> Callable[[Body], Body]:
    """Turn a function that takes settings into one that typer makes a command of.

    The function's parameters of these names become one option per setting, in a panel of the help
    that has the first line of the class's docstring as its heading. What a user's files and
    settings can cause becomes exit code 2 and one line on the terminal, which names settings by
    their options.

    Args:
        extra: Extra of this package that installs the libraries that the command needs.
        start: Function that returns the settings that the given options change.
        settings: Name of a parameter -> settings with the defaults.
    """
    options = {parameter: list(_options(default)) for parameter, default in settings.items()}
    every = [option for group in options.values() for option in group]
    names = {field: word for option in every for field, word in option.names.items()}

    def decorate(body: Body) -> Body:
        own = [
            parameter
            for parameter in inspect.signature(body, eval_str=True).parameters.values()
            if parameter.name not in settings
        ]

        @functools.wraps(body)
        def run(**given: Any) -> None:
            with one_line_errors(name, extra), started_processes(), labelled(names):
                made = {
                    parameter: replace(default, **_read(options[parameter], given))
                    for parameter, default in start(given, settings).items()
                }
                body(**{parameter.name: given[parameter.name] for parameter in own}, **made)

        parameters = [*own, *(option.parameter for option in every), _HELP_ALL]
        # typeshed does not know this attribute of functions, which `inspect` documents
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def _read(options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return field -> value of the options that the user typed."""
    typed = [option for option in options if given[option.name] not in (None, [])]
    return {option.name: option.read(given[option.name]) for option in typed}


def _options(default: Any) -> Iterator[Option]:
    panel = (type(default).__doc__ or type(default).__name__).splitlines()[0].rstrip(".")
    for name, item in declared(type(default)).items():
        yield Option(name, item, getattr(default, name), panel)


def check_report(path: Path | None, *, overwrite: bool) -> None:
    """Refuse the file of a report that is there already, before hours of work.

    Raises:
        NameTakenError: It may not be replaced.
    """
    if path is not None:
        check_free(path, overwrite=overwrite)


def write_report(content: Mapping[str, Any], path: Path | None, *, overwrite: bool) -> None:
    """Write what a command found to a file as JSON, if one was asked for.

    Raises:
        NameTakenError, SaveError: It is there already, or cannot be written.
    """
    if path is not None:
        text = json.dumps({"iteris": __version__, **content}, indent=2)
        write_text(text + "\n", path, overwrite=overwrite)


def tell(name: str, report: MergeReport, output: Path, asked: Path) -> dict[str, Any]:
    """Print the report and where the result is, and return both for `write_report`. Warnings are on
    stderr, too.

    Args:
        asked: Place that was asked for; it is another if that was taken during the merge.
    """
    typer.echo(str(report))
    if output != asked:
        typer.echo(f"note: while this merge ran, another program wrote {asked}, which is untouched")
    if not sys.stdout.isatty():  # else they are in the report above
        for warning in report.warnings:
            typer.echo(plain(warning), err=True)
    typer.echo(f"saved to {output}")
    return {"output": str(output), "adapter": name, **report.to_dict()}
