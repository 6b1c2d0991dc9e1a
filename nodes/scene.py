"""Several concepts in one picture, said in one place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..iteris_core import CalibrationError, IterisError
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.captions import SCENE_FORMS, STYLE_PLACE, SUBJECT_PLACES, placeholders
from . import host
from .loras.names import adapter_name
from .loras.prompts import lines, triggers_of
from .loras.stack_formats import prompts_by_name
from .sockets import TASKS, LoraEntry, Scenes

if TYPE_CHECKING:
    from ..iteris_core.diffusion.scenes import Kind

_TRIGGER = "{trigger}"
_WEIGHT = 1.0
_SHOWN = 4


class ScenePrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISScene",
            display_name="Scene prompts (IterIS)",
            category="loaders/IterIS",
            description="For pictures with several of the LoRAs' concepts in them: their captions "
                        "are written for you from the trigger words. Between the last LoRA and "
                        "IterIS Merge, whose target must be full_output (its default).",
            inputs=[
                TASKS.Input("tasks", tooltip="The last 'LoRA to merge' of the chain."),
                io.String.Input(
                    "subjects", multiline=True, default="", placeholder="cat: a sks cat\n"
                                                                        "dog: a ohwx dog",
                    tooltip="How to call each LoRA's subject in a sentence, with its article, one "
                            "per line. A LoRA that is not named is called by its shortest prompt.",
                ),
                io.String.Input(
                    "styles", multiline=True, default="", placeholder="ink: in ink wash style",
                    tooltip="The same for LoRAs that are styles: the words behind 'a cat'.",
                ),
                io.Float.Input(
                    "scene_weight", default=_WEIGHT, min=0.0, max=10.0, step=0.05,
                    tooltip="How much these captions count beside each LoRA's own prompts. 0: off. "
                            "More makes these pictures surer, and others less sure.",
                ),
                io.Boolean.Input(
                    "pictures", default=True,
                    tooltip="Also measure scenes in the picture, each LoRA in its own part of it. "
                            "Better at keeping concepts apart, above all of three, and slower. "
                            "Off: they are measured in the text alone.",
                ),
                io.String.Input(
                    "forms", multiline=True, default="", placeholder="{first} and {second}\n"
                                                                     "{first} {style}",
                    tooltip="Forms of the captions, one per line, with first, second, third and "
                            "style in curly braces. Concepts meet best in forms that were "
                            "measured, so write those that you will use. Empty: our own list.",
                ),
                io.String.Input(
                    "companions", multiline=True, default="", placeholder="a red chair\nan old car",
                    tooltip="Ordinary things that stand in for a concept where only the others are "
                            "worn. Empty: our own list.",
                ),
            ],
            outputs=[TASKS.Output(display_name="LoRAs")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        tasks: tuple[LoraEntry, ...],
        subjects: str,
        styles: str,
        scene_weight: float,
        pictures: bool,
        forms: str,
        companions: str,
    ) -> io.NodeOutput:
        count = sum(not entry.is_idle for entry in tasks)
        if count < 2:
            raise IterisError(
                f"a scene needs two LoRAs or more with a strength other than 0; there is {count}. "
                "Chain them through 'previous'"
            )
        scenes = Scenes(scene_weight, pictures, lines(forms) or SCENE_FORMS, lines(companions))
        scenes.applied_to(Calibration())  # a wrong form is an error of this node, not of the merge
        named = tuple(
            replace(entry, scenes=scenes) for entry in with_triggers(tasks, subjects, styles)
        )
        text = "captions such as\n" + "\n".join(
            f"  {caption}" for caption in example_captions(named, scenes.scene_forms)
        )
        host.show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(named, ui={"text": [text]})


def with_triggers(tasks: Sequence[LoraEntry], subjects: str, styles: str) -> tuple[LoraEntry, ...]:
    """Return the LoRAs with what to call them in scenes.

    Raises:
        IterisError: A line that names no LoRA, a LoRA that is called in two ways, or trigger words
            that no file names.
    """
    names = [adapter_name(entry.lora_name) for entry in tasks]
    given = {
        kind: prompts_by_name(text, names, f"{kind}s")
        for kind, text in (("subject", subjects), ("style", styles))
    }
    named = []
    for entry, name in zip(tasks, names, strict=True):
        found = [(kind, words) for kind, by_name in given.items() for words in by_name[name]]
        if len(found) > 1:
            called = " and ".join(f"{words!r} in {kind}s" for kind, words in found)
            raise IterisError(f"{name} is called {called}; give it one name in scenes")
        named.append(_called(entry, *found[0]) if found else entry)
    return tuple(named)


def _called(entry: LoraEntry, kind: Kind, words: str) -> LoraEntry:
    triggers = triggers_of(entry) if _TRIGGER in words else ()
    if _TRIGGER in words and not triggers:
        raise CalibrationError(
            f"{kind}s: {entry.lora_name} is called {words!r}, and its file names no trigger words; "
            f"write them instead of {_TRIGGER}, such as 'a sks cat'"
        )
    return replace(
        entry, kind=kind, trigger=words.replace(_TRIGGER, *triggers[:1]) if triggers else words
    )


def example_captions(tasks: Sequence[LoraEntry], forms: Sequence[str]) -> list[str]:
    """Return a few captions as they will be written; the forms that fit these LoRAs are all used in
    the end.
    """
    from ..iteris_core import Adapter
    from ..iteris_core.diffusion.samples import PromptedAdapter

    used = [entry for entry in tasks if not entry.is_idle]
    shown = [
        PromptedAdapter(
            Adapter(e.lora_name, {}), e.prompts, trigger=e.trigger, kind=e.kind
        ).in_scenes
        for e in used
    ]
    of_kind = {
        kind: [trigger.words for trigger in shown if trigger.kind == kind]
        for kind in ("subject", "style")
    }
    found = []
    for form in forms:
        places = placeholders(form)
        subjects = [name for name in SUBJECT_PLACES if name in places]
        styles = places.count(STYLE_PLACE)
        if len(subjects) <= len(of_kind["subject"]) and styles <= len(of_kind["style"]):
            words = dict(zip(subjects, of_kind["subject"], strict=False))
            found.append(
                form.format(**words, **{STYLE_PLACE: of_kind["style"][0]} if styles else {})
            )
    return list(itertools.islice(found, _SHOWN))
