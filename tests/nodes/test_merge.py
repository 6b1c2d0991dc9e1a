"""The settings that the merge node comes to, and what it says about the model that it is given."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_host import use
from iteris_pack.iteris_core.memory import Room
from iteris_pack.nodes.asked import Asked, Size
from iteris_pack.nodes.loras.prompts import use_of_row
from iteris_pack.nodes.payload import Work, cost_of
from iteris_pack.nodes.prepared import Connected, guessed_styles, of_strengths, prepared, too_small
from iteris_pack.nodes.settings import Settings
from iteris_pack.nodes.sockets import ChosenLora
from safetensors.torch import save_file

from iteris_core import CalibrationError, ConfigError, MergeConfig, MergeReport
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_rows import read_rows
from iteris_core.diffusion.presets import Changes
from iteris_core.diffusion.recipe import Recipe
from iteris_core.files.families import FAMILIES
from iteris_core.report.records import Note


def test_a_device_that_is_too_small_is_told_in_the_report_and_the_log(caplog):
    assert too_small(Room(8, 0, 0.0)) == [] and not caplog.records
    [note] = too_small(Room(1, 0, 0.0, missing=1.26e9))
    assert "about 1.3 GB more than is free" in note.text
    assert [record.message for record in caplog.records] == [note.text]


def test_a_preview_measures_nothing_whatever_else_is_set(widgets):
    (given,) = Settings.execute(**widgets(Settings)).args
    asked = Asked("Preview", True, Size(way="rank", value=8.0), given)
    calibration, how = asked.settings()
    assert calibration.scene_weight == 0.0
    assert (how.config.method, how.config.measured, how.config.rank) == ("np_lora", False, "sum")
    [note] = how.notes
    assert note.text == "together and size did not count, since a preview measures nothing"
    assert MergeReport((), notes=how.notes).warnings == [], "nothing is wrong"
    _, how = Asked("Preview", False, Size()).settings()
    assert how.notes == ()


def test_loras_below_full_strength_are_told_of():
    def told(*strengths):
        loras = [
            SimpleNamespace(use=replace(use("cat"), strength_model=model, strength_clip=clip))
            for model, clip in strengths
        ]
        return [note.text for note in of_strengths(loras)]

    [note] = told((0.6, 0.6), (0.0, -0.6), (0.0, 0.0))
    assert note.startswith("merged at 0.6, ") and "set 1 to merge them at full strength" in note
    [note] = told((0.8, 0.5), (0.6, 0.6))
    assert note.startswith("merged at 0.6 and 0.8, ")
    assert told((1.0, 0.5), (0.6, 0.6)) == told() == told((0.0, 0.0)) == []


def test_loras_without_prompts_are_refused_before_a_file_is_read(replace_host):
    """Unless nothing runs on prompts. Advice is given only where it can be followed."""
    base = SimpleNamespace(family=FAMILIES["SD1.5"])
    # and nothing that reads
    replace_host(lora_names=list, start_of=lambda _: None, ComfyModel=lambda *_, start: base)
    connected = Connected(None, None, frozenset())
    chosen = [ChosenLora(use("cat", ("a cat",))), ChosenLora(use("ink", ()))]

    def told(preset, given=None):
        asked = Asked(preset, False, Size(), given)
        with pytest.raises(CalibrationError, match=r"^ink has no prompts, and") as error:
            prepared(connected, [], chosen, asked)
        return str(error.value).rpartition("trigger words")[2]

    unmeasured = MergeConfig(method="np_lora", measured=False)
    assert told("Fast") == ". Or choose the preset Preview, which measures nothing"
    assert told("Preview", Recipe((), Calibration(), MergeConfig(), {})) == ""
    bare = [lora.use for lora in chosen]
    for given in (None, Recipe((), Calibration(), unmeasured, {})):
        Asked("Preview", False, Size(), given).check_prompts(bare)


def test_connected_settings_replace_those_of_the_preset_and_of_the_node():
    given = Changes({"trajectories": 3}, {"kept_energy": 0.9, "output_dtype": torch.float32})
    calibration, how = Asked("Fast", True, Size(way="smaller"), given).settings()
    assert calibration.trajectories == 3
    assert calibration.scene_weight == 0.3
    assert (how.config.kept_energy, how.config.output_dtype) == (0.9, torch.float32)
    _, how = Asked("Fast", False, Size(way="rank", value=8.0)).settings()
    assert how.config.rank == 8
    with pytest.raises(ConfigError, match="size is rank and quality_kept"):
        Asked("Fast", False, Size(way="rank", value=8.0), given).settings()


def test_the_settings_of_a_recipe_are_all_there_are_and_a_note_says_so():
    recipe = Recipe((), Calibration(trajectories=3), MergeConfig(rank=2), {"base": "sd15"})
    calibration, how = Asked("Fast", True, Size(way="rank", value=8.0), recipe).settings()
    assert (calibration, how.config) == (recipe.calibration, recipe.config)
    [note] = how.notes
    assert "preset, together and size did not count" in note.text


def test_a_file_that_looks_like_a_style_is_one_where_its_row_says_nothing(replace_host, tmp_path):
    words = {"ink": "ink wash style", "cat": "stylish cat", "lifestyle": "", "art_styles": ""}
    for name, phrase in words.items():
        metadata = {"modelspec.trigger_phrase": phrase} if phrase else {}
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors", metadata)
    replace_host(
        lora_names=lambda: [f"{name}.safetensors" for name in words],
        lora_path=lambda name: tmp_path / name,
    )
    text = "\n".join(f"<lora:{name}>" for name in words)
    rows = read_rows(f"{text}\n<lora:ink> style\n<lora:ink> subject")
    uses = [use_of_row(row, ["a"]) for row in rows]
    kinds = ["style", "subject", "subject", "style", "style", "subject"]
    assert [use.kind for use in uses] == kinds
    notes = [note.text for note in guessed_styles(rows, uses)]
    places = ["Row 1: ink.safetensors", "Row 4: art_styles.safetensors"]
    assert [note.partition(" was")[0] for note in notes] == places
    assert "taken for a style, by its name or its trigger words; write style or" in notes[0]


def test_no_time_is_told_of_presets_that_do_not_count_or_cannot_be():
    work = {"Fast": Work(10, 10, 0), "Balanced": Work(20, 20, 0)}
    report = MergeReport(())
    shown = {
        **{"rows": 20, "seconds": 1.5},
        "presets": {
            "Fast": {"rows": 10, "runs": 10, "steps": 0},
            "Balanced": {"rows": 20, "runs": 20, "steps": 0},
        },
    }
    unpolished = MergeReport((), notes=(Note("unpolished", "not polished"),))
    assert cost_of(work, "Balanced", 0.1, unpolished) is None, "not all of it was made"
    assert cost_of(work, "Balanced", 1.52, report) == shown
    assert cost_of(work, "another", 1.52, report) is None
    recipe = Recipe((), Calibration(), MergeConfig(), {})
    assert Asked("Fast", False, Size(), recipe).changes("Fast") is None
