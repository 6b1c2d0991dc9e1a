"""A proof that LoRAs are read as the host's own loader reads them, and that the host draws with the
merged LoRA what was solved.

The host puts a LoRA on a weight W, which makes it W'. What it changes is compared with what was
read, or merged, on random columns C, in float32:

    (W' - W) C   and   up (down C)

This needs no forward pass, and the number format of the model does not matter. One row of the model
then shows that a row which wears the LoRA does what the patched model does, see `small_pictures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from ..adapters import Adapter
from ..devices import exact_products
from ..errors import AdapterError, CalibrationError, SolveError
from ..progress import Progress, nobody
from ..report.records import Note
from .calibration import Calibration
from .lora_use import LoadedLora
from .model import DiffusionHost, PatchedWeight
from .small_pictures import View, pictures_of

# Share of a change. Float32 makes 1e-5 of it, a weight in the wrong order or with the wrong factor
# 0.1 to 1.
TOLERANCE = 0.01
# A change that is smaller than this share of the weight counts as one of this size: float32 keeps
# too few digits of a smaller one in its sum with the weight.
_SMALLEST = 1e-4
_COLUMNS = 4
# From this share on, the report tells that the host rounds.
_NOTED = 0.05
# How much an untested model may round: float8 makes up to 0.6, and a picture then shows nothing.
_MOST_ROUNDED = 0.3
_CHANGED = (
    "Another node probably patches the model, or the model bypasses some layers. Connect MODEL and "
    "CLIP straight from their loaders; if it stays, report it"
)
_MISREAD = (
    "Likely causes: a kind of key that IterIS misreads, a model that keeps a weight's rows in an "
    "order of its own, or another node that changes MODEL or CLIP. Connect them straight from "
    "their loaders; if it stays, leave this LoRA out, and report it with the output of 'iteris "
    "inspect'"
)


# Name of an adapter -> the share of its effect on one picture by which a row that wears it and the
# model that the host patches with it differ.
Rounded = dict[str, float]


def notes_of_rounding(rounded: Rounded) -> list[Note]:
    """Return a note for the report where the host rounds much."""
    much = {name: share for name, share in rounded.items() if share >= _NOTED}
    if not much:
        return []
    shares = ", ".join(f"{name} by {share:.0%} of its effect" for name, share in much.items())
    text = (
        "the numbers of this model are too coarse for what a LoRA changes, so that ComfyUI rounds "
        f"it: {shares}. That is so for every LoRA on this model, merged or not. The merge is "
        "measured without this rounding. A node that changes how the model's layers run would show "
        "here, too"
    )
    return [Note("host", text)]


def prove_reading(adapter: Adapter, weights: Iterable[PatchedWeight]) -> None:
    """Refuse a LoRA that the host's own loader reads in another way.

    Raises:
        AdapterError: Names the LoRA and the layer that differs most.
    """
    wrong = _differences(adapter, weights)
    if wrong:
        keys = adapter.unmatched
        unread = (
            f"{len(keys)} keys of its file were not read, such as {keys[0]!r}. " if keys else ""
        )
        raise AdapterError(
            f"{adapter.name}: ComfyUI's own loader makes another change of it than IterIS at "
            f"{_worst(wrong)}, so a merge would be measured on the wrong LoRA. "
            f"{unread}{_MISREAD}"
        )


def prove_loras(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    progress: Progress = nobody,
) -> Rounded:
    """Draw one small picture with each LoRA, and compare the first with the picture of the model
    that the host patches with it.

    Args:
        loras: The LoRAs of the merge that change something, at least one.

    Returns:
        How the host rounds; empty if it has no loader of its own.

    Raises:
        AdapterError: A LoRA whose picture is not finite, or that changes layers which the model
            does not call; names it.
        CalibrationError: The base model's picture is not finite, or both pictures differ though the
            weights are not rounded, or on a model that was not tested differ by more than rounding
            explains.
    """
    if model.loader is None:
        return {}
    views = [View(_caption_of(lora), lora.adapter) for lora in loras]
    pictures = pictures_of(model, views, calibration)
    for lora, worn in zip(loras, pictures.worn, strict=True):
        if worn.missed:
            raise AdapterError(
                f"{lora.adapter.name}: only a part of what it does can be measured. "
                f"{_of_missed(worn.missed)}"
            )
    share = pictures.difference
    if pictures.is_exact and not share <= TOLERANCE:
        raise CalibrationError(
            f"{loras[0].adapter.name}: its rows do not draw what the model patched by ComfyUI "
            f"draws, though both read its file alike: the difference is {share:.0%} of what it "
            f"does to {views[0].caption!r}, and no weight is rounded. {_CHANGED}"
        )
    if not model.family.is_tested and not share <= _MOST_ROUNDED:
        raise CalibrationError(
            f"{loras[0].adapter.name}: what its rows draw, and what the model patched by ComfyUI "
            f"draws, differ by {share:.0%} of its effect. Merging on {model.family.name} was never "
            "tested, so this may be more than the rounding of the model's numbers. Load the model "
            "in 16 or 32 bit, without other nodes between it and the merge"
        )
    progress(1, 1)
    return {loras[0].adapter.name: share}


def prove_merged(
    model: DiffusionHost,
    merged: Adapter,
    lora: LoadedLora,
    calibration: Calibration,
) -> Rounded:
    """Compare the merged LoRA with what the host patches with it: weight by weight, and on one
    small picture.

    Args:
        lora: The LoRA whose caption is drawn.

    Returns:
        How the host rounds; empty if it has no loader of its own.

    Raises:
        SolveError: They differ.
    """
    loader = model.loader
    if loader is None:
        return {}
    wrong = _differences(merged, loader.weights_with(merged))
    if wrong:
        raise SolveError(
            "the patched MODEL does not carry the merged LoRA that was solved: they differ at "
            f"{_worst(wrong)}. {_CHANGED}"
        )
    view = View(_caption_of(lora), replace(merged, name="the merged LoRA"))
    pictures = pictures_of(model, [view], calibration)
    [worn] = pictures.worn
    share = pictures.difference
    if worn.missed or (pictures.is_exact and not share <= TOLERANCE):
        raise SolveError(
            "the patched MODEL does not draw with the merged LoRA what was solved: the difference "
            f"is {share:.0%} of what it does to {view.caption!r}, which rounding does not explain. "
            f"{_of_missed(worn.missed) or _CHANGED}"
        )
    return {view.adapter.name: share}


def _differences(adapter: Adapter, weights: Iterable[PatchedWeight]) -> dict[str, float]:
    """Return the layers that an adapter and the host change differently, such as those that only
    one of them changes: path -> share of the change by which they differ.
    """
    shares = {path: float(delta.squared_norm() > 0) for path, delta in adapter.deltas.items()}
    with exact_products(torch.device("cpu")):
        for weight in weights:
            shares[weight.path] = _difference(adapter, weight)
    return {path: share for path, share in shares.items() if not share <= TOLERANCE}


def _difference(adapter: Adapter, weight: PatchedWeight) -> float:
    """Return ``||(W' - W) C - dW C||``, relative to the larger of both changes."""
    before = weight.before
    if weight.after.shape != before.shape:
        return float("inf")
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(before.shape[1], _COLUMNS, generator=generator).to(before)
    theirs = (weight.after - before) @ columns
    ours = torch.zeros_like(theirs)
    delta = adapter.deltas.get(weight.path)
    if delta is not None:
        delta = delta.to(device=before.device, dtype=before.dtype)
        ours = delta.up @ (delta.down @ columns)
    smallest = _SMALLEST * (before @ columns).norm()
    largest = torch.stack([theirs.norm(), ours.norm(), smallest]).max().item()
    return (theirs - ours).norm().item() / largest if largest else 0.0


def _worst(shares: Mapping[str, float]) -> str:
    """Return how many layers differ, and which one the most."""
    path = max(shares, key=lambda path: shares[path])
    more = f"{len(shares)} layers, most of all at " if len(shares) > 1 else ""
    return f"{more}{path!r}, by {shares[path]:.0%} of the change"


def _caption_of(lora: LoadedLora) -> str:
    return next(iter(lora.use.prompts), "")


def _of_missed(missed: Sequence[str]) -> str:
    """Return a sentence about layers that the model does not call, or nothing."""
    if not missed:
        return ""
    return (
        f"The model does not call {len(missed)} of its layers, such as {missed[0]!r}, so that "
        "nothing can be measured there: it reads their weights in code of its own, as ComfyUI does "
        "with int8 layers after an activation, or is compiled. Load the model in 16 bit, fp8 or "
        "GGUF, and merge in front of nodes that compile it"
    )
