"""`merge` of the command line with an option for every setting, also for those of the library alone.

python tests/support/every_option.py COMMAND ...
"""

import typer

from iteris_core.cli import merge_diffusion, merge_language

app = typer.Typer()
for module in (merge_diffusion, merge_language):
    for name in module.COMMANDS:
        app.command(name)(module.merge_command(name, only=None))

if __name__ == "__main__":
    app()
