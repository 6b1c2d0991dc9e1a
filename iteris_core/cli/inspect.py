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

INSPECT_HELP = """Show what an adapter is: format, base model, modules, ranks, trigger words, \
norms, and what would not load.

Example:

    iteris inspect style.safetensors

Exit code 0: shown, with what would not load; 2: the file cannot be read or is not an adapter, and \
one line says why.
"""


app = typer.Typer(add_completion=False)


@app.command(help=INSPECT_HELP)
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A LoRA file, or the folder of a PEFT adapter.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    with one_line_errors("iteris inspect", "standalone"):
        facts = inspect_adapter(path)
        typer.echo(json.dumps(asdict(facts), indent=2) if as_json else _as_text(facts))


def _as_text(facts: AdapterFacts) -> str:
    kinds = ", ".join(f"{kind} x {count}" for kind, count in facts.kinds.items())
    modules = ", ".join(f"{name} x {count}" for name, count in facts.modules.items())
    peft = ", ".join(f"{name} {value}" for name, value in facts.peft.items())
    lines = [
        facts.path,
        f"  format         {facts.format}: {kinds}",
        f"  base           {facts.base}",
        f"  targets        {facts.targets}: {modules}",
        *([f"  PEFT settings  {peft}"] if peft else []),
        f"  trigger words  {', '.join(facts.trigger_words) or 'none in its metadata'}",
        f"  norm           {facts.norm:.4g}",
        *(f"    {norm:10.4g}   {layer}" for layer, norm in facts.largest.items()),
        "  ranks per block",
    ]
    for name, block in facts.blocks.items():
        least, most = block.ranks
        lines.append(
            f"    {name}: {block.layers} layers, rank "
            f"{least if least == most else f'{least} to {most}'}"
        )
    lines.append(f"  would not load: {len(facts.problems) or 'nothing'}")
    lines += [f"    {problem}" for problem in facts.problems]
    return "\n".join(map(plain, lines))
