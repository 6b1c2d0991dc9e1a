"""What the commands show at a terminal while they work."""

import io

import pytest
import typer
from rich.console import Console

from iteris_core import AdapterError
from iteris_core.cli import terminal
from iteris_core.progress import Stage

STRANGE = "a\x1b]52;c;ZXZpbA==\x07 [link=https://b]c[/link]\nWARNING\u202e"
PLAIN = "a\\x1b]52;c;ZXZpbA==\\x07 [link=https://b]c[/link] WARNING\\u202e"


def test_a_terminal_acts_on_no_text_of_a_stranger(monkeypatch, capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(terminal, "Console", lambda **options: console)
    with terminal.progress_bars() as progress:
        progress(Stage(STRANGE), 1, 1)
    assert PLAIN in screen.getvalue()
    for error in (AdapterError(STRANGE), OSError(STRANGE)):
        with pytest.raises(typer.Exit), terminal.one_line_errors("iteris", "language"):
            raise error
        assert capsys.readouterr().err == f"iteris: {PLAIN}\n"
    assert str(AdapterError(STRANGE)) == PLAIN  # which ComfyUI prints and logs itself
