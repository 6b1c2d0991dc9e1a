"""The command `iteris`, and the list of its subcommands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
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


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def inspect(context: typer.Context) -> None:
    """Show what a LoRA file or an adapter is."""
    from .inspect import app as inspect_app

    inspect_app(context.args, prog_name="iteris inspect")


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def merge(context: typer.Context) -> None:
    """Merge LoRAs, or adapters of T5 and BLIP, into one."""
    from .merge import app as merge_app

    merge_app(context.args, prog_name="iteris merge")


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Merge LoRAs inside a headless ComfyUI, in a clone of the repository."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "demo" / "command.py").is_file():
        typer.echo(
            f"iteris demo: needs a clone of the repository, and {clone} has no demo/. Clone it, "
            "then pip install -e .[demo] in it",
            err=True,
        )
        raise typer.Exit(2)
    sys.path.insert(0, str(clone))
    from demo.command import app as demo_app

    demo_app(context.args, prog_name="iteris demo")


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
