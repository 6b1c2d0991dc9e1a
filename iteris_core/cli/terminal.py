"""The common behaviour of the commands at a terminal: errors of one line, bars, and quiet
libraries.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from ..errors import IterisError, plain
from ..processes import Processes
from ..progress import Stage, StageProgress


@contextlib.contextmanager
def one_line_errors(command: str, extra: str) -> Iterator[None]:
    """Turn what a user's files and settings can cause into one line on stderr and exit code 2.

    Args:
        extra: Extra of this package that installs the libraries that the command needs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(
            f"{command}: needs {error.name}; install it with pip install "
            f'"iteris-lora-merge[{extra}]"',
            err=True,
        )
        raise typer.Exit(2) from None
    except (IterisError, OSError) as error:
        typer.echo(f"{command}: " + " ".join(plain(str(error)).split()), err=True)
        raise typer.Exit(2) from None


def quiet_libraries() -> None:
    """Keep the loading bars and the advice of transformers and diffusers off the terminal."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning
    )  # which these libraries cause in each other
    for library in ("transformers", "diffusers"):
        with contextlib.suppress(ImportError):  # the missing library is named where it is needed
            logging = __import__(f"{library}.utils", fromlist=["logging"]).logging
            logging.set_verbosity_error()
            logging.disable_progress_bar()


@contextlib.contextmanager
def progress_bars() -> Iterator[StageProgress]:
    """Show a bar per stage on stderr, if that is a terminal, by one process of several."""
    console = Console(stderr=True)
    disable = not (console.is_terminal and Processes.current().is_first)
    with Progress(console=console, disable=disable) as bars:
        shown: dict[Stage, TaskID] = {}

        def show(stage: Stage, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(escape(plain(str(stage))), total=total)
            bars.update(shown[stage], completed=done, total=total)

        yield show
