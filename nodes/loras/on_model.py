"""Notes about what MODEL and CLIP carry already, which counts as part of the base model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...iteris_core.settings import some_of

if TYPE_CHECKING:
    from ...iteris_core.diffusion.loaded_loras import LoadedLora
    from ...iteris_core.report.records import Note
    from ..host import BaseChanges

# What files are called whose LoRAs let a model draw in few steps.
_QUICK = re.compile(
    r"(?<![a-z])(lcm|tcd|turbo|lightning|hyper|dmd2?|light[-_]?x2v|causvid)(?![a-z])"
)
# What the host's classes of patches that are LoRAs are called.
_ADAPTERS = ("lora", "loha", "lokr", "glora", "oft")


def count_loras(patches: Mapping[str, Sequence[Any]]) -> int:
    """Return the number of LoRAs on a model: all patches of a file share one set object with the
    keys that the host used.
    """
    values = (value for on_weight in patches.values() for _, value, *_ in on_weight)
    return len({id(value.loaded_keys) for value in values if _is_adapter(value)})


def _is_adapter(value: Any) -> bool:
    return getattr(value, "name", None) in _ADAPTERS and bool(getattr(value, "loaded_keys", None))


def notes_on_model(
    patches: Mapping[str, Sequence[Any]],
    changes: BaseChanges,
    loras: Sequence[LoadedLora],
    named: Sequence[str],
    *,
    is_guided: bool,
) -> Iterator[Note]:
    """Yield notes about a MODEL and a CLIP as they come.

    Args:
        patches: Weight -> its patches; see `host.patches_of`.
        changes: What else other nodes have changed.
        named: Names of LoRA files in the nodes that lead to MODEL and CLIP.
        is_guided: Whether the merge is measured with guidance.
    """
    from ...iteris_core.report.records import Note

    count = count_loras(patches)
    if count:
        files = f" (from {some_of(named)})" if named else ""
        yield Note(
            "host",
            f"MODEL and CLIP carry {count} LoRA{'s' * (count > 1)} already{files}, which count as "
            "part of the base model: they are not in the merged LoRA. To merge them, take the "
            "loaders away, and choose their files here",
        )
        for lora in loras:
            if lora.use.file in named:
                yield Note(
                    "twice",
                    f"{lora.use.name} is in the merge, and by the nodes before it on the MODEL, "
                    "too, so that it was measured on a model that has it already. Take it off the "
                    "MODEL, or out of the merge",
                )
    quick = [name for name in named if _QUICK.search(name.lower())] if count else []
    if is_guided and (quick or changes.has_few_steps):
        what = some_of(quick) if quick else "its sampling"
        yield Note(
            "host",
            f"MODEL seems to be one that draws in few steps ({what}), and such models are used "
            "without guidance; the merge was measured with it. Set guidance (cfg) to 1",
        )
    if changes.clip_skip is not None:
        yield Note(
            "host",
            f"CLIP stops at layer {changes.clip_skip} from its end (clip skip), and the LoRAs were "
            "measured so; use the merged LoRA with the same",
        )
    if changes.in_model:
        yield Note(
            "host",
            f"MODEL carries changes of other nodes: {some_of(changes.in_model)}. The LoRAs were "
            "measured with them; use the merged LoRA with the same, or connect MODEL from before",
        )
    if changes.hooks:
        yield Note(
            "host",
            f"CLIP carries {changes.hooks} hook{'s' * (changes.hooks > 1)}, such as LoRAs, for all "
            "that is drawn with its prompts. The LoRAs were measured with them; use the merged "
            "LoRA with the same",
        )
    if changes.in_samplers:
        yield Note(
            "host",
            f"MODEL carries changes of sampling by other nodes: {some_of(changes.in_samplers)}. "
            "The LoRAs were measured without them",
        )
