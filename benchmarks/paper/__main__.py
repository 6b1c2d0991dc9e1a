"""The command `python -m benchmarks.paper`."""

import typer

from . import language_command, pictures_command

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Score adapters on the paper's tasks."
)
app.command("sd15", help=pictures_command.SD15_HELP)(pictures_command.eval_sd15_command)
app.command("t5", help=language_command.T5_HELP)(language_command.eval_t5_command)
app.command("blip", help=language_command.BLIP_HELP)(language_command.eval_blip_command)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.paper")
