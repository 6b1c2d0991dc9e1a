"""The node 'Merge settings': all that the merge node does not ask for.

Its inputs are the declarations of the core's settings, under the words that these have for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..iteris_core import MergeConfig
from ..iteris_core.config import UNIT_GAIN
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import Changes
from ..iteris_core.settings import PRECISIONS, alternatives, bounds, declared, schema_of, words_of
from .loras.prompts import lines
from .sockets import SETTINGS, advanced
from .validation import checked
from .words import NAMES, TARGETS

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import Job
    from ..iteris_core.diffusion.recipe import Recipe

FILE_PRECISIONS = ("float16", "bfloat16", "float32")
# Values of widgets that set nothing. -1 where 0 means that there is none.
UNSET = {
    "sample_runs": 0,
    "protected_prompts": (),
    "forms": (),
    "quality_kept": 1.0,
    "polish_steps": -1,
}
_KINDS = {name: kind for kind in (Calibration, MergeConfig) for name in declared(kind)}
# Field -> what its tooltip says beside the field's description, and how the widget differs from the
# field. Workflows store values in this order.
_WIDGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "trajectories": (
        f" 0: as the preset says, which is {Calibration.trajectories} for Balanced.",
        {"default": 0, "min": 0},
    ),
    "preserve_weight": ("", {"step": 0.05}),
    "preserve_captions": (
        "",
        {
            "default": "",
            "multiline": True,
            "tooltip": "Prompts of other things, whose pictures should stay as they were, one per "
            "line. Empty: a built-in list.",
        },
    ),
    "resolution": ("", {"step": 64}),
    "cfg": ("", {"step": 0.1}),
    "negative_prompt": ("", {}),
    "kept_energy": (
        " It counts with the sizes 'as is' and 'smaller'. 1: as the size says, which is no limit "
        "for 'as is', and 0.99 for 'smaller'.",
        {"default": 1.0, "min": 0.01, "step": 0.001, "round": False},
    ),
    "output_dtype": ("", {"default": "float16", "options": list(FILE_PRECISIONS)}),
    "seed": ("", {"control_after_generate": False}),
    "sampling_steps": ("", {}),
    "unconditional_share": ("", {"step": 0.05}),
    "composition_share": ("", {"step": 0.05}),
    "target": ("", {"default": "whole output", "options": list(TARGETS)}),
    "unit_gain": ("", {"default": UNIT_GAIN, "step": 0.1}),
    "method": (
        " Other methods use size and precision; layer_gain is for iteris alone.",
        {},
    ),
    "polish": (" -1: as the preset says.", {"default": -1, "min": -1}),
    "frames": ("", {}),
    "noise_levels": ("", {}),
    "scene_forms": (
        "",
        {
            "default": "",
            "multiline": True,
            "placeholder": "{first} and {second}",
            "tooltip": "With together: forms of the captions with several LoRAs, one per line, "
            "with first, second, third and style in curly braces. Concepts appear "
            "together best in forms that were measured. Empty: a built-in list.",
        },
    ),
}
FIELDS = tuple(_WIDGETS)
# The widgets that people change; frontends that can do so show the others only on demand.
_FIRST = (
    "trajectories",
    "preserve_weight",
    "preserve_captions",
    "resolution",
    "cfg",
    "negative_prompt",
    "output_dtype",
)


def _widget(name: str, more: str, looks: Mapping[str, Any]) -> Any:
    """Return the widget of a field of the core's settings."""
    item = declared(_KINDS[name])[name]
    (schema,) = (part for part in alternatives(schema_of(item)) if part != {"type": "null"})
    choices = words_of(schema)
    kind = io.Combo if choices else _INPUTS[schema["type"]]
    given = {"options": choices} if choices else bounds(_KINDS[name], name)
    tooltip = f"{item.description}{more}"
    looks = {"default": item.default, "tooltip": tooltip, **given, **looks}
    widget = kind.Input(NAMES[name], optional=True, **looks)
    return widget if name in _FIRST else advanced(widget)[0]


_INPUTS = {"integer": io.Int, "number": io.Float, "string": io.String, "array": io.String}


class Settings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISSettings",
            display_name="Merge settings (IterIS)",
            category="loaders/IterIS",
            description="All settings of a merge that Merge LoRAs does not ask for. What is set "
            "here overrides the preset; where it says so, 0 or -1 keeps the preset's value. Few "
            "merges need this node.",
            inputs=[_widget(name, *details) for name, details in _WIDGETS.items()],
            outputs=[SETTINGS.Output(display_name="settings")],
        )

    @classmethod
    @checked
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(changes_of(**widgets))


def settings_of(made: Job | Recipe) -> dict[str, Any]:
    """Return all settings of a merge, by the names of the core."""
    return {**asdict(made.calibration), **made.config.to_dict()}


def in_words(value: Any) -> str:
    """Return a setting's value as a text."""
    return ", ".join(value) if isinstance(value, tuple) else str(value).removeprefix("torch.")


def changes_of(
    *,
    precision: str = FILE_PRECISIONS[0],
    reproduce: str = next(iter(TARGETS)),
    protected_prompts: str = "",
    forms: str = "",
    **plain: Any,
) -> Changes:
    """Return what the widgets change. Those that say "as the preset says" change nothing, nor do
    those that are left out.

    Raises:
        ConfigError: Settings of the calibration that do not go together.
    """
    of_core = {
        "precision": PRECISIONS[precision],
        "reproduce": TARGETS[reproduce],
        "protected_prompts": lines(protected_prompts),
        "forms": lines(forms),
    }
    said = {word: value for word, value in {**plain, **of_core}.items() if UNSET.get(word) != value}
    calibration, config = (
        {name: said[NAMES[name]] for name in declared(kind) if NAMES[name] in said}
        for kind in (Calibration, MergeConfig)
    )
    Calibration(**calibration)  # what does not go together is an error of this node
    return Changes(calibration, config)
