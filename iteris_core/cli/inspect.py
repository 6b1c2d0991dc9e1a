"""The command `iteris inspect`, which shows what a LoRA's file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import plain
from ..files.headers import lora_header
from .terminal import one_line_errors

INSPECT_HELP = """Show what a LoRA is: base model, rank, trigger words, and which LoRAs it is a \
merge of.

Example:

    iteris inspect style.safetensors

Exit code 0: shown; 2: the file cannot be read, and one line says why.
"""


app = typer.Typer(add_completion=False)


@app.command(help=INSPECT_HELP)
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A LoRA file, or the weights of a PEFT adapter.")],
) -> None:
    with one_line_errors("iteris inspect", "standalone"):
        header = lora_header(path)
    lines = [
        str(path),
        f"  base           {header.base}",
        f"  largest rank   {header.rank or 'unknown: it has no factors'}",
        f"  trigger words  {', '.join(header.triggers.words) or 'none in its metadata'}",
        f"  merged from    {', '.join(header.origin.names) or 'nothing: it is no merge'}",
    ]
    typer.echo("\n".join(map(plain, lines)))
