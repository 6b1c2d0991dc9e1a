"""The command `iteris`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import IterisError
from . import eval_language as cli_eval
from . import inspect as cli_inspect
from . import merge_language as cli_merge

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="IterIS: merge several LoRAs into one."
)
app.add_typer(cli_merge.app, name="merge")
app.add_typer(cli_eval.app, name="eval")
app.command("inspect")(cli_inspect.inspect_command)


class DeviceOption(str, enum.Enum):
    """Where the server may compute."""

    auto = "auto"
    cpu = "cpu"


@app.callback()
def _commands() -> None:
    """Merge several LoRAs into one."""


@app.command()
def demo(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="An SD1.5 checkpoint (.safetensors). Without: a small random one."),
    ] = None,
    lora: Annotated[
        list[Path] | None, typer.Option(help="A LoRA for the checkpoint; give it twice or more.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA's prompts, split by \\n; one --prompt per --lora, in order."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results; never overwritten.")] = Path(
        "iteris-demo"
    ),
    width: Annotated[int | None, typer.Option(help="Of the sample picture, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the sample picture, in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of the sample picture.")] = None,
    device: Annotated[
        DeviceOption, typer.Option(help="cpu keeps ComfyUI off the GPU.")
    ] = DeviceOption.auto,
) -> None:
    """Merge LoRAs inside a real, headless ComfyUI and draw a picture with the result.

    Exit code 0: done; 2: an input or option cannot be used (one line says which), or the server
    failed (its log is named).
    """
    from rich.console import Console

    from .demo.run import DemoRequest, InputError, run_demo

    request = DemoRequest(
        output=output,
        checkpoint=checkpoint,
        loras=tuple(lora or ()),
        prompts=tuple(text.replace("\\n", "\n") for text in prompt or ()),
        width=width,
        height=height,
        steps=steps,
        device=device.value,
    )
    try:
        run_demo(request, Console())
    except InputError as error:
        typer.echo("iteris demo: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None
    except IterisError as error:  # with the last lines of the server's log
        typer.echo(f"iteris demo: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command line; the console script `iteris`."""
    app()
