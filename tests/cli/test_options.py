"""Options of the command line are made of settings: a new setting can be given by itself."""

from dataclasses import replace
from typing import Annotated, Literal

import pytest
import torch
import typer
from pydantic import Field
from typer.testing import CliRunner

from iteris_core import BaselineOptions, ConfigError
from iteris_core.cli import options
from iteris_core.cli.main import app
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
    is_kept: Annotated[bool, Field(description="A switch that is on by itself.")] = True
    some_texts: Annotated[Texts, Field(description="Some texts.")] = ("a", "b")
    precision: Annotated[Precision, Field(description="A precision.")] = torch.float32
    baseline: Annotated[BaselineOptions, Field(description="Settings in settings.")] = (
        BaselineOptions()
    )

    def __post_init__(self) -> None:
        if self.size == 7:
            raise ConfigError(f"{label('share')} and {label('size')} do not go together")


def run(*arguments, default=None, start=None, only=None):
    seen = []

    @options.command("toy", "none", start=start, only=only, every=default or Every())
    def toy(*, name: str = "x", every: Every) -> None:
        seen.append((name, every))

    toy_app = typer.Typer()
    toy_app.command()(toy)
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return seen, CliRunner().invoke(toy_app, list(map(str, arguments)), env=environment)


READ = [  # name, texts, what they change
    ("part", ["1e-2"], {"share": 0.01}),
    ("part", ["0.2", "0.3"], {"share": 0.3}),  # the last one counts
    ("size", ["4"], {"size": 4}),
    ("size", ["all"], {"size": "all"}),
    ("size", ["none"], {"size": None}),
    ("word", ["two"], {"word": "two"}),
    ("is_new", ["true"], {"is_new": True}),
    ("is_kept", ["false"], {"is_kept": False}),
    ("some_texts", ["c", "d, e"], {"some_texts": ("c", "d, e")}),
    ("precision", ["float16"], {"precision": torch.float16}),
    ("scale", ["search"], {"baseline": BaselineOptions(scale="search")}),
    ("projection", ["none"], {"baseline": BaselineOptions(projection=None)}),
]


def test_options_are_read_as_settings():
    for default in (Every(), Every(share=0.25, size=9, some_texts=("z",))):
        for name, texts, changes in [*READ, ("", [], {})]:
            arguments = [part for text in texts for part in (f"--{name.replace('_', '-')}", text)]
            seen, done = run("--name", "y", *arguments, default=default)
            assert (done.exit_code, done.stderr) == (0, "")
            assert seen == [("y", replace(default, **changes))]


def test_settings_in_settings_change_together():
    seen, _ = run("--scale", "2", "--projection", "1", "--part", "0.1")
    assert seen == [("x", Every(share=0.1, baseline=BaselineOptions(scale=2.0, projection=1.0)))]


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
        (["--density", "2"], "--density is '2'; it must be a number above 0, up to 1"),
    ):
        seen, done = run(*arguments)
        assert (seen, done.exit_code, done.stderr) == ([], 2, f"toy: {said}\n")


def test_the_help_says_what_can_be_given():
    _, done = run("--help")
    told = " ".join(done.stdout.replace("│", "").split())
    assert "A precision. One of float16, bfloat16, float32, float64. Default: float32." in told
    _, done = run("--help", only=("word",))
    assert "--word" in done.stdout and "--part" not in done.stdout


@pytest.mark.slow
def test_a_merge_has_few_options():
    told = CliRunner().invoke(app, ["merge", "sd15", "--help"], env={"COLUMNS": "100"}).stdout
    assert "--smoothing" in told and "--engine" not in told
