"""The command line of the demo: `iteris demo`, or `python -m demo` in a clone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from iteris_core.errors import IterisError

from .run import DemoRequest, FamilyName, InputError, run_demo
from .server import PACK, Device

app = typer.Typer(add_completion=False)
_FAMILY: FamilyName = "sd15"
_OUTPUT = Path("iteris-demo")
_DEVICE: Device = "auto"


@app.command()
def demo(
    family: Annotated[
        FamilyName,
        typer.Option(show_default=False, help=f"Family of your checkpoint. Default: {_FAMILY}."),
    ] = _FAMILY,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint, .safetensors; the demo's own if left out."),
    ] = None,
    lora: Annotated[
        list[Path] | None, typer.Option(help="A LoRA for the checkpoint; give it twice or more.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA's prompts, split by \\n; one --prompt per --lora, in order."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            show_default=False,
            help=f"Folder for the results; never overwritten. Default: {_OUTPUT}.",
        ),
    ] = _OUTPUT,
    width: Annotated[int | None, typer.Option(help="Width of each picture, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of each picture, in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of each picture.")] = None,
    device: Annotated[
        Device,
        typer.Option(
            show_default=False, help=f"cpu keeps ComfyUI off the GPU. Default: {_DEVICE}."
        ),
    ] = _DEVICE,
) -> None:
    """Merge LoRAs inside a real, headless ComfyUI and compare the result in pictures.

    Exit code 0: done; 2: one line says what cannot be used, or names the log of a failed server.
    """
    request = DemoRequest(
        output=output,
        checkpoint=checkpoint,
        loras=tuple(lora or ()),
        prompts=tuple(text.replace("\\n", "\n") for text in prompt or ()),
        width=width,
        height=height,
        steps=steps,
        device=device,
        family=family,
    )
    try:
        if not (PACK / "nodes").is_dir():
            raise InputError(
                f"it needs a clone of the repository, and {PACK} has no nodes/. Clone it, then pip "
                "install -e .[demo] in it"
            )
        run_demo(request, Console())
    except InputError as error:
        typer.echo("iteris demo: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None
    except IterisError as error:  # its lines are the end of the server's log
        typer.echo(f"iteris demo: {error}", err=True)
        raise typer.Exit(2) from None
