"""The commands `iteris merge`."""

import typer

from . import merge_diffusion, merge_language

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Merge LoRAs, or adapters of T5 and BLIP, into one.",
)
for name in merge_diffusion.COMMANDS:
    app.command(name, help=merge_diffusion.help_of(name))(merge_diffusion.merge_command(name))
for name, (_, help_text) in merge_language.COMMANDS.items():
    app.command(name, help=help_text)(merge_language.merge_command(name))
