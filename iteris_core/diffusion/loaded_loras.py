"""LoRAs whose weights are read: each once, under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..adapters import Adapter, told_apart
from ..errors import AdapterError
from ..report.records import Note
from ..settings import shown
from .lora_use import Kind, LoraUse, check_count
from .prompts import plain_prompts


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA whose weights are read.

    Args:
        adapter: Adapter at the strengths of `use`, under the name of `use`.
    """

    use: LoraUse
    adapter: Adapter

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


def each_once(uses: Iterable[LoraUse]) -> tuple[list[LoraUse], list[Note]]:
    """Return every LoRA once, and a note about each one that was given several times.

    LoRAs are the same if their `sha256` is, and the weights of their layers are; one that is not
    read yet is like no other. One that was given several times is used at the sum of its strengths,
    on all of its prompts, at its largest weight.
    """
    groups: dict[tuple[str, str, tuple[str, ...]], list[LoraUse]] = {}
    for number, use in enumerate(uses):
        content = use.sha256 or f"not read: {number}"
        groups.setdefault((content, use.blocks, use.without), []).append(use)
    once, notes = [], []
    for group in groups.values():
        one = _as_one(group)
        once.append(one)
        if len(group) > 1:
            names = " and ".join(dict.fromkeys(use.name for use in group))
            notes.append(
                Note(
                    "repeated",
                    f"{names}: the same LoRA {len(group)} times, so it is merged once, at the sum "
                    f"of its strengths, {one.strength_model:g} / {one.strength_clip:g}, on all of "
                    "its prompts",
                )
            )
    return once, notes


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


def with_plain_prompts(uses: Sequence[LoraUse]) -> tuple[list[LoraUse], list[Note]]:
    """Return LoRAs with prompts as a model reads them, and a note for each LoRA from whose prompts
    something was taken out.

    Raises:
        CalibrationError: A prompt has several readings; shows it.
    """
    found = []
    notes = []
    for use in uses:
        prompts, taken = plain_prompts(f"LoRA {shown(use.name)}: its", use.prompts)
        found.append(replace(use, prompts=prompts))
        if taken:
            text = f"{use.name}: taken out of its prompts: {', '.join(taken)}"
            notes.append(Note("prompts", text))
    return found, notes


def load_each_once(
    uses: Iterable[LoraUse], read: Callable[[LoraUse], Adapter]
) -> tuple[list[LoadedLora], list[Note]]:
    """Return the loaded LoRAs without duplicates, uniquely named, with prompts as a model reads
    them, and notes about both.

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
    return loras, [*taken_out, *repeated]


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
    names = told_apart([use.name for use in uses])
    return [replace(use, name=name) for use, name in zip(uses, names, strict=True)]
