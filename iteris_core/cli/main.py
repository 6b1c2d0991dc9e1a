"""The command `iteris`, and the list of its subcommands."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from .inspect import INSPECT_HELP, inspect_command
from .merge_diffusion import COMMANDS, merge_command
from .merge_language import BLIP_HELP, T5_HELP, merge_blip_command, merge_t5_command

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="IterIS: merge several LoRAs into one."
)
app.command("inspect", help=INSPECT_HELP)(inspect_command)

merge_app = typer.Typer(no_args_is_help=True, help="Merge adapters into one.")
for command in COMMANDS:
    merge_app.command(command.name, help=command.help)(merge_command(command))
merge_app.command("t5", help=T5_HELP)(merge_t5_command)
merge_app.command("blip", help=BLIP_HELP)(merge_blip_command)
app.add_typer(merge_app, name="merge")


@app.callback()
def _commands() -> None:
    """Merge several LoRAs into one."""


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
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
    app()
