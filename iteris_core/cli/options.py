"""What the commands `iteris ...` have in common: options made of settings, and the report."""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
import typer

from ..config import BaselineOptions, MergeConfig
from ..errors import ConfigError, NameTakenError, plain
from ..files.pretrained import DeviceMap
from ..files.writing import write_text
from ..report.records import MergeReport
from ..rivals import registry
from ..settings import (
    PRECISIONS,
    Declared,
    alternatives,
    calling,
    check,
    declared,
    from_text,
    setting,
    shown,
)
from ..version import __version__
from .terminal import one_line_errors
from .torchrun import started_processes

Body = Callable[..., None]
# What the user typed, name of a parameter -> settings; returns the settings to start from.
Start = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
# Fields whose option has another name.
NAMES = {
    "sampling_steps": "--steps",
    "scene_pictures": "--scene-pictures/--scene-text",
    "output_dtype": "--save-dtype",
    "baseline": "--method-option",
    "with_base": "--with-base/--no-base",
}
# What a report begins with, by which it is known.
_REPORT_MARK = "iteris"
_REPORT_START = f'{{\n  "{_REPORT_MARK}": "'.encode()
_MOST_CHOICES = 4  # that are listed beside an option's name

BaseSetting = Annotated[str, typer.Option(help="The base model: a folder, or a name on the hub.")]
AdapterSetting = Annotated[list[Path], typer.Option(help="A PEFT adapter's folder; one or more.")]
OutputSetting = Annotated[Path, typer.Option(help="Folder for the merged adapter.")]
SaveModelSetting = Annotated[
    Path | None, typer.Option(help="Folder for the whole merged model, too.")
]
WeightsSetting = Annotated[
    str | None, typer.Option(help="How much each adapter's task counts, such as 1,0.5.")
]
OverwriteSetting = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in the way of the output.")
]
ReportSetting = Annotated[
    Path | None, typer.Option("--json", help="Write the report to this file, as JSON.")
]


