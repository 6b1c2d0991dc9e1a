"""The widgets of the nodes offer what the core's settings allow, and begin with their defaults."""

from dataclasses import MISSING, fields

import pytest
from iteris_pack.nodes.calibration import Calibration as CalibrationNode
from iteris_pack.nodes.lora import LoraToMerge, TrainedLora
from iteris_pack.nodes.merge import Merge, Ranks
from iteris_pack.nodes.scene import ScenePrompts

from iteris_core import ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.settings import bounds

# Widgets whose "off" is a value of its own, since a widget cannot be empty; `Ranks` has its bounds.
OFF = {"kept_energy": (1.0, None), "rank": (0, "sum")}
NODES = {
    CalibrationNode: Calibration,
    Merge: MergeConfig,
    LoraToMerge: LoraUse,
    TrainedLora: LoraUse,
    ScenePrompts: Calibration,
}
# A widget has an end where the setting has a bound that it must not reach.
WITHIN = {"input_mix": {"max": 0.99}}
CASES = [
    pytest.param(settings, widget, id=f"{settings.__name__}.{widget.id}")
    for settings, node in ((MergeConfig, Merge), (Calibration, CalibrationNode))
    for widget in node.define_schema().inputs
    if widget.id in {item.name for item in fields(settings)} and "default" in widget.more
]


@pytest.mark.parametrize(("settings", "widget"), CASES)
def test_a_widget_begins_with_the_default(settings, widget):
    default = getattr(settings(), widget.id)
    off, means = OFF.get(widget.id, (default, default))
    assert (widget.more["default"], default) == (off, means)


@pytest.mark.parametrize(("settings", "widget"), CASES)
def test_the_core_allows_what_a_widget_offers(settings, widget):
    offered = [*widget.more.get("options", ()), *(widget.more.get(end) for end in ("min", "max"))]
    off, _ = OFF.get(widget.id, (None, None))
    for value in offered:
        if value is not None and value != off:
            try:
                settings(**{widget.id: value})
            except ConfigError as error:
                # another setting may be in the way, but not this value by itself
                assert not str(error).startswith(f"{widget.id} is"), error


def test_there_are_widgets_to_compare():
    names = {case.values[1].id for case in CASES}
    assert {"alpha", "target", "engine", "input_mix", "trajectories", "held_out"} <= names


@pytest.fixture
def numbers(replace_host):
    """Return every numeric widget of the pack: (node, widget, settings that declare it)."""
    replace_host(lora_names=list)
    found = []
    for node, kind in NODES.items():
        for widget in node.define_schema().inputs:
            if widget.io_type in ("INT", "FLOAT"):
                of_ranks = widget.id in {item.name for item in fields(Ranks)}
                found.append((node, widget, Ranks if of_ranks else kind))
    return found


def test_a_number_has_the_bounds_of_its_setting_and_no_others(numbers):
    for node, widget, kind in numbers:
        ends = bounds(kind, widget.id) | WITHIN.get(widget.id, {})
        shown = {end: widget.more[end] for end in ("min", "max")}
        assert shown == ends, f"{node.__name__}.{widget.id}"


def test_the_default_of_a_number_is_inside_its_bounds(numbers):
    assert len(numbers) > 20
    for _, widget, kind in numbers:
        assert widget.more["min"] <= widget.more["default"] <= widget.more["max"]
        default = {item.name: item.default for item in fields(kind)}.get(widget.id)
        assert default in (MISSING, widget.more["default"]) or widget.id == "scene_weight"
