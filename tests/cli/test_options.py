"""Options of the command line are made of settings: a new setting is an option by itself."""

from dataclasses import replace
from typing import Annotated, Literal

import pytest
import torch
import typer
import typer.main
from pydantic import Field
from typer.testing import CliRunner

from iteris_core import BaselineOptions, ConfigError
from iteris_core.cli import options
from iteris_core.cli.main import app
from iteris_core.cli.merge import app as merge_app
from iteris_core.settings import Precision, Texts, label, settings


@settings
class Every:
    """How things are done."""

    share: Annotated[float, Field(ge=0, le=1, title="part", description="A share.")] = 0.5
    size: Annotated[
        Annotated[int, Field(ge=1)] | Literal["all"] | None, Field(description="A size.")
    ] = None
    word: Annotated[Literal["one", "two"], Field(description="A word.")] = "one"
    is_new: Annotated[bool, Field(description="A switch.")] = False
    scene_pictures: Annotated[
        bool, Field(title="pictures", description="A switch that is on by itself.")
    ] = True
    some_texts: Annotated[Texts, Field(description="Some texts.")] = ("a", "b")
    precision: Annotated[Precision, Field(description="A precision.")] = torch.float32
    baseline: Annotated[
        BaselineOptions, Field(title="method_option", description="Settings in settings.")
    ] = BaselineOptions()

    def __post_init__(self) -> None:
        if self.size == 7:
            raise ConfigError(f"{label('share')} and {label('size')} do not go together")


def run(*arguments, default=None, start=options.as_they_are, columns=200):
    seen = []

    @options.command("toy", "none", start=start, every=default or Every())
    def toy(*, name: str = "x", every: Every) -> None:
        seen.append((name, every))

    toy_app = typer.Typer()
    toy_app.command()(toy)
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    return seen, CliRunner().invoke(toy_app, list(map(str, arguments)), env=environment)


READ = [  # arguments, what they change
    ([], {}),
    (["--part", "1e-2"], {"share": 0.01}),
    (["--size", "4"], {"size": 4}),
    (["--size", "all"], {"size": "all"}),
    (["--size", "none"], {"size": None}),
    (["--word", "two", "--is-new"], {"word": "two", "is_new": True}),
    (["--no-pictures"], {"scene_pictures": False}),
    (["--some-texts", "c", "--some-texts", "d, e"], {"some_texts": ("c", "d, e")}),
    (["--precision", "float16"], {"precision": torch.float16}),
    (
        ["--method-option", "scale=search", "--method-option", "projection=none"],
        {"baseline": BaselineOptions(scale="search", projection=None)},
    ),
]


def test_options_are_read_as_settings():
    for arguments, changes in READ:
        for default in (Every(), Every(share=0.25, size=9, some_texts=("z",))):
            seen, done = run("--name", "y", *arguments, default=default)
            assert (done.exit_code, done.stderr) == (0, "")
            assert seen == [("y", replace(default, **changes))]


def test_options_replace_what_the_command_starts_from():
    def start(given, settings):
        return {"every": replace(settings["every"], size=len(given["name"]), word="two")}

    seen, _ = run("--name", "abc", "--word", "one", start=start)
    assert seen == [("abc", Every(size=3))]


def test_a_wrong_option_is_one_line_that_names_it():
    for arguments, said in (
        (["--part", "2"], "--part is '2'; it must be a number from 0 to 1"),
        (["--part", ""], "--part is ''; it must be a number from 0 to 1"),
        (["--size", "1.5"], "--size is '1.5'; it must be a whole number from 1, 'all', or none"),
        (["--size", "7"], "--part and --size do not go together"),
        (["--size", "x"], "--size is 'x'; it must be a whole number from 1, 'all', or none"),
        (["--word", "three"], "--word is 'three'; it must be 'one' or 'two'"),
        (
            ["--method-option", "density=2"],
            "--method-option density is '2'; it must be a number above 0, up to 1",
        ),
    ):
        seen, done = run(*arguments)
        assert (seen, done.exit_code, done.stderr) == ([], 2, f"toy: {said}\n")


def test_the_help_has_room_for_what_options_do():
    _, done = run("--help-all", columns=80)
    assert "<one|two>" in done.stdout
    precision = done.stdout.partition("--precision")[2].partition("float16,")[0]
    assert precision.replace("│", "").split() == ["<name>", "A", "precision.", "One", "of"]


def names_of(command):
    found = typer.main.get_command(merge_app).commands[command]
    return {
        name for parameter in found.params for name in [*parameter.opts, *parameter.secondary_opts]
    }


@pytest.mark.slow
def test_all_options_are_one_step_away():
    short, whole = (
        CliRunner().invoke(app, ["merge", "sd15", option], env={"COLUMNS": "100"}).stdout
        for option in ("--help", "--help-all")
    )
    assert "--help-all" in short and "--smoothing" not in short and "--smoothing" in whole
