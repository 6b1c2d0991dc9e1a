"""`iteris demo` ends as the other commands do: exit code 2 for whatever a user's files, options or
server can cause.
"""

import pytest
from typer.testing import CliRunner

from iteris_core.cli.demo import run
from iteris_core.cli.demo.run import InputError
from iteris_core.cli.demo.server import ServerError
from iteris_core.cli.main import app


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            InputError("--steps is 0:\nexpected 1 or more."),
            "iteris demo: --steps is 0: expected 1 or more.\n",
        ),
        (
            ServerError("ComfyUI ended:\nlast line"),
            "iteris demo: ComfyUI ended:\nlast line\n",
        ),  # the log keeps its lines
    ],
)
def test_the_demo_says_what_failed_and_ends_with_2(error, said, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(run, "run_demo", fail)
    done = CliRunner().invoke(app, ["demo"])
    assert (done.exit_code, done.stderr) == (2, said)


def test_the_demos_help_tells_its_exit_codes():
    text = (
        CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
    )
    assert "Exit code 0: done; 2:" in text
