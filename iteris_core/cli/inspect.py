"""The command `iteris inspect`, which shows the kind, ranks and base model of an adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import plain
from ..files.inspection import AdapterFacts, inspect_adapter
from .terminal import one_line_errors

INSPECT_HELP = """Show what an adapter is: base model, layers, ranks, trigger words, which \
LoRAs it is a merge of, and what would not load.

Example:

    iteris inspect style.safetensors

Exit code 0: shown, with what would not load; 2: the file cannot be read or is not an adapter, and \
one line says why.
"""


app = typer.Typer(add_completion=False)


@app.command(help=INSPECT_HELP)
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A LoRA file, or the weights of a PEFT adapter.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    with one_line_errors("iteris inspect", "standalone"):
        facts = inspect_adapter(path)
        typer.echo(json.dumps(asdict(facts), indent=2) if as_json else _as_text(facts))


def _as_text(facts: AdapterFacts) -> str:
    layers = ", ".join(f"{kind} x {count}" for kind, count in facts.layers.items())
    lines = [
        facts.path,
        f"  base           {facts.base}",
        f"  layers         {layers}",
        f"  ranks          {', '.join(map(str, facts.ranks)) or 'unknown'}",
        f"  trigger words  {', '.join(facts.trigger_words) or 'none in its metadata'}",
        *([f"  merged from    {', '.join(facts.merged_from)}"] if facts.merged_from else []),
        f"  would not load: {len(facts.problems) or 'nothing'}",
        *(f"    {problem}" for problem in facts.problems),
    ]
    return "\n".join(map(plain, lines))
