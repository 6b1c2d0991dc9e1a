"""What the commands have in common at a terminal: errors of one line, bars, and the other libraries
kept quiet.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import ConfigError, IterisError


@contextlib.contextmanager
def one_line_errors(command: str, extra: str) -> Iterator[None]:
    """Turn what a user's files and settings can cause into one line on stderr and exit code 2.

    Args:
        command: As the user typed it, such as ``iteris eval t5``.
        extra: Of this package, which installs the libraries that the command needs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(
            f'{command}: needs {error.name}; install it with pip install "iteris-lora-merge[{extra}]"',
            err=True,
        )
        raise typer.Exit(2) from None
    except (IterisError, OSError) as error:
        typer.echo(f"{command}: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None


def quiet_libraries() -> None:
    """Keep the loading bars and advice of transformers and diffusers off the terminal: there is one
    bar, ours.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # theirs to each other
    for library in ("transformers", "diffusers"):
        with contextlib.suppress(ImportError):  # said where it is needed
            logging = __import__(f"{library}.utils", fromlist=["logging"]).logging
            logging.set_verbosity_error()
            logging.disable_progress_bar()


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar per stage on stderr, if that is a terminal; what is yielded takes (stage, done,
    total).
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        stages: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total)
            bars.update(stages[stage], completed=done, total=total)

        yield tell


def dtype_of(name: str) -> torch.dtype:
    """Return the precision of this name.

    Raises:
        ConfigError: There is none that models run in.
    """
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise ConfigError(f"--dtype is {name!r}; it can be float32, bfloat16, float16 or float64")
    return getattr(torch, name)
