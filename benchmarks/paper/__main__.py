"""The command `python -m benchmarks.paper`."""

import typer

from . import commands

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Score adapters on the paper's tasks."
)
app.command("sd15", help=commands.SD15_HELP)(commands.eval_sd15_command)
app.command("t5", help=commands.T5_HELP)(commands.eval_t5_command)
app.command("blip", help=commands.BLIP_HELP)(commands.eval_blip_command)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.paper")
