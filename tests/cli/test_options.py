"""Options of the command line are made of settings: a new setting is an option by itself."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
import typer
import typer.main
from typer.testing import CliRunner

from iteris_core import BaselineOptions, ConfigError, MergeConfig
from iteris_core.cli import options
from iteris_core.cli.main import app
from iteris_core.cli.merge import app as merge_app
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import MergeSettings
from iteris_core.language.caption_samples import CaptionOptions
from iteris_core.language.text_samples import TextOptions
from iteris_core.settings import check, declared, setting


@dataclass(frozen=True)
class Every:
    """How things are done."""

    share: float = setting(0.5, "A share.", at_least=0, at_most=1)
    size: int | Literal["all"] | None = setting(None, "A size.", at_least=1)
    word: Literal["one", "two"] = setting("one", "A word.")
    is_new: bool = setting(False, "A switch.")
    scene_pictures: bool = setting(True, "A switch with two names.")
    some_texts: tuple[str, ...] = setting(("a", "b"), "Some texts.")
    precision: torch.dtype = setting(torch.float32, "A precision.")
    baseline: BaselineOptions = setting(BaselineOptions(), "Settings in settings.")

    def __post_init__(self) -> None:
        check(self)


def run(*arguments, default=None, start=options.as_they_are):
    """Return what a command gets of these arguments, and what typer says of it."""
    seen = []

    @options.command("toy", "none", start=start, every=default or Every())
    def toy(*, name: str = "x", every: Every) -> None:
        seen.append((name, every))

    toy_app = typer.Typer()
    toy_app.command()(toy)
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return seen, CliRunner().invoke(toy_app, list(map(str, arguments)), env=environment)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--share", "1e-2"], {"share": 0.01}),
        (["--size", "4"], {"size": 4}),
        (["--size", "all"], {"size": "all"}),
        (["--size", "none"], {"size": None}),
        (["--word", "two", "--is-new"], {"word": "two", "is_new": True}),
        (["--scene-text"], {"scene_pictures": False}),
        (["--some-texts", "c", "--some-texts", "d, e"], {"some_texts": ("c", "d, e")}),
        (["--precision", "float16"], {"precision": torch.float16}),
        (
            ["--method-option", "scale=search", "--method-option", "projection=none"],
            {"baseline": BaselineOptions(scale="search", projection=None)},
        ),
    ],
)
def test_options_are_read_as_settings(arguments, changes):
    for default in (Every(), Every(share=0.25, size=9, some_texts=("z",))):
        seen, done = run("--name", "y", *arguments, default=default)
        assert (done.exit_code, done.stderr) == (0, "")
        assert seen == [("y", replace(default, **changes))]


def test_options_replace_what_the_command_starts_from():
    def start(given, settings):
        return {"every": replace(settings["every"], size=len(given["name"]), word="two")}

    seen, _ = run("--name", "abc", "--word", "one", start=start)
    assert seen == [("abc", Every(size=3))]


@pytest.mark.parametrize(
    ("preset", "typed", "runs", "checks"),
    [("Fast", [], 10, 4), ("Fast", ["--held-out", "3"], 10, 3), ("Balanced", [], 20, 4)],
)
def test_a_preset_is_where_a_merge_starts_from(monkeypatch, preset, typed, runs, checks):
    seen = []
    monkeypatch.setattr(MergeSettings, "check", lambda how, calibration: seen.append(calibration))
    arguments = ["--base", "x", "--lora", "y", "--output", "z.safetensors", "--preset", preset]
    CliRunner().invoke(app, ["merge", "sd15", *arguments, *typed])
    [calibration] = seen
    assert (calibration.trajectories, calibration.held_out) == (runs, checks)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--share", "2"], "toy: --share is 2.0; it must be a number from 0 to 1\n"),
        (["--share", ""], "toy: --share is ''; it must be a number from 0 to 1\n"),
        (["--share", "inf"], "toy: --share is inf; it must be a number from 0 to 1\n"),
        (
            ["--size", "x"],
            "toy: --size is 'x'; it must be a whole number, 1 or more, 'all', or none\n",
        ),
        (["--word", "three"], "toy: --word is 'three'; it must be 'one' or 'two'\n"),
        (
            ["--method-option", "density=2"],
            "toy: --method-option density is 2.0; it must be a number above 0, and 1 at most\n",
        ),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(arguments, said):
    seen, done = run(*arguments)
    assert (seen, done.exit_code, done.stderr) == ([], 2, said)


def test_the_help_says_meaning_kind_and_default_of_every_setting():
    _, done = run("--help", default=Every(share=0.25))
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "How things are done" in text
    for said in (
        "--share <number> A share. Default: 0.25.",
        "--size <int|all> A size.",
        "--word <one|two> A word. Default: one.",
        "--scene-pictures --scene-text",
        "--some-texts <text> Some texts. Default: 2 of our own.",
        "Default: float32.",
        "--method-option <name=value> Settings in settings. One of scale, density, sign",
    ):
        assert said in text


def names_of(command):
    found = typer.main.get_command(merge_app).commands[command]
    return {
        name for parameter in found.params for name in [*parameter.opts, *parameter.secondary_opts]
    }


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("sd15", (MergeConfig, Calibration)),
        ("t5", (MergeConfig, TextOptions)),
        ("blip", (MergeConfig, CaptionOptions)),
    ],
)
def test_every_setting_is_an_option_of_its_command(command, kinds):
    expected = {
        name
        for kind in kinds
        for item in declared(kind)
        for name in options.Option(item, None, "").name.split("/")
    }
    assert expected <= names_of(command)


# What scripts of today use.
BEFORE = {
    "sd15": """base lora output prompts prompts-file config strength strength-text
        weights trajectories timesteps steps resolution cfg negative-prompt unconditional-share
        composition-share preserve-weight scene-weight scene-pictures scene-text trigger kind
        held-out correct-strength seed method method-option rank alpha target engine max-iter ridge
        balance input-mix samples-per-chunk waiting-bytes dtype save-dtype device style overwrite
        json""",
    "t5": """base adapter output samples token-ids preserve preserve-weight method
        method-option alpha engine max-iter ridge balance target rank modules weights input-mix
        padding max-length max-new-tokens samples-per-chunk dtype save-dtype device save-model
        overwrite json""",
    "blip": """base adapter images output prompt preserve preserve-weight method
        method-option alpha engine max-iter ridge balance target rank weights input-mix padding
        max-length max-new-tokens samples-per-chunk dtype save-dtype device save-model overwrite
        json""",
}


@pytest.mark.parametrize("command", BEFORE)
def test_every_option_of_before_is_there(command):
    assert {f"--{name}" for name in BEFORE[command].split()} <= names_of(command)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "ties", "ridge": "paper"}, "--ridge is for the method iteris; ties"),
        ({"method": "ties", "alpha_cross": 0.1}, "--alpha-cross is for the method iteris"),
        (
            {"baseline": BaselineOptions(density=0.1)},
            "--method-option density is not an option of iteris",
        ),
        ({"tolerance": 0.1}, "--tolerance is for the engine iterate"),
        ({"max_iter": 3}, "--max-iter is for the engine iterate"),
    ],
)
def test_settings_that_would_not_be_looked_at_are_refused(changes, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        options.check_used(MergeConfig(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "ties", "baseline": BaselineOptions(density=0.1)},
        {"engine": "iterate", "max_iter": 3, "tolerance": 0.1, "alpha_cross": 0.1},
    ],
)
def test_settings_that_are_looked_at_are_taken(changes):
    options.check_used(MergeConfig(**changes))
