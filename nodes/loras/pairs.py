"""LoRAs for two models that share the noise levels, which come as a pair of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...iteris_core import ConfigError
from ..expert_files import (
    LOW_INPUT,
    LOW_SOCKET,
    OTHER,
    expert_of,
    named_expert,
    partner_of,
    without_mark,
)
from .names import adapter_name

if TYPE_CHECKING:
    from ...iteris_core.diffusion.lora_use import LoadedLora
    from ...iteris_core.report.records import Note
    from ..sockets import ChosenLora


def with_partners(chosen: Sequence[ChosenLora], files: Sequence[str]) -> list[ChosenLora]:
    """Return the LoRAs, each followed by the file of the other expert where only one was named, at
    the same strengths.
    """
    named = {lora.use.file for lora in chosen}
    found = []
    for lora in chosen:
        found.append(lora)
        file = lora.use.file
        other = None if file is None else partner_of(file, files)
        if other is not None and other not in named:
            use = replace(lora.use, file=other, name=adapter_name(other))
            found.append(replace(lora, use=use))
    return found


def paired(
    loras: Sequence[LoadedLora], files: Sequence[str]
) -> tuple[list[LoadedLora], list[Note]]:
    """Return the LoRAs with those as one that are for the two experts, and a note about each that
    is not a pair.
    """
    from ...iteris_core.report.records import Note

    by_file = {lora.use.file: lora for lora in loras if lora.use.file}
    joined: list[LoadedLora] = []
    notes = []
    taken = set()
    for lora in loras:
        file = lora.use.file
        if file in taken:
            continue
        expert = expert_of(file, files) if file else None
        other = by_file.get(partner_of(file, files) or "") if file else None
        if other is not None and expert is not None:
            taken.add(other.use.file)
            joined.append(_pair(*((lora, other) if expert == "high" else (other, lora))))
            continue
        joined.append(lora)
        if expert is not None:
            text = (
                f"{lora.use.name}: there is no file for the {OTHER[expert]} noise model, on which "
                "it changes nothing"
            )
            notes.append(Note("left_out", text))
    return joined, notes


def _pair(high: LoadedLora, low: LoadedLora) -> LoadedLora:
    uses = (high.use, low.use)
    prompts = tuple(dict.fromkeys(prompt for use in uses for prompt in use.prompts))
    words = tuple(dict.fromkeys(word for use in uses for word in use.trigger_words))
    name = without_mark(high.use.name, low.use.name)
    use = replace(high.use, name=name, prompts=prompts, trigger_words=words)
    adapter = replace(
        high.adapter.joined_with(low.adapter),
        name=use.name,
        unmatched=(*high.adapter.unmatched, *low.adapter.unmatched),
        keys=high.adapter.keys + low.adapter.keys,
    )
    return replace(high, use=use, adapter=adapter, files=uses)


def check_one_expert(chosen: Sequence[ChosenLora], upstream: Iterable[str]) -> None:
    """Refuse LoRAs of another expert than the MODEL of a merge, as far as names of files tell.

    Args:
        upstream: Texts in the nodes that the MODEL comes from.

    Raises:
        ConfigError: There are LoRAs of both experts, or of the other one.
    """
    files = [lora.use.file for lora in chosen if lora.use.file]
    for file in files:
        other = partner_of(file, files)
        if other is not None:
            raise ConfigError(
                f"{file} and {other} are the two files of one LoRA, for the high and the low noise "
                f"model. Connect the low noise model to {LOW_SOCKET}, and write one row for both; "
                "or merge only the files of this model"
            )
    of_model = named_expert(upstream)
    for file in files:
        of_file = named_expert([file])
        if of_file and of_model and of_file != of_model:
            raise ConfigError(
                f"{file} is for the {of_file} noise model, and MODEL is the {of_model} noise one, "
                f"by the names of their files. Connect both models (the low noise one to "
                f"{LOW_SOCKET}), or choose the file of this model"
            )


def check_two_experts(high: Iterable[str], low: Iterable[str]) -> None:
    """Refuse experts that are connected the wrong way round, as far as names of files tell.

    Args:
        high, low: Texts in the nodes that each comes from.

    Raises:
        ConfigError: They are.
    """
    if named_expert(high) == "low" or named_expert(low) == "high":
        raise ConfigError(
            "the two models are the wrong way round, by the names of their files: connect the high "
            f"noise model to model, and the low noise model to {LOW_INPUT}"
        )
