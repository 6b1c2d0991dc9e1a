"""The command `iteris`, and the list of its subcommands."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import IterisError
from .inspect import INSPECT_HELP, inspect_command
from .merge_diffusion import COMMANDS, merge_command
from .merge_language import BLIP_HELP, T5_HELP, merge_blip_command, merge_t5_command

_PACKAGE = __package__.rpartition(".")[0]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="IterIS: merge several LoRAs into one."
)
app.command("inspect", help=INSPECT_HELP)(inspect_command)

merge_app = typer.Typer(no_args_is_help=True, help="Merge adapters into one.")
for command in COMMANDS:
    merge_app.command(command.name, help=command.help)(merge_command(command))
merge_app.command("t5", help=T5_HELP)(merge_t5_command)
merge_app.command("blip", help=BLIP_HELP)(merge_blip_command)
app.add_typer(merge_app, name="merge")

try:
    from . import eval_language, eval_sd15
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith(f"{_PACKAGE}.evaluation"):
        raise

    @app.command("eval", context_settings={"ignore_unknown_options": True})
    def no_evaluation(
        arguments: Annotated[list[str] | None, typer.Argument()] = None,  # noqa: ARG001, its name is shown
    ) -> None:
        """Score adapters on the paper's tasks; not in this copy of IterIS."""
        typer.echo(
            "iteris eval: this copy of IterIS, from ComfyUI's registry, has no evaluation; install "
            'the whole with pip install "iteris-lora-merge[eval]"',
            err=True,
        )
        raise typer.Exit(2)
else:
    eval_app = typer.Typer(no_args_is_help=True, help="Score adapters on the paper's tasks.")
    eval_app.command("sd15", help=eval_sd15.SD15_HELP)(eval_sd15.eval_sd15_command)
    eval_app.command("t5", help=eval_language.T5_HELP)(eval_language.eval_t5_command)
    eval_app.command("blip", help=eval_language.BLIP_HELP)(eval_language.eval_blip_command)
    app.add_typer(eval_app, name="eval")


class DeviceOption(str, enum.Enum):
    """Where the server may compute."""

    auto = "auto"
    cpu = "cpu"


class FamilyOption(str, enum.Enum):
    """Families of models that the demo knows."""

    sd15 = "sd15"
    sdxl = "sdxl"


@app.callback()
def _commands() -> None:
    """Merge several LoRAs into one."""


DEMO_HELP = """Merge LoRAs inside a real, headless ComfyUI and compare the result in pictures.

Exit code 0: done; 2: an input or option cannot be used (one line says which), or the server \
failed (its log is named).
"""


@app.command(help=DEMO_HELP)
def demo(
    family: Annotated[
        FamilyOption, typer.Option(help="Family of your checkpoint.")
    ] = FamilyOption.sd15,
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
    output: Annotated[Path, typer.Option(help="Folder for the results; never overwritten.")] = Path(
        "iteris-demo"
    ),
    width: Annotated[int | None, typer.Option(help="Width of each picture, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of each picture, in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of each picture.")] = None,
    device: Annotated[
        DeviceOption, typer.Option(help="cpu keeps ComfyUI off the GPU.")
    ] = DeviceOption.auto,
) -> None:
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
        family=family.value,
    )
    try:
        run_demo(request, Console())
    except InputError as error:
        typer.echo("iteris demo: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None
    except IterisError as error:  # its lines are the end of the server's log
        typer.echo(f"iteris demo: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command line; the console script `iteris`."""
    app()
