"""`iteris demo` ends as the other commands do: with 2 for whatever its user can cause."""

import subprocess
import sys
from unittest.mock import Mock

from typer.testing import CliRunner

from demo import command
from demo.run import InputError
from demo.server import ServerError
from iteris_core.cli import main
from iteris_core.version import __version__


def test_the_demo_says_what_failed_and_ends_with_2(monkeypatch):
    for error, said in (
        (InputError("--steps is 0:\nexpected 1 or more."), "--steps is 0: expected 1 or more."),
        (ServerError("it ended:\nlast line"), "it ended:\nlast line"),  # the log keeps its lines
    ):
        monkeypatch.setattr(command, "run_demo", Mock(side_effect=error))
        done = CliRunner().invoke(main.app, ["demo"])
        assert (done.exit_code, done.stderr) == (2, f"iteris demo: {said}\n")


def test_an_installed_copy_without_the_demo_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "__file__", str(tmp_path / "iteris_core" / "cli" / "main.py"))
    done = CliRunner().invoke(main.app, ["demo", "--device", "cpu"])
    assert done.exit_code == 2
    assert done.stderr == (
        f"iteris demo: needs a clone of the repository, and {tmp_path} has no demo/. Clone it, "
        "then pip install -e .[demo] in it\n"
    )


def test_the_version_is_told():
    done = CliRunner().invoke(main.app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


def test_the_list_of_commands_waits_for_no_torch():
    code = (
        "import sys\nfrom iteris_core.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("inspect", "merge", "demo"))
