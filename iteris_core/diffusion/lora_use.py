"""LoRAs as their user wants them merged: strengths, prompts, weight and trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..errors import AdapterError, CalibrationError, ConfigError
from ..settings import TRIGGER, Texts, settings, shown
from .prompts import plain_prompts, says, subject_in

# the rest is imported where it is used: when ComfyUI starts, nodes need the bounds of `LoraUse`
if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..files.block_weights import LayerWeights
    from ..files.trigger_words import TriggerWords
    from ..report.records import Note

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
        Field(
            description="Name of the file; none for a LoRA that was trained in a workflow or taken "
            "off a model."
        ),
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

    def layer_weights(self) -> LayerWeights:
        """Return how strongly each of its layers counts, besides its strengths; see
        `files.block_weights.layer_weights`.
        """
        from ..files.block_weights import layer_weights

        return layer_weights(self.name, self.blocks, self.without)

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


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA whose weights are read.

    Args:
        adapter: Adapter at the strengths of `use`, under the name of `use`.
        files: The uses of its files, where it has several; see `asked`.
    """

    use: LoraUse
    adapter: Adapter
    files: tuple[LoraUse, ...] = ()

    @property
    def asked(self) -> tuple[LoraUse, ...]:
        """The LoRA as its user wants it merged: the use of each of its files."""
        return self.files or (self.use,)

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        prompts: Sequence[str],
        *,
        weight: float = 1.0,
        trigger: str = "",
        kind: Kind = "subject",
    ) -> LoadedLora:
        """Return a LoRA that is in no file, by the name of its adapter, at strength 1."""
        use = LoraUse(
            name=adapter.name,
            file=None,
            sha256="",
            strength_model=1.0,
            strength_clip=1.0,
            prompts=tuple(prompts),
            weight=weight,
            trigger=trigger,
            kind=kind,
        )
        return cls(use, adapter)

    def without_weights(self) -> LoadedLora:
        """Return the LoRA without what it adds, which would be kept in memory."""
        return replace(self, adapter=self.adapter.scaled(0))


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
        told = unfilled(unnamed, unnamed.trigger)
        raise CalibrationError(told + advice)


def unfilled(use: LoraUse, words: str) -> str:
    """Return why words for a LoRA in captions with others cannot be used."""
    return (
        f"{use.file or use.name} is called {words!r}, and its file names no trigger words. Write "
        f"them instead of {TRIGGER}, such as {NAMES[use.kind]!r}"
    )


def each_once(uses: Iterable[LoraUse]) -> tuple[list[LoraUse], list[Note]]:
    """Return every LoRA once, and a note about each one that was given several times.

    LoRAs are the same if their `sha256` is, and the weights of their layers are; one that is not
    read yet is like no other. One that was given several times is used at the sum of its strengths,
    on all of its prompts, at its largest weight.
    """
    from ..report.records import Note

    groups: dict[tuple[str, str, tuple[str, ...]], list[LoraUse]] = {}
    for number, use in enumerate(uses):
        content = use.sha256 or f"not read: {number}"
        groups.setdefault((content, use.blocks, use.without), []).append(use)
    notes = []
    for group in groups.values():
        if len(group) > 1:
            names = " and ".join(dict.fromkeys(use.name for use in group))
            one = _as_one(group)
            notes.append(
                Note(
                    "repeated",
                    f"{names}: the same LoRA {len(group)} times, so it is merged once, at the sum "
                    f"of its strengths, {one.strength_model:g} / {one.strength_clip:g}, on all of "
                    "its prompts",
                )
            )
    return [_as_one(group) for group in groups.values()], notes


def _as_one(group: Sequence[LoraUse]) -> LoraUse:
    group = [use for use in group if not use.is_idle] or group
    named = next((use for use in group if use.trigger), group[0])
    return replace(
        group[0],
        strength_model=sum(use.strength_model for use in group),
        strength_clip=sum(use.strength_clip for use in group),
        prompts=tuple(dict.fromkeys(prompt for use in group for prompt in use.prompts)),
        weight=max(use.weight for use in group),
        prompts_from=group[0].prompts_from if all(use.prompts_from for use in group) else "",
        trigger_words=tuple(dict.fromkeys(word for use in group for word in use.trigger_words)),
        trigger=named.trigger,
        kind=named.kind,
    )


