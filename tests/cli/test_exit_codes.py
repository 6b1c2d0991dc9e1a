"""`iteris demo` ends as the other commands do: with 2 for whatever its user can cause."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from typer.testing import CliRunner

from demo import command
from demo.run import InputError
from demo.server import ServerError
from iteris_core.cli import main
from iteris_core.version import __version__

ROOT = Path(__file__).parents[2]


def test_the_demo_says_what_failed_and_ends_with_2(monkeypatch):
    for error, said in (
        (InputError("--steps is 0:\nexpected 1 or more."), "--steps is 0: expected 1 or more."),
        (ServerError("it ended:\nlast line"), "it ended:\nlast line"),  # the log keeps its lines
    ):
        monkeypatch.setattr(command, "run_demo", Mock(side_effect=error))
        done = CliRunner().invoke(command.app, [])
        assert (done.exit_code, done.stderr) == (2, f"iteris demo: {said}\n")


def test_an_installed_copy_without_its_clone_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PACK", tmp_path)
    done = CliRunner().invoke(command.app, ["--device", "cpu"])
    assert done.exit_code == 2
    assert done.stderr == (
        f"iteris demo: it needs a clone of the repository, and {tmp_path} has no nodes/. Clone it, "
        "then pip install -e .[demo] in it\n"
    )


def test_the_demo_is_a_command_of_its_own_package():
    toml = pytest.importorskip("tomllib")  # since Python 3.11
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["iteris.commands"].items()
    entry = EntryPoint(name, value, "iteris.commands")
    assert entry.load() is command.app


def test_commands_of_other_packages_get_the_arguments_and_end_with_their_code(monkeypatch):
    entry = EntryPoint("demo", "demo.command:app", "iteris.commands")
    monkeypatch.setattr(main, "app", typer.Typer())
    main.app.command("other")(lambda: None)
    main._add(entry, "Run the demo.")
    run = Mock(side_effect=InputError("nothing is there"))
    monkeypatch.setattr(command, "run_demo", run)
    done = CliRunner().invoke(main.app, ["demo", "--steps", "3"])
    assert (done.exit_code, done.stderr) == (2, "iteris demo: nothing is there\n")
    assert run.call_args.args[0].steps == 3
    assert "demo" in CliRunner().invoke(main.app, ["--help"]).stdout


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
    assert all(name in done.stdout for name in ("inspect", "merge"))
