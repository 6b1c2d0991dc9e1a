"""The widgets of the nodes offer what the core's settings allow, and begin with their defaults."""

import re
from dataclasses import MISSING, fields
from typing import get_args

import pytest
import torch
from iteris_pack.nodes.lora import LoraToMerge, TrainedLora
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.scene import ScenePrompts
from iteris_pack.nodes.settings import UNSET, Settings, changes_of
from iteris_pack.nodes.size import Size
from iteris_pack.nodes.words import NAMES, OF_CALIBRATION, OF_CONFIG, OF_OTHERS

from iteris_core import ConfigError, MergeConfig
from iteris_core.config import UNIT_GAIN
from iteris_core.diffusion.calibration import PRESETS, Calibration
from iteris_core.diffusion.job import MergeSettings, changed, check_target
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.plans import ScenePlan
from iteris_core.report.verdict import Advice, AdviceKind, _sentence
from iteris_core.report.watchdog import Alarm, warnings_of
from iteris_core.rivals.registry import check_used
from iteris_core.settings import bounds, calling, shown

# Widget -> field of the settings, where the two have other names.
FIELDS = {
    **OF_CALIBRATION,
    **OF_CONFIG,
    **OF_OTHERS,
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
def test_an_error_of_the_core_has_the_words_of_the_input(kind, name, widget):
    with calling(NAMES), pytest.raises(ConfigError, match=f"^{widget.id} is <object") as error:
        kind(**{name: object()})
    assert name == widget.id or not re.search(rf"\b{name}\b", str(error.value))
    with pytest.raises(ConfigError, match=f"^{name} is <object"):  # the library has its own words
        kind(**{name: object()})


def test_every_input_of_merge_settings_is_known_by_its_setting():
    shown = {widget.id for widget in Settings.define_schema().inputs}
    assert shown - {case.values[2].id for case in CASES} == {"correct_strength"}
    assert shown - {"correct_strength"} <= set(NAMES.values())


# What does not go together -> the inputs that its error names.
WRONG = [
    (lambda: Calibration(timesteps=5), ["latents_per_run", "sampling_steps"]),
    (
        lambda: Calibration(trajectories=1000, timesteps=200, sampling_steps=200),
        ["sample_runs", "latents_per_run"],
    ),
    (lambda: Calibration(preserve_captions=()), ["protected_prompts", "protect_base"]),
    (lambda: Calibration(companions=()), ["company_share"]),
    (lambda: Calibration(scene_weight=1, scene_forms=()), ["forms", "together to off"]),
    (lambda: MergeConfig(rank=2, kept_energy=0.9), ["quality_kept", "size"]),
    (lambda: check_used(MergeConfig(method="ties", unit_gain=3)), ["layer_gain"]),
    (
        lambda: MergeSettings(correct_strength=True).check(Calibration(held_out=0)),
        ["correct_strength", "check_runs"],
    ),
    (
        lambda: check_target([object.__new__(ScenePlan)], MergeConfig(target="delta")),
        ["reproduce", "whole output", "what the LoRA adds", "together to off"],
    ),
]


@pytest.mark.parametrize(("make", "named"), WRONG)
def test_what_does_not_go_together_is_told_in_the_words_of_the_inputs(make, named):
    with calling(NAMES), pytest.raises(ConfigError) as error:
        make()
    told = str(error.value)
    assert [name for name in named if name not in told] == []
    others = {field.partition("=")[0] for field, name in NAMES.items() if field != name}
    assert not re.findall(rf"\b(?:{'|'.join(others)}|full_output)\b", told)


def test_a_node_tells_the_words_of_its_inputs(widgets):
    with pytest.raises(ConfigError, match=r"^latents_per_run is 9, and sampling_steps is 3\b"):
        Settings.execute(**widgets(Settings, latents_per_run=9))
    with pytest.raises(ConfigError, match=r"^timesteps is 9, and sampling_steps is 3\b"):
        Calibration(timesteps=9)


def test_a_report_has_the_words_of_the_inputs():
    alarms = [Alarm("a", than, 2.0, 1.0, ()) for than in ("nothing", "average", "stack")]
    advice = [Advice(kind, ("x",)) for kind in get_args(AdviceKind)]
    with calling(NAMES):
        text = "\n".join([*warnings_of(alarms), *map(_sentence, advice)])
    words = set(re.findall(r"\w+", text))
    assert {"smoothing", "layer_gain", "protect_base", "check_runs"} <= words
    assert not re.search(r"alpha|unit_gain|preserve|held_out|weight|in ComfyUI", text)


@pytest.mark.parametrize(
    ("kind", "name", "widget"),
    [case for case in CASES if case.values[2].id not in ("precision", "reproduce")],  # other values
)
def test_the_core_allows_what_a_widget_offers(kind, name, widget):
    offered = [*widget.more.get("options", ()), *(widget.more.get(end) for end in ("min", "max"))]
    for value in offered:
        if value is not None and value != UNSET.get(widget.id):
            try:
                kind(**{name: value})
            except ConfigError as error:
                # another setting may be in the way, but not this value by itself
                assert not str(error).startswith(f"{name} is {shown(value)};"), error


def test_there_are_widgets_to_compare():
    names = {case.values[2].id for case in CASES}
    assert {"smoothing", "engine", "input_mix", "sample_runs", "check_runs"} <= names


DEFAULTS = MergeConfig(output_dtype=torch.float16, unit_gain=UNIT_GAIN)


def test_new_merge_settings_change_nothing(widgets):
    (changes,) = Settings.execute(**widgets(Settings)).args
    start = Calibration(), MergeSettings(DEFAULTS)
    assert changed(*start, changes) == start


@pytest.mark.parametrize("preset", PRESETS)
def test_new_merge_settings_leave_a_preset_as_it_is(preset, widgets):
    (changes,) = Settings.execute(**widgets(Settings)).args
    start = Calibration(), MergeSettings(DEFAULTS)
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
