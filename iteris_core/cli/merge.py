"""The commands `iteris merge`."""

import typer

from .merge_diffusion import COMMANDS, help_of, merge_command
from .merge_language import BLIP_HELP, T5_HELP, merge_blip_command, merge_t5_command

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Merge LoRAs, or adapters of T5 and BLIP, into one.",
)
for name in COMMANDS:
    app.command(name, help=help_of(name))(merge_command(name))
app.command("t5", help=T5_HELP)(merge_t5_command)
app.command("blip", help=BLIP_HELP)(merge_blip_command)
