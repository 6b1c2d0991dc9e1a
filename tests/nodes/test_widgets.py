"""The widgets of the nodes offer what the core's settings allow, and begin with their defaults."""

from dataclasses import MISSING, fields

import pytest
import torch
from iteris_pack.nodes.lora import LoraToMerge, TrainedLora
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.scene import ScenePrompts
from iteris_pack.nodes.settings import (
    OF_CALIBRATION,
    OF_CONFIG,
    UNSET,
    Settings,
    changes_of,
)
from iteris_pack.nodes.size import Size

from iteris_core import ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import MergeSettings, changed
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.presets import PRESETS
from iteris_core.settings import bounds

# Widget -> field of the settings, where the two have other names.
FIELDS = {
    **OF_CALIBRATION,
    **OF_CONFIG,
    "quality_kept": "kept_energy",
    "size_value": "value",
}
NODES = {
    Settings: (Calibration, MergeConfig),
    Merge: (Size,),
    LoraToMerge: (LoraUse,),
    TrainedLora: (LoraUse,),
    ScenePrompts: (Calibration,),
}
# "priority" is that of a LoRA, or that of the captions with several.
PRIORITY = {LoraUse: "weight", Calibration: "scene_weight"}
# A widget has an end where the setting has a bound that it must not reach, or an end of its own
# that sets nothing.
WITHIN = {
    "input_mix": {"max": 0.99},
    "quality_kept": {"min": 0.01},
    **{name: {"min": value} for name, value in UNSET.items()},
}


def declared_in(node, widget):
    """Return the settings and the field that a widget is for; None: none is."""
    for kind in NODES[node]:
        name = PRIORITY.get(kind) if widget.id == "priority" else FIELDS.get(widget.id, widget.id)
        if name in {item.name for item in fields(kind)}:
            return kind, name
    return None


CASES = [
    pytest.param(*found, widget, id=widget.id)
    for widget in Settings.define_schema().inputs
    if (found := declared_in(Settings, widget))
]


@pytest.mark.parametrize(("kind", "name", "widget"), CASES)
def test_the_core_allows_what_a_widget_offers(kind, name, widget):
    offered = [*widget.more.get("options", ()), *(widget.more.get(end) for end in ("min", "max"))]
    for value in offered:
        if value is not None and value != UNSET.get(widget.id):
            try:
                kind(**{name: value})
            except ConfigError as error:
                # another setting may be in the way, but not this value by itself
                assert not str(error).startswith(f"{name} is"), error


def test_there_are_widgets_to_compare():
    names = {case.values[2].id for case in CASES}
    assert {"smoothing", "engine", "input_mix", "sample_runs", "check_runs"} <= names


def test_new_merge_settings_change_nothing(widgets):
    (changes,) = Settings.execute(**widgets(Settings)).args
    start = Calibration(), MergeSettings(MergeConfig(output_dtype=torch.float16))
    assert changed(*start, changes) == start


@pytest.mark.parametrize("preset", PRESETS)
def test_new_merge_settings_leave_a_preset_as_it_is(preset, widgets):
    (changes,) = Settings.execute(**widgets(Settings)).args
    start = Calibration(), MergeSettings(MergeConfig(output_dtype=torch.float16))
    of_preset = changed(*start, PRESETS[preset])
    assert changed(*start, PRESETS[preset].then(changes)) == of_preset


def test_each_widget_of_merge_settings_changes_its_setting(widgets):
    fresh = changes_of(**widgets(Settings))
    for widget in Settings.define_schema().inputs:
        other = changes_of(**widgets(Settings, **{widget.id: other_value(widget)}))
        assert other != fresh, widget.id


def other_value(widget):
    """Return a value that a widget may have, and does not begin with."""
    default = widget.more["default"]
    if widget.io_type == "STRING":
        return "a dog"
    if widget.io_type == "BOOLEAN":
        return not default
    if widget.io_type == "COMBO":
        return widget.more["options"][-1]
    if widget.io_type == "INT":
        return widget.more.get("step") or 2
    low, high = widget.more["min"], widget.more["max"]
    return (default + (low if default == high else high)) / 2


@pytest.fixture
def numbers(replace_host):
    """Return every numeric widget of the pack: (widget, settings that declare it, field)."""
    replace_host(lora_names=list)
    return [
        (widget, *declared_in(node, widget))
        for node in NODES
        for widget in node.define_schema().inputs
        if widget.io_type in ("INT", "FLOAT")
    ]


def test_a_number_has_the_bounds_of_its_setting_and_no_others(numbers):
    for widget, kind, name in numbers:
        ends = bounds(kind, name) | WITHIN.get(widget.id, {})
        assert {end: widget.more[end] for end in ("min", "max")} == ends, widget.id


def test_a_number_begins_with_its_default_inside_its_bounds(numbers):
    assert len(numbers) > 20
    for widget, kind, name in numbers:
        begins = widget.more["default"]
        assert widget.more["min"] <= begins <= widget.more["max"]
        default = {item.name: item.default for item in fields(kind)}[name]
        # a scene's is that of a node that asks for scenes
        if default not in (MISSING, None) and widget.id not in UNSET and name != "scene_weight":
            assert begins == default, widget.id
