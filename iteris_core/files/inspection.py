"""The facts about an adapter that its file shows without a base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterError
from . import peft
from .adapter_kinds import kind_of
from .beside import words_beside
from .groups import foreign_kind, grouped
from .metadata import origin_of
from .recognition import base_family, family_of
from .roles import ALPHA, DOWN
from .tensors import read_tensors
from .trigger_words import trigger_words


@dataclass(frozen=True)
class AdapterFacts:
    """The facts about an adapter in its file.

    Args:
        base: Base model family that it was trained for, if the file shows it.
        layers: Kind of adapter -> how many layers it changes.
        ranks: The ranks of its factors, each once.
        alphas: Its alphas, each once; of a PEFT adapter the ``lora_alpha`` of its settings.
        trigger_words: Trigger words in the metadata or next to the file, most likely first.
        merged_from: The LoRAs that it is a merge of, if it says so.
        problems: Parts that would not load, with the reason.
    """

    path: str
    base: str
    layers: Mapping[str, int]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    trigger_words: tuple[str, ...]
    merged_from: tuple[str, ...]
    problems: tuple[str, ...]


def inspect_adapter(path: Path) -> AdapterFacts:
    """Return the facts about a LoRA file, or about a PEFT adapter, given by its folder or a file in
    it.

    Raises:
        AdapterError: The file cannot be read at all, or is a model and not an adapter.
    """
    path = peft.with_name(path)
    folder = path.parent if path.name in (peft.WEIGHTS_FILE, peft.CONFIG_FILE) else path
    if not folder.is_dir():
        return _facts(path, *read_tensors(path))
    settings = peft.read_settings(folder)
    return _facts(folder, *peft.read_weights(folder), settings)


def _facts(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
) -> AdapterFacts:
    groups, unknown = grouped(tensors)
    if settings is None:
        if foreign := foreign_kind(unknown):
            raise AdapterError(f"{path.name}: {foreign}")
        if unknown and not groups:
            raise AdapterError(
                f"{path.name}: none of its {len(unknown)} tensors, such as {unknown[0]!r}, is an "
                "adapter's: this is a model, or part of one. Give the file or folder of an adapter"
            )
        problems = [f"{key!r} is of unknown kind" for key in unknown]
        alphas = [group.tensors.get(ALPHA) for group in groups.values()]
        scales = {alpha.item() for alpha in alphas if alpha is not None and alpha.numel() == 1}
    else:
        refusal = peft.refusal(settings)
        problems = [f"it is {refusal}"] if refusal else []
        others = [*unknown, *peft.strange_keys(groups.values())]
        problems += [f"{key!r} {peft.STRANGE}" for key in others]
        try:
            scales = {peft.Scales.of(settings).lora_alpha}
        except AdapterError as error:
            scales = set()
            problems.append(f"it {error}")
    for group in groups.values():
        try:
            group.check()
        except AdapterError as error:
            problems.append(f"{group.base!r} {error}")
    kinds = Counter(kind_of(group.tensors).name for group in groups.values())
    downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
    return AdapterFacts(
        path=str(path),
        base=base_family(family_of(tensors), metadata, settings)[1],
        layers=dict(kinds.most_common()),
        ranks=tuple(sorted({down.shape[0] for down in downs if down.ndim > 1})),
        alphas=tuple(sorted(scales)),
        trigger_words=trigger_words(metadata, words_beside(path)).words,
        merged_from=origin_of(metadata).names,
        problems=tuple(problems),
    )
