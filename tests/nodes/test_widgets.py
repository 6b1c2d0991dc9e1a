"""The widgets of the nodes offer what the core's settings allow, and begin with their defaults."""

import re

import pytest
import torch
from iteris_pack.nodes.asked import Asked, Size
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.settings import UNSET, Settings, changes_of
from iteris_pack.nodes.words import NAMES, TARGETS

from iteris_core import ConfigError, MergeConfig
from iteris_core.config import UNIT_GAIN
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.contexts import Pairing
from iteris_core.diffusion.job import MergeSettings, changed, check_target
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.presets import PRESETS
from iteris_core.diffusion.samples import SampleSpec
from iteris_core.rivals.methods import check_used
from iteris_core.settings import PRECISIONS, TOGETHER, checked, declared, labelled, setting_to

CORE = {name: kind for kind in (Calibration, MergeConfig) for name in declared(kind)}
FIELDS = {NAMES[name]: name for name in CORE}
# Widgets of other nodes -> the declarations of their numbers.
OTHERS = {
    (Merge, "size_value"): (Size, "value"),
    (LoraToMerge, "strength_model"): (LoraUse, "strength_model"),
    (LoraToMerge, "strength_clip"): (LoraUse, "strength_clip"),
    (LoraToMerge, "priority"): (LoraUse, "weight"),
}


SHOWN = {"STRING", "COMBO", "BOOLEAN", "FLOAT"}  # as fields, not as sockets


def test_a_merge_has_the_sockets_of_loras_settings_and_a_first_picture():
    schema = Merge.define_schema()
    sockets = [item.id for item in schema.inputs if item.io_type not in SHOWN]
    assert sockets == ["model", "clip", "lora_stack", "more_loras", "settings", "start"]
    outputs = [item.display_name for item in schema.outputs]
    assert outputs == ["MODEL", "CLIP", "LORA_MODEL", "merged LoRA", "report"]


def test_a_user_may_set_at_most_20_settings():
    assert len(widgets_of_settings()) <= 20


def widgets_of_settings():
    return Settings.define_schema().inputs


def test_an_error_of_the_core_has_the_words_of_the_input():
    for widget in widgets_of_settings():
        name = FIELDS[widget.id]
        with labelled(NAMES), pytest.raises(ConfigError, match=f"^{widget.id} is <object") as error:
            CORE[name](**{name: object()})
        assert name == widget.id or not re.search(rf"\b{name}\b", str(error.value))
        with pytest.raises(ConfigError, match=f"^{name} is <object"):  # the library has its own
            CORE[name](**{name: object()})


IN_SCENE = SampleSpec("a", 0, 1.0, "a", "a and b", None, pairing=Pairing())
# What does not go together -> the inputs that its error names.
WRONG = [
    (lambda: Calibration(preserve_captions=()), ["protected_prompts", "protect_base"]),
    (lambda: Calibration(companions=()), ["company_share"]),
    (lambda: Calibration(scene_weight=1, scene_forms=()), ["forms", "together to off"]),
    (lambda: MergeConfig(rank=2, kept_energy=0.9), ["quality_kept", "size"]),
    (lambda: check_used(MergeConfig(method="ties", unit_gain=3)), ["layer_gain"]),
    (
        lambda: check_target([IN_SCENE], MergeConfig(target="delta")),
        ["reproduce", "whole output", "what the LoRA adds", "together to off"],
    ),
]


@pytest.mark.parametrize(("make", "named"), WRONG)
def test_what_does_not_go_together_is_told_in_the_words_of_the_inputs(make, named):
    with labelled(NAMES), pytest.raises(ConfigError) as error:
        make()
    told = str(error.value)
    assert [name for name in named if name not in told] == []
    others = {field.partition("=")[0] for field, name in NAMES.items() if field != name}
    assert not re.findall(rf"\b(?:{'|'.join(others)}|full_output)\b", told)


def test_what_gets_two_into_one_picture_is_a_switch_of_the_node():
    with labelled(NAMES):
        assert setting_to("scene_weight", TOGETHER) == "together to on"


def test_the_core_allows_what_a_widget_offers_and_begins_with(replace_host):
    replace_host(lora_names=list)
    of_settings = [
        (widget, CORE[FIELDS[widget.id]], FIELDS[widget.id]) for widget in widgets_of_settings()
    ]
    others = [
        (widget, *OTHERS[node, widget.id])
        for node in dict.fromkeys(node for node, _ in OTHERS)
        for widget in node.define_schema().inputs
        if widget.io_type in ("INT", "FLOAT")
    ]
    assert len(others) == len(OTHERS)
    for widget, kind, name in (*of_settings, *others):
        ends = [widget.more.get(end) for end in ("min", "max", "default")]
        for value in (*ends, *widget.more.get("options", ())):
            if value is None or value in (UNSET.get(widget.id), ""):
                continue
            of_core = TARGETS.get(value, PRECISIONS.get(value, value))
            checked(widget.id, of_core, declared(kind)[name].rebuild_annotation())
        if "min" in widget.more:
            assert widget.more["min"] <= widget.more["default"] <= widget.more["max"]


DEFAULTS = MergeConfig(output_dtype=torch.float16, unit_gain=UNIT_GAIN)


@pytest.mark.parametrize("preset", PRESETS)
def test_new_merge_settings_leave_a_preset_as_it_is(preset, widgets):
    (changes,) = Settings.execute(**widgets(Settings)).args
    start = Calibration(), MergeSettings(DEFAULTS)
    of_preset = changed(*start, PRESETS[preset])
    assert changed(*start, Asked(preset, False, Size(), changes).changes(preset)) == of_preset


def test_each_widget_of_merge_settings_changes_its_setting(widgets):
    fresh = changes_of(**widgets(Settings))
    for widget in Settings.define_schema().inputs:
        other = changes_of(**widgets(Settings, **{widget.id: other_value(widget)}))
        assert other != fresh, widget.id


def other_value(widget):
    default = widget.more["default"]
    if widget.io_type == "STRING":
        return "{first} and {second}"
    if widget.io_type == "BOOLEAN":
        return not default
    if widget.io_type == "COMBO":
        return widget.more["options"][-1]
    if widget.io_type == "INT":
        return widget.more.get("step") or 3
    low, high = widget.more["min"], widget.more["max"]
    return (default + (low if default == high else high)) / 2


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        ("rank", 8.5, "size is rank, and size_value is 8.5; a rank is a whole number from 1 on"),
        ("rank", 0.0, "size is rank, and size_value is 0.0"),
        ("half", 1.0, "way is 'half'; it must be 'as is' or 'smaller' or 'rank'"),
        ("as is", float("nan"), "value is nan; it must be a number"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(way, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        Size(way=way, value=value)


def test_a_size_sets_one_thing():
    for way, value, config in (
        ("as is", 8.5, {}),
        ("smaller", 0.0, {"kept_energy": 0.99}),
        ("rank", 8.0, {"rank": 8}),
    ):
        assert Size(way=way, value=value).changes().config == config
