"""The facts about an adapter that its file shows without a base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import AdapterError
from .adapter_kinds import kind_of
from .beside import words_beside
from .groups import grouped
from .metadata import origin_of
from .recognition import base_family, family_of
from .roles import DOWN
from .tensors import read_tensors
from .trigger_words import trigger_words


@dataclass(frozen=True)
class AdapterFacts:
    """The facts about an adapter in its file.

    Args:
        base: Base model family that it was trained for, if the file shows it.
        layers: Kind of adapter -> how many layers it changes.
        ranks: The ranks of its factors, each once.
        trigger_words: Trigger words in the metadata or next to the file, most likely first.
        merged_from: The LoRAs that it is a merge of, if it says so.
        problems: Parts that would not load, with the reason.
    """

    path: str
    base: str
    layers: Mapping[str, int]
    ranks: tuple[int, ...]
    trigger_words: tuple[str, ...]
    merged_from: tuple[str, ...]
    problems: tuple[str, ...]


def inspect_adapter(path: Path) -> AdapterFacts:
    """Return the facts about a LoRA file, or about the weights of a PEFT adapter.

    Raises:
        AdapterError: The file cannot be read at all, or is a model and not an adapter.
    """
    tensors, metadata = read_tensors(path)
    groups, unknown = grouped(tensors)
    if unknown and not groups:
        raise AdapterError(
            f"{path.name}: none of its {len(unknown)} tensors, such as {unknown[0]!r}, is an "
            "adapter's that can be merged: this is a model, or part of one, or an IA3. Give the "
            "file of an adapter"
        )
    problems = [f"{key!r} is of unknown kind" for key in unknown]
    for group in groups.values():
        try:
            group.check()
        except AdapterError as error:
            problems.append(f"{group.base!r} {error}")
    kinds = Counter(kind_of(group.tensors).name for group in groups.values())
    downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
    return AdapterFacts(
        path=str(path),
        base=base_family(family_of(tensors), metadata)[1],
        layers=dict(kinds.most_common()),
        ranks=tuple(sorted({down.shape[0] for down in downs if down.ndim > 1})),
        trigger_words=trigger_words(metadata, words_beside(path)).words,
        merged_from=origin_of(metadata).names,
        problems=tuple(problems),
    )