@dataclass(frozen=True)
class Placement:
    """Where the base model runs."""

    dtype: torch.dtype = setting(torch.float32, "Precision in which the base model runs.")
    device: str = setting("cpu", "Device on which it runs: cpu, cuda, cuda:1, mps ...")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Spread(Placement):
    """Where the base model runs, also one that is larger than a device."""

    device_map: DeviceMap = setting(
        "none",
        "Instead of a device: spread over all GPUs by accelerate, one after the other (auto) or "
        "alike (balanced); what has no room stays in host memory.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device_map != "none" and self.device != "cpu":
            raise ConfigError(
                f"--device is {self.device}, and --device-map {self.device_map} chooses the "
                "devices itself; give one of them"
            )


@dataclass(frozen=True)
class Option:
    """The option of one setting on the command line.

    Args:
        item: Field of the dataclass of settings.
        default: Value of the setting without the option.
        panel: Heading in the help under which the option is listed.
    """

    item: Declared
    default: Any
    panel: str

    @property
    def name(self) -> str:
        """What the user types."""
        return NAMES.get(self.item.name, "--" + self.item.name.replace("_", "-"))

    @property
    def is_repeated(self) -> bool:
        """Whether it can be given several times."""
        return get_origin(self.item.hint) is tuple or is_dataclass(self.item.hint)

    @property
    def help(self) -> str:
        """What the help says about it."""
        words = [self.item.setting.help]
        choices = _choices(self.item.hint)
        if len(choices) > _MOST_CHOICES:
            words.append(f"One of {', '.join(choices)}.")
        if self.item.hint is not bool and _shown(self.default):
            words.append(f"Default: {_shown(self.default)}.")
        return " ".join(words)

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter of a function from which typer makes the option."""
        is_flag = self.item.hint is bool
        option = typer.Option(
            self.name,
            help=self.help,
            metavar=None if is_flag else _metavar(self.item.hint),
            show_default=is_flag and "/" in self.name,
            rich_help_panel=self.panel,
        )
        kind = bool if is_flag else list[str] | None if self.is_repeated else str | None
        return inspect.Parameter(
            self.item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.default if is_flag else None,
            annotation=Annotated[kind, option],
        )

    def read(self, given: Any) -> Any:
        """Return the setting's value from what typer found on the command line.

        Args:
            given: Words that the user typed, or whether there is the flag.

        Raises:
            ConfigError: Names the option.
        """
        if self.item.hint is bool:
            return given
        if is_dataclass(self.item.hint):
            return self._read_fields(given)
        return tuple(given) if self.is_repeated else from_text(self.name, given, self.item)

    def _read_fields(self, texts: Sequence[str]) -> Any:
        items = {item.name: item for item in declared(self.item.hint)}
        values = {}
        for text in texts:
            name, is_named, value = text.partition("=")
            if not is_named or name not in items:
                raise ConfigError(
                    f"{self.name} is {text!r}; write NAME=VALUE with one of "
                    f"{', '.join(sorted(items))}"
                )
            values[name] = from_text(f"{self.name} {name}", value, items[name])
        return replace(self.default, **values)


def _choices(hint: Any) -> list[str]:
    """Return the words that a type names."""
    if hint is torch.dtype:
        return list(PRECISIONS)
    if isinstance(hint, type) and is_dataclass(hint):
        return [item.name for item in declared(hint)]
    parts = alternatives(hint)
    return [word for part in parts if get_origin(part) is Literal for word in get_args(part)]


def _metavar(hint: Any) -> str:
    if is_dataclass(hint):
        return "<name=value>"
    choices = _choices(hint)
    kinds = {int: "int", float: "number", str: "text", tuple[str, ...]: "text"}
    words = [kinds[part] for part in alternatives(hint) if part in kinds]
    words += choices if len(choices) <= _MOST_CHOICES else ["name"]
    return f"<{'|'.join(words)}>"


def _shown(default: Any) -> str:
    """Return how a default looks in the help; empty: it is not shown."""
    if isinstance(default, torch.dtype):
        return str(default).removeprefix("torch.")
    if isinstance(default, tuple):
        return f"{len(default)} of our own"
    return "" if default is None or is_dataclass(default) else str(default)


def as_they_are(_given: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the program."""
    return settings


def command(
    name: str, extra: str, *, start: Start = as_they_are, **settings: Any
) -> Callable[[Body], Body]:
    """Turn a function that takes settings into one that typer makes a command of.

    The function's parameters of these names become one option per setting, in a panel of the help
    that has the first line of the dataclass's docstring as its heading. What a user's files and
    settings can cause becomes one line on the terminal, and exit code 2.

    Args:
        name: The command as the user types it, such as ``iteris merge t5``.
        extra: Extra of this package that installs the libraries that the command needs.
        start: Function that returns the settings from which the given options start.
        settings: Name of a parameter -> dataclass of settings with the defaults.
    """
    options = {parameter: list(_options(default)) for parameter, default in settings.items()}

    def decorate(body: Body) -> Body:
        own = [
            parameter
            for parameter in inspect.signature(body, eval_str=True).parameters.values()
            if parameter.name not in settings
        ]

        @functools.wraps(body)
        def run(**given: Any) -> None:
            with one_line_errors(name, extra), started_processes():
                made = {
                    parameter: replace(default, **_read(options[parameter], given))
                    for parameter, default in start(given, settings).items()
                }
                body(**{parameter.name: given[parameter.name] for parameter in own}, **made)

        more = [option.parameter for group in options.values() for option in group]
        parameters = [*own, *more]
        # typeshed does not know this attribute of functions, which `inspect` documents
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def _read(options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return field -> value of the options that the user typed, and of the flags."""
    typed = [option for option in options if given[option.item.name] not in (None, [])]
    return {option.item.name: option.read(given[option.item.name]) for option in typed}


def _options(default: Any) -> Iterator[Option]:
    panel = (type(default).__doc__ or type(default).__name__).splitlines()[0].rstrip(".")
    for item in declared(type(default)):
        yield Option(item, getattr(default, item.name), panel)


def check_used(config: MergeConfig) -> None:
    """Refuse settings that the method or the engine would not look at.

    Raises:
        ConfigError: Names the option.
    """
    # an option of a rival has no name of its own here
    names = {item.name: f"{NAMES['baseline']} {item.name}" for item in declared(BaselineOptions)}
    names |= {item.name: Option(item, None, "").name for item in declared(MergeConfig)}
    with calling(names):
        registry.check_used(config)


def numbers(option: str, text: str | None) -> list[float] | None:
    """Return the numbers of an option such as ``1,0.5``; None if it was not given.

    Raises:
        ConfigError: Something else stands there.
    """
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ConfigError(f"{option} is {shown(text)}; write one number per adapter, such as 1,0.5")
    return values


@dataclass(frozen=True)
class ReportFile:
    """The file to which a command writes what it found, as JSON.

    Args:
        path: The file; None: none was asked for.
        overwrite: Whether it may take the place of any file, and not only of an older report.
    """

    path: Path | None
    overwrite: bool = False

    def check(self) -> None:
        """Refuse to replace what is not a report. It can be called before hours of work, too.

        Raises:
            NameTakenError: Names the file.
        """
        if self.path is None or self.overwrite or not self.path.is_file():
            return
        with self.path.open("rb") as file:
            start = file.read(len(_REPORT_START))
        if start not in (b"", _REPORT_START):
            raise NameTakenError(
                f"--json: {self.path} exists already and is not a report of IterIS, so it is not "
                "replaced; name another file, or move this one"
            )

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the file, if one was asked for.

        Raises:
            NameTakenError: See `check`.
            SaveError: It cannot be written.
        """
        self.check()
        if self.path is not None:
            text = json.dumps({_REPORT_MARK: __version__, **content}, indent=2) + "\n"
            write_text(text, self.path, overwrite=True)


def tell(name: str, report: MergeReport, output: Path, asked: Path, file: ReportFile) -> None:
    """Print the report and where the result is, and write the report to a file if one was asked
    for. What the merge fails or has lost is on stderr, too.

    Args:
        name: Name of the merged adapter.
        report: Report of the merge.
        output: Place of the adapter.
        asked: Place that was asked for; it is another if that was taken during the merge.
        file: Place of the report.
    """
    typer.echo(str(report))
    if output != asked:
        typer.echo(f"note: while this merge ran, another program wrote {asked}, which is untouched")
    if not sys.stdout.isatty():  # else they stand in the report above
        for alert in report.alerts:
            typer.echo(plain(alert), err=True)
    typer.echo(f"saved to {output}")
    file.write({"output": str(output), "adapter": name, **report.to_dict()})
