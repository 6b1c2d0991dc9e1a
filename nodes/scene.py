"""The node 'Scene prompts'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.captions import SCENE_FORMS, STYLE_PLACE, SUBJECT_PLACES, placeholders
from ..iteris_core.settings import TOGETHER, bounds
from .loras.prompts import filled, lines
from .loras.stack_formats import prompts_by_name
from .sockets import LORAS, ChosenLora, Scenes
from .validation import checked

if TYPE_CHECKING:
    from ..iteris_core.diffusion.lora_use import Kind, LoraUse

TOGETHER_POLISHED = 1.0  # the weight where gradients see what both draw
_SHOWN = 4


class ScenePrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISScene",
            display_name="Scene prompts (IterIS)",
            category="loaders/IterIS",
            description="Adds captions where the LoRAs' concepts appear together, so that the "
            "merged LoRA can draw them in one picture. Put this node between the last "
            "LoRA and Merge LoRAs, whose switch 'together' has the defaults of this node. On "
            "transformers, several subjects also need the preset Polished.",
            inputs=[
                LORAS.Input(
                    "loras", tooltip="The LoRAs to merge: connect the last node of the chain."
                ),
                io.String.Input(
                    "subjects",
                    multiline=True,
                    default="",
                    placeholder="cat: a sks cat\ndog: a ohwx dog",
                    tooltip="What each LoRA's subject is called in a sentence, with its article, "
                    "one per line: the LoRA's name or its number in the chain, a colon, the words. "
                    "A LoRA that is not named here is called by its shortest prompt.",
                ),
                io.String.Input(
                    "styles",
                    multiline=True,
                    default="",
                    placeholder="ink: in ink wash style",
                    tooltip="The same for LoRAs that are styles: the words after 'a cat'. A LoRA "
                    "that is named in neither field is what its row or its file says, or else a "
                    "thing.",
                ),
                io.Float.Input(
                    "priority",
                    default=TOGETHER,
                    **bounds(Calibration, "scene_weight"),
                    step=0.05,
                    tooltip="How much these captions count, relative to each LoRA's own prompts. "
                    "0: off; 0.3 is a good priority. More makes such pictures more reliable, and "
                    "all others less.",
                ),
                io.Boolean.Input(
                    "pictures",
                    default=True,
                    tooltip="On: scenes are also measured in the picture, each LoRA in its own "
                    "part of it. This keeps concepts apart better, above all three of "
                    "them, and takes longer. Off: they are measured in the text alone.",
                ),
                io.String.Input(
                    "forms",
                    multiline=True,
                    default="",
                    placeholder="{first} and {second}\n{first} {style}",
                    tooltip="Forms of the captions, one per line, with first, second, third and "
                    "style in curly braces. Concepts appear together best in forms that "
                    "were measured, so write those that you will use. Empty: a built-in "
                    "list.",
                ),
                io.String.Input(
                    "companions",
                    multiline=True,
                    default="",
                    placeholder="a red chair\nan old car",
                    tooltip="Ordinary things that replace a subject while another LoRA is "
                    "measured. Empty: a built-in list.",
                ),
            ],
            outputs=[LORAS.Output(display_name="LoRAs")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        loras: tuple[ChosenLora, ...],
        subjects: str,
        styles: str,
        priority: float,
        pictures: bool,
        forms: str,
        companions: str,
    ) -> io.NodeOutput:
        count = sum(not lora.use.is_idle for lora in loras)
        if count < 2:
            raise IterisError(
                f"a scene needs two LoRAs or more with a strength other than 0; there is {count}. "
                "Chain them through 'previous'"
            )
        scenes = Scenes(priority, pictures, lines(forms) or SCENE_FORMS, lines(companions))
        scenes.applied_to(Calibration())  # a wrong form is an error of this node, not of the merge
        named = tuple(
            replace(lora, use=use, scenes=scenes)
            for lora, use in zip(
                loras,
                with_triggers([lora.use for lora in loras], subjects, styles),
                strict=True,
            )
        )
        text = "captions such as\n" + "\n".join(
            f"  {caption}"
            for caption in example_captions([lora.use for lora in named], scenes.scene_forms)
        )
        return io.NodeOutput(named, ui={"text": [text]})


def with_triggers(uses: Sequence[LoraUse], subjects: str, styles: str) -> list[LoraUse]:
    """Return the LoRAs with their names in scene captions.

    Args:
        uses: The LoRAs of the chain.
        subjects: The user's lines about subjects, "name: a noun phrase".
        styles: The same about styles.

    Raises:
        IterisError: A line that names no LoRA, a LoRA that is called in two ways, or trigger words
            that no file names.
    """
    names = [use.name for use in uses]
    lines_of: dict[Kind, Mapping[str, tuple[str, ...]]] = {
        "subject": prompts_by_name(subjects, names, "subjects"),
        "style": prompts_by_name(styles, names, "styles"),
    }
    return [_with_trigger(use, lines_of) for use in uses]


def _with_trigger(use: LoraUse, lines_of: Mapping[Kind, Mapping[str, tuple[str, ...]]]) -> LoraUse:
    calls = [(kind, words) for kind, by_name in lines_of.items() for words in by_name[use.name]]
    if len(calls) > 1:
        both = " and ".join(f"{words!r} in {kind}s" for kind, words in calls)
        raise IterisError(f"{use.name} is called {both}; give it one name in scenes")
    if not calls:
        return use
    ((kind, words),) = calls
    return replace(use, kind=kind, trigger=filled(words, use, f"{kind}s"))


def example_captions(uses: Sequence[LoraUse], forms: Sequence[str]) -> list[str]:
    """Return a few example captions. The merge uses all forms that fit."""
    used = [use for use in uses if not use.is_idle]
    called_subjects = [use.called for use in used if use.kind == "subject" and use.called]
    called_styles = [use.called for use in used if use.kind == "style" and use.called]
    examples = []
    for form in forms:
        places = placeholders(form)
        subjects = [name for name in SUBJECT_PLACES if name in places]
        styles = places.count(STYLE_PLACE)
        if len(subjects) <= len(called_subjects) and styles <= len(called_styles):
            words = dict(zip(subjects, called_subjects, strict=False))
            style = {STYLE_PLACE: called_styles[0]} if styles else {}
            examples.append(form.format(**words, **style))
    return examples[:_SHOWN]
