"""LoRAs as their user wants them merged: strengths, prompts, weight and trigger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..errors import CalibrationError, ConfigError
from ..settings import TRIGGER, Texts, settings, shown
from .prompts import says, subject_in

# the rest is imported where it is used: when ComfyUI starts, nodes need the bounds of `LoraUse`
if TYPE_CHECKING:
    from ..files.trigger_words import TriggerWords

Kind = Literal["subject", "style"]
NAMES: dict[Kind, str] = {"subject": "a sks cat", "style": "in zwx style"}  # examples
MOST_LORAS = 100  # of a merge; their ranks add up, and two to five are usual
_MOST_STRENGTH = 100  # as in ComfyUI's own loaders
_MOST_WEIGHT = 100  # of a task, relative to the others'; 2 and 0.3 are usual
Strength = Annotated[float, Field(ge=-_MOST_STRENGTH, le=_MOST_STRENGTH)]
Weight = Annotated[float, Field(ge=0, le=_MOST_WEIGHT)]


@settings
class LoraUse:
    """A LoRA to merge, with its strengths, prompts and weight.

    Raises:
        ConfigError: A value of the wrong type or outside its bounds.
    """

    NOUN: ClassVar[str] = "LoRA"

    name: Annotated[str, Field(description="Name of the LoRA in reports and errors.")]
    file: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Field(description="Name of the file; none for a LoRA that was trained in a workflow."),
    ]
    sha256: Annotated[
        str,
        Field(description="SHA-256 of the file, or of its tensors; empty until they were read."),
    ]
    strength_model: Annotated[
        Strength, Field(description="Strength of its part for the diffusion model.")
    ]
    strength_clip: Annotated[Strength, Field(description="Strength of its text encoder part.")]
    prompts: Annotated[
        Texts, Field(description="Prompts to measure it on, with its trigger words.")
    ]
    prompts_from: Annotated[
        str,
        Field(
            description="The metadata field whose trigger words the prompts are made of; empty if "
            "the user wrote them."
        ),
    ] = ""
    trigger_words: Annotated[Texts, Field(description="Trigger words in its file's metadata.")] = ()
    weight: Annotated[
        Weight,
        Field(title="priority", description="Weight of its task, relative to the other LoRAs'."),
    ] = 1.0
    trigger: Annotated[
        str,
        Field(
            description="Phrase for it in captions with other LoRAs: a noun phrase with its "
            "article for a subject, 'in <s> style' for a style; empty: see `called`."
        ),
    ] = ""
    kind: Annotated[
        Kind, Field(description="Kind of the LoRA: a thing, or a way to render whole pictures.")
    ] = "subject"
    blocks: Annotated[
        str, Field(description="Weights of its blocks, see `files.block_weights`; empty: 1.")
    ] = ""
    without: Annotated[
        Texts, Field(description="Patterns of layers that are left out, such as *attn2*.")
    ] = ()

    def __post_init__(self) -> None:
        if self.blocks or self.without:
            from ..files.block_weights import check_spelling

            check_spelling(self.name, self.blocks, self.without)
        if self.trigger:
            from ..files.trigger_words import has_words

            if not has_words(self.trigger):
                raise ConfigError(
                    f"{self.name} is called {shown(self.trigger)}, which has no words in it. Write "
                    "what it is called in captions with other LoRAs, such as 'a sks dog', or leave "
                    "it out"
                )

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing, since both strengths are 0."""
        return not (self.strength_model or self.strength_clip)

    @property
    def is_unnamed(self) -> bool:
        """Whether its trigger waits for trigger words, since its file names none."""
        return TRIGGER in self.trigger

    @property
    def called(self) -> str:
        """Phrase for the LoRA in captions with other LoRAs: its trigger, or else, also where that
        waits for trigger words, the subject of its shortest prompt.
        """
        shortest = min((prompt.strip() for prompt in self.prompts), key=len, default="")
        trigger = "" if self.is_unnamed else self.trigger.strip()
        return trigger or subject_in(shortest, self.trigger_words)

    def subject_of(self, prompt: str) -> str:
        """Return the phrase for what one of its prompts shows, which can be next to other things
        in a sentence.

        Of a style, that is the whole prompt without "a photo of" and the like.
        """
        if self.kind == "style":
            return subject_in(prompt, ())
        called = self.called
        if called and says(prompt, called):
            return called
        return subject_in(prompt, self.trigger_words)


def with_prompts(use: LoraUse, triggers: TriggerWords) -> LoraUse:
    """Return the LoRA with its trigger words, filled into its prompts; if it has none, with default
    prompts as far as its file names trigger words, see `check_prompts`.

    A LoRA that changes nothing is returned as it is, since the merge omits it.

    Args:
        use: The LoRA, with the prompts that the user wrote, if any.

    Raises:
        CalibrationError: See `fill_in`.
    """
    from ..files.trigger_words import fill_in

    if use.is_idle:
        return use
    prompts = fill_in(use.file or use.name, use.prompts, triggers, use.kind)
    source = "" if prompts == use.prompts else triggers.source
    return replace(use, prompts=prompts, prompts_from=source, trigger_words=triggers.triggers)


def check_prompts(uses: Iterable[LoraUse], otherwise: str = "") -> None:
    """Refuse LoRAs without prompts to measure them on, or without a phrase for captions with
    others.

    Args:
        otherwise: What else the user can do, such as "set x to 0"; empty: nothing.

    Raises:
        CalibrationError: Names them.
    """
    advice = f". Or {otherwise}" if otherwise else ""
    used = [use for use in uses if not use.is_idle]
    bare = [use.file or use.name for use in used if not use.prompts]
    if bare:
        has = "has" if len(bare) == 1 else "have"
        raise CalibrationError(
            f"{' and '.join(bare)} {has} no prompts, and no trigger words in a file to make them "
            "of. Write what you would type to use the LoRA, one prompt per line, such as 'a photo "
            "of sks dog'; the page that you downloaded it from names its trigger words" + advice
        )
    if unnamed := next((use for use in used if use.is_unnamed), None):
        raise CalibrationError(
            f"{unnamed.file or unnamed.name} is called {unnamed.trigger!r}, and its file names no "
            f"trigger words. Write them instead of {TRIGGER}, such as "
            f"{NAMES[unnamed.kind]!r}{advice}"
        )


def check_count(loras: int) -> None:
    """Refuse more LoRAs than a merge can take.

    Raises:
        ConfigError: Says how many there are.
    """
    if loras > MOST_LORAS:
        raise ConfigError(
            f"there are {loras} LoRAs; a merge takes {MOST_LORAS} at most. Merge some of them "
            "first, and then the results"
        )
