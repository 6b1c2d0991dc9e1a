"""How far the demo is: bars at a terminal, elsewhere a line for each stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from iteris_core.cli.terminal import progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from iteris_core.progress import Stage, StageProgress


@contextlib.contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """Say what is waited for."""
    if not console.is_terminal:
        _say(console, text)
    with console.status(text):
        yield


@contextlib.contextmanager
def stages(console: Console) -> Iterator[StageProgress]:
    """Show the stages of a workflow: bars on stderr, or lines where the console is no terminal."""
    if console.is_terminal:
        with progress_bars() as show:
            yield show
        return
    said: set[Stage] = set()

    def say(stage: Stage, *_: int) -> None:
        if stage not in said:
            said.add(stage)
            _say(console, str(stage))

    yield say


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
