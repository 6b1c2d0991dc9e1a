"""The command `iteris`, and the list of its subcommands."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from ..version import __version__

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="IterIS: merge several LoRAs into one."
)


_UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torch itself tells it so


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _iteris(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    pass


# A command is imported when it is called, since torch takes seconds, and reads its own arguments.
_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


_OWN = {
    "inspect": "Show what a LoRA file or an adapter is.",
    "merge": "Merge LoRAs, or adapters of T5 and BLIP, into one.",
}


def _add(entry: EntryPoint, told: str) -> None:
    def passed_on(context: typer.Context) -> None:
        entry.load()(context.args, prog_name=f"iteris {entry.name}")

    add = app.command(entry.name, context_settings=_PASSED_ON, add_help_option=False, help=told)
    add(passed_on)


for name, told in _OWN.items():
    _add(EntryPoint(name, f"{__package__}.{name}:app", ""), told)
# other packages name theirs, typer apps such as the demo's in a clone
for other in entry_points(group="iteris.commands"):
    _add(other, f"Run the command of the package {other.module.partition('.')[0]}.")


def main() -> None:
    """Run the command line; the console script `iteris`."""
    try:
        app()
    except SystemExit as end:
        if _UNDER_TORCHRUN in os.environ:
            # some processes abort while Python ends, when all work is done; why is not known
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else end.code is not None)
        raise