def plain_prompts_of(name: str, prompts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a LoRA's prompts as a model reads them, and what was taken out; see `plain_prompts`.

    Raises:
        CalibrationError: A prompt has several readings; shows it.
    """
    return plain_prompts(f"LoRA {shown(name)}: its", prompts)


def with_plain_prompts(uses: Sequence[LoraUse]) -> tuple[list[LoraUse], list[Note]]:
    """Return LoRAs with prompts as a model reads them, and a note for each LoRA from whose prompts
    something was taken out.

    Raises:
        CalibrationError: A prompt has several readings; shows it.
    """
    from ..report.records import Note

    found = []
    notes = []
    for use in uses:
        prompts, taken = plain_prompts_of(use.name, use.prompts)
        found.append(replace(use, prompts=prompts))
        if taken:
            text = f"{use.name}: taken out of its prompts: {', '.join(taken)}"
            notes.append(Note("prompts", text))
    return found, notes


def load_each_once(
    uses: Iterable[LoraUse], read: Callable[[LoraUse], Adapter]
) -> tuple[list[LoadedLora], list[Note]]:
    """Return the loaded LoRAs without duplicates, uniquely named, with prompts as a model reads
    them, and notes about both, and about LoRAs that are in merges among the others.

    Args:
        uses: The LoRAs as they were given, with their `sha256`.
        read: Function that reads a LoRA's weights, at its strengths.

    Raises:
        AdapterError: The errors of `read`, of all LoRAs at once.
        CalibrationError: A prompt that a model cannot read, see `plain_prompts`.
        ConfigError: Too many LoRAs.
    """
    uses = list(uses)
    check_count(len(uses))
    uses, taken_out = with_plain_prompts(uses)
    once, repeated = each_once(uses)
    loras, wrong = [], []
    for use in own_names(once):
        try:
            loras.append(LoadedLora(use, replace(read(use), name=use.name)))
        except AdapterError as error:
            wrong.append(error)
    if wrong:
        raise AdapterError(". ".join(map(str, wrong))) from wrong[0]
    return loras, [*taken_out, *repeated, *counted_twice(loras)]


def counted_twice(loras: Sequence[LoadedLora]) -> list[Note]:
    """Return a note about each LoRA that counts more than once: by itself and in a merge that is
    merged with it, or in several such merges.
    """
    from ..files.metadata import origin_of
    from ..report.records import Note

    names = {lora.use.sha256: lora.use.name for lora in loras}
    places: dict[str, dict[str, str]] = {}
    for lora in (lora for lora in loras if not lora.use.is_idle):
        own = lora.use.sha256
        origin = origin_of(lora.adapter.metadata)
        places.setdefault(own, {})[own] = "by itself"
        # another tool's merge has names alone
        for digest, name in zip(origin.digests, origin.names, strict=False):
            names.setdefault(digest, name.removesuffix(".safetensors"))
            places.setdefault(digest, {})[own] = f"in {lora.use.name}"
    return [
        Note(
            "twice",
            f"{names[digest]} is in the merge {len(found)} times: {' and '.join(found.values())}. "
            "Take one of them out",
        )
        for digest, found in places.items()
        if len(found) > 1
    ]


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


def loras_in_use(loras: Sequence[LoadedLora]) -> list[LoadedLora]:
    """Return the LoRAs that change something, each with a name of its own.

    Raises:
        AdapterError: No LoRA changes anything.
    """
    used = [lora for lora in loras if not lora.adapter.is_idle]
    if not used:
        raise AdapterError(
            "none of the LoRAs changes anything: every strength is 0, or the strengths of a LoRA "
            "given several times cancel out, or the files hold no weights"
        )
    uses = own_names([lora.use for lora in used])
    return [
        replace(lora, use=use, adapter=replace(lora.adapter, name=use.name))
        for lora, use in zip(used, uses, strict=True)
    ]


def own_names(uses: Sequence[LoraUse]) -> list[LoraUse]:
    """Return the LoRAs with a number after each name that several have."""
    from ..adapters import told_apart

    names = told_apart([use.name for use in uses])
    return [replace(use, name=name) for use, name in zip(uses, names, strict=True)]
