"""What a comparison refuses: sides, prompts and models, wherever possible before the merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..iteris_core import ConfigError, IterisError
from .compare_rows import rows_of
from .workflow import inputs_of, text_at, upstream

if TYPE_CHECKING:
    from . import host
    from .sockets import MergedLora

MULTIPLE = 16  # of a side: what the latents of every family have


def check_side(name: str, side: int) -> None:
    """Refuse a side that latents cannot have.

    Raises:
        ConfigError: Says which one.
    """
    if side % MULTIPLE:
        raise ConfigError(
            f"{name} is {side}; it must be a multiple of {MULTIPLE}, or 0 for what suits the model"
        )


def refusal_for(prompt: Mapping[str, Any], merge: str) -> str:
    """Return what is known to be wrong with the Compares of a merge; empty: nothing. See
    `refusal_of`.

    Args:
        prompt: See `workflow.upstream`.
        merge: The node that merges.
    """
    compares = (
        node
        for node, given in prompt.items()
        if given.get("class_type") == "IterISCompare" and merge_of(prompt, node) == str(merge)
    )
    refusals = (refusal_of(prompt, compare) for compare in compares)
    return next((f"Compare: {refusal}" for refusal in refusals if refusal), "")


def refusal_of(prompt: Mapping[str, Any], compare: str) -> str:
    """Return what is known to be wrong with a Compare before the merge; empty: nothing."""
    text = text_at(prompt, inputs_of(prompt, compare).get("prompt"))
    try:
        if text and text.strip():
            rows_of(text, [])
    except IterisError as error:
        return str(error)
    return drawn_with_merge(prompt, compare)


def merge_of(prompt: Mapping[str, Any], compare: str) -> str:
    """Return the merge that a Compare gets its merged LoRA from, also through nodes that hand it
    on; empty: none.
    """
    before = upstream(prompt, compare, ("merged",))
    return next((node for node in before if prompt[node].get("class_type") == "IterISMerge"), "")


def drawn_with_merge(prompt: Mapping[str, Any], compare: str) -> str:
    """Return what is wrong with a MODEL or CLIP that carries the merge; empty: they do not.

    Args:
        prompt: See `workflow.upstream`.
        compare: The node that compares.
    """
    for name in ("model", "clip"):
        if merge_of(prompt, compare) in upstream(prompt, compare, (name,)):
            return (
                f"{name} comes from the merge, so there would be nothing to compare it with. Leave "
                "it empty: then it is the one that the merge gets"
            )
    return ""


def check_base(base: host.ComfyModel, merged: MergedLora) -> None:
    """Refuse a model that is not the base of the merge.

    Raises:
        IterisError: It is of another family.
    """
    if base.family.name != merged.keys.family.name:
        raise IterisError(
            f"the MODEL is {base.family.name}, and the merged LoRA is for "
            f"{merged.keys.family.name}. Connect one of this family, or leave model and clip "
            "empty: then they are the ones that the merge got"
        )
