"""The widgets of the nodes offer what the core's settings allow, and begin with their defaults."""

from dataclasses import fields

import pytest
from iteris_pack.nodes.calibration import Calibration as CalibrationNode
from iteris_pack.nodes.merge import Merge

from iteris_core import ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration

# Widgets whose "off" is a value of its own, since a widget cannot be empty.
OFF = {"kept_energy": (1.0, None), "rank": (0, "sum")}
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
