"""What the commands show at a terminal while they work."""

import io

from rich.console import Console

from iteris_core.cli import terminal
from iteris_core.progress import Stage


def test_every_stage_has_a_bar_with_its_name(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(terminal, "Console", lambda **options: console)
    with terminal.progress_bars() as progress:
        for done in (0, 3):
            progress(Stage("Teachers' answers"), done, 3)
        progress(Stage("Layers", 2, 2), 5, 9)
    lines = screen.getvalue().splitlines()
    assert any("Teachers' answers" in line and "3/3" in line for line in lines)
    assert any("stage 2 of 2: Layers" in line and "5/9" in line for line in lines)
