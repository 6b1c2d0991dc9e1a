"""The LoRAs of a merge, from all of its sockets: read, told apart, and each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ...iteris_core import ConfigError
from ...iteris_core.adapters import names_of
from ...iteris_core.diffusion.recipe import UsedLora
from ...iteris_core.diffusion.samples import PromptedAdapter
from ...iteris_core.files.tensors import read_tensors, sha256, sha256_of_tensors
from .. import host
from ..sockets import LoraEntry, Scenes
from .names import adapter_name


def in_sockets(more: Mapping[str, tuple[LoraEntry, ...] | None]) -> Iterator[LoraEntry]:
    """Yield the LoRAs of growing sockets, named "loras0", "loras1" and so on, in their order;
    sockets may be free.
    """
    for name in sorted(more, key=lambda name: int(name.removeprefix("loras"))):
        yield from more[name] or ()


def each_once(entries: Iterable[LoraEntry]) -> tuple[dict[str, LoraEntry], list[str]]:
    """Return SHA-256 -> LoRA, one that is there several times as one of the sum of its strengths;
    and notes that say so.
    """
    groups: dict[str, list[LoraEntry]] = {}
    for entry in entries:
        groups.setdefault(_content(entry), []).append(entry)
    notes = []
    for group in groups.values():
        if len(group) > 1:
            names = " and ".join(dict.fromkeys(adapter_name(entry.lora_name) for entry in group))
            one = _as_one(group)
            notes.append(
                f"{names}: the same LoRA {len(group)} times, so it is merged once, at the sum of "
                f"its strengths, {one.strength_model:g} / {one.strength_clip:g}, on all of its "
                "prompts"
            )
    return {content: _as_one(group) for content, group in groups.items()}, notes


def _content(entry: LoraEntry) -> str:
    return (
        sha256(host.lora_path(entry.lora_name))
        if entry.tensors is None
        else sha256_of_tensors(entry.tensors)
    )


def _as_one(group: Sequence[LoraEntry]) -> LoraEntry:
    group = [entry for entry in group if not entry.is_idle] or group
    called = next((entry for entry in group if entry.trigger), group[0])
    return replace(
        group[0],
        strength_model=sum(entry.strength_model for entry in group),
        strength_clip=sum(entry.strength_clip for entry in group),
        prompts=tuple(dict.fromkeys(prompt for entry in group for prompt in entry.prompts)),
        weight=max(entry.weight for entry in group),
        prompts_from=group[0].prompts_from if all(entry.prompts_from for entry in group) else "",
        trigger=called.trigger,
        kind=called.kind,
    )


def scenes_of(entries: Iterable[LoraEntry]) -> Scenes | None:
    """Return how the LoRAs are measured together.

    Raises:
        ConfigError: In two ways.
    """
    found = list(dict.fromkeys(entry.scenes for entry in entries if entry.scenes is not None))
    if len(found) > 1:
        raise ConfigError(
            f"the LoRAs come from {len(found)} 'Scene prompts' nodes with different settings; put "
            "one of them behind all LoRAs"
        )
    return found[0] if found else None


def read(base: host.ComfyStableDiffusion, entries: Iterable[LoraEntry]) -> list[PromptedAdapter]:
    """Return LoRAs at the strengths that the user asked for; those of one name are numbered."""
    loras = [_read(base, entry) for entry in entries]
    names = names_of([lora.adapter for lora in loras])
    return [
        replace(x, adapter=replace(x.adapter, name=name))
        for x, name in zip(loras, names, strict=True)
    ]


def _read(base: host.ComfyStableDiffusion, entry: LoraEntry) -> PromptedAdapter:
    if entry.tensors is None:
        tensors, metadata = read_tensors(host.lora_path(entry.lora_name))
    else:
        tensors = entry.tensors
        metadata = {}
    adapter = base.adapter(
        adapter_name(entry.lora_name), tensors, metadata, entry.strength_model, entry.strength_clip
    )
    return PromptedAdapter(adapter, entry.prompts, entry.weight, entry.trigger, entry.kind)


def used(entry: LoraEntry, name: str, content: str) -> UsedLora:
    """Return a LoRA as the recipe tells it, by its name in the report and the SHA-256 of its
    content.
    """
    return UsedLora(
        name=name,
        file=entry.lora_name if entry.tensors is None else None,
        sha256=content,
        strength_model=entry.strength_model,
        strength_clip=entry.strength_clip,
        prompts=entry.prompts,
        prompts_from=entry.prompts_from,
        weight=entry.weight,
        trigger=entry.trigger,
        kind=entry.kind,
    )
