"""The facts about an adapter that its file shows without a base model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterError
from . import peft
from .adapter_kinds import kind_of
from .beside import words_beside
from .groups import Group, foreign_kind, grouped
from .limits import budget, spend
from .recognition import base_family, family_of
from .roles import ALPHA, VECTORS
from .tensors import read_tensors
from .trigger_words import trigger_words

# How the keys of a file begin -> who writes such keys.
_WRITERS = {
    r"lora_(unet|te\d?|transformer|prior)_": "kohya",
    r"lycoris_": "LyCORIS",
    r"base_model\.model\.": "PEFT",
    r"(unet|text_encoder|text_encoder_2|transformer)\.": "diffusers",
    r"diffusion_model\.": "ComfyUI",
}
# Names of modules that have more than one part, or that no dot divides from the rest of a key.
_MODULES = re.compile(
    r"(to_[qkv]|to_out[._]0|ff[._]net[._]0[._]proj|ff[._]net[._]2|[qkv]_proj|out_proj|proj_in|"
    r"proj_out|fc[12]|conv_in|conv_out|conv_shortcut|conv[12]|conv|time_emb_proj|linear_[12])$"
)
_DOTTED = re.compile(r"[^.]*(?:\.\d+)*$")  # the last name of a path, with its numbers
_BLOCK = re.compile(r"(.*?[._]\d+)(?=[._]|$)")
_LARGEST = 3  # how many layers are named with their norm
_LONGEST_VALUE = 200  # of the metadata that is shown


@dataclass(frozen=True)
class BlockFacts:
    """How many layers an adapter changes in one block of the model, and their least and largest
    rank.
    """

    layers: int
    ranks: tuple[int, int]


@dataclass(frozen=True)
class AdapterFacts:
    """The facts about an adapter in its file.

    Args:
        format: Program that writes such keys, such as ``kohya``.
        kinds: Kind of adapter -> number of modules.
        base: Base model family that it was trained for, if the file shows it.
        modules: Name of a module, such as ``q`` or ``to_k`` -> how many have it.
        peft: A PEFT adapter's settings ``r``, ``alpha`` and ``rslora``; else empty.
        blocks: Block of the model -> number and ranks of the changed layers.
        trigger_words: Trigger words in the metadata or next to the file, most likely first.
        norm: Frobenius norm of all deltas that have exact factors.
        largest: Module -> norm of its delta, for the few largest.
        problems: Parts that would not load, with the reason.
        metadata: The file's metadata, without the long values.
    """

    path: str
    format: str
    kinds: Mapping[str, int]
    base: str
    targets: int
    modules: Mapping[str, int]
    peft: Mapping[str, Any]
    blocks: Mapping[str, BlockFacts]
    trigger_words: tuple[str, ...]
    norm: float
    largest: Mapping[str, float]
    problems: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def inspect_adapter(path: Path) -> AdapterFacts:
    """Return the facts about a LoRA file, or about a PEFT adapter, given by its folder or a file in
    it.

    Raises:
        AdapterError: The file cannot be read at all, takes more than its `budget`, or is a model
            and not an adapter.
    """
    path = peft.with_name(path)
    folder = path.parent if path.name in (peft.WEIGHTS_FILE, peft.CONFIG_FILE) else path
    if not folder.is_dir():
        with budget(path, path):
            return _facts(path, *read_tensors(path))
    with budget(path, folder / peft.WEIGHTS_FILE):
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
        _check_adapter(path.name, groups, unknown)
        problems = [f"{key!r} is of unknown kind" for key in unknown]
    else:
        refusal = peft.refusal(settings)
        problems = [f"it is {refusal}"] if refusal else []
        others = [*unknown, *peft.strange_keys(groups.values())]
        problems += [f"{key!r} {peft.meaning_of(key)}" for key in others]
    measured, unreadable = _measured(path.name, groups, settings)
    problems += unreadable
    norms = {base: max(squared, 0.0) ** 0.5 for base, (_, squared) in measured.items()}
    kinds = Counter(kind_of(group.tensors).name for group in groups.values())
    return AdapterFacts(
        path=str(path),
        format=_format(tensors),
        kinds=dict(kinds.most_common()),
        base=base_family(family_of(tensors), metadata, settings)[1],
        targets=len(groups),
        modules=dict(Counter(map(_module_name, groups)).most_common()),
        peft={}
        if settings is None
        else {
            "r": settings.get("r"),
            "alpha": settings.get("lora_alpha"),
            "rslora": bool(settings.get("use_rslora")),
        },
        blocks=_blocks({base: rank for base, (rank, _) in measured.items()}),
        trigger_words=trigger_words(metadata, words_beside(path)).words,
        norm=sum(norm**2 for norm in norms.values()) ** 0.5,
        largest=dict(sorted(norms.items(), key=lambda item: -item[1])[:_LARGEST]),
        problems=tuple(problems),
        metadata={key: value for key, value in metadata.items() if len(value) <= _LONGEST_VALUE},
    )


def _check_adapter(name: str, groups: Mapping[str, Group], unknown: Sequence[str]) -> None:
    foreign = foreign_kind(unknown)
    if foreign:
        raise AdapterError(f"{name}: {foreign}")
    if unknown and not groups:
        raise AdapterError(
            f"{name}: none of its {len(unknown)} tensors, such as {unknown[0]!r}, is an adapter's: "
            "this is a model, or part of one. Give the file or folder of an adapter"
        )


_Measured = dict[str, tuple[int, float]]  # base -> rank and squared norm of a delta


def _measured(
    name: str, groups: Mapping[str, Group], settings: Mapping[str, Any] | None
) -> tuple[_Measured, list[str]]:
    """Return the measures of the groups that can be measured without the base model or the host,
    and the problems of the others.
    """
    measured = {}
    problems = []
    try:
        scales = None if settings is None else peft.Scales.of(settings)
    except AdapterError as error:
        return {}, [f"{name}: it {error}"]
    for base, group in groups.items():
        spend()
        path = base.removeprefix(peft.PREFIX)
        try:
            group.check()
            measure = kind_of(group.tensors).measure
            if measure is not None and not set(group.tensors) <= {*VECTORS, ALPHA}:
                rank, squared = measure(group.tensors)
                scale = 1.0 if scales is None else scales.at(path, rank)
                measured[base if scales is None else path] = rank, squared * scale**2
        except AdapterError as error:
            problems.append(f"{name}: {base!r} {error}")
    return measured, problems


def _module_name(base: str) -> str:
    """Return the name of a module without its place in the model."""
    special = _MODULES.search(base)
    if special:
        return special[1]
    if "." not in base:
        return re.split(r"_\d+_", base)[-1]
    return str(_DOTTED.findall(base)[0])


def _format(keys: Iterable[str]) -> str:
    """Return the programs that write such keys, by falling number of keys."""
    writers = Counter(
        next((writer for start, writer in _WRITERS.items() if re.match(start, key)), "unknown")
        for key in keys
    )
    return " and ".join(writer for writer, _ in writers.most_common()) or "empty"


def _blocks(ranks: Mapping[str, int]) -> dict[str, BlockFacts]:
    """Return the blocks that are changed; the name of a block ends with its first number."""
    of_block: dict[str, list[int]] = {}
    for base, rank in ranks.items():
        numbered = _BLOCK.match(base)
        block = numbered[1] if numbered else base.partition(".")[0]
        of_block.setdefault(block, []).append(rank)
    return {
        block: BlockFacts(len(found), (min(found), max(found))) for block, found in of_block.items()
    }
