"""A proof that LoRAs are read as the host's own loader reads them, and that the host patches the
model with the merged LoRA that was solved.

The host puts a LoRA on a weight W, which makes it W'. What it changes is compared with what was
read, or merged, on random columns C, in float32:

    (W' - W) C   and   up (down C)

This needs no forward pass, and the number format of the model does not matter. One forward pass
then shows whether the model calls all layers that are to be measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, target_layers
from ..devices import exact_products
from ..errors import AdapterError, CalibrationError, SolveError
from ..network import Network
from ..rows.wearing import layer_hooks
from .calibration import Calibration
from .loaded_loras import LoadedLora
from .model import DenoiserRow, DiffusionHost, PatchedWeight
from .sampling import Sampler, noise

# Share of a change. Float32 makes 1e-5 of it, a weight in the wrong order or with the wrong factor
# 0.1 to 1.
TOLERANCE = 0.01
# A change that is smaller than this share of the weight counts as one of this size: float32 keeps
# too few digits of a smaller one in its sum with the weight.
_SMALLEST = 1e-4
_COLUMNS = 4
# Side in pixels, at most, of a picture that shows which layers are called.
_SIDE = 128
_MISREAD = (
    "Likely causes: a kind of key that IterIS misreads, a model that keeps a weight's rows in an "
    "order of its own, or another node that changes MODEL or CLIP. Connect them straight from "
    "their loaders; if it stays, leave this LoRA out, and report it with the output of 'iteris "
    "inspect'"
)


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


@torch.no_grad()
def check_called(
    model: DiffusionHost, loras: Sequence[LoadedLora], calibration: Calibration
) -> None:
    """Run one small noisy picture through the base model, and refuse LoRAs that change layers which
    it does not call.

    Args:
        loras: The LoRAs of the merge that change something, at least one.

    Raises:
        AdapterError: Names the LoRA and one of the layers.
        CalibrationError: The base model's answer is not finite.
    """
    paths = set(target_layers([lora.adapter for lora in loras]))
    text = set(filter(model.is_text_module, paths))
    caption = next(iter(loras[0].use.prompts), "")
    pieces = model.tokenize(caption)
    outputs: Sequence[Any] = []
    missed: set[str] = set()
    if pieces:
        with model.text_encoder() as network, _uncalled(network, text) as of_text:
            outputs = list(network.forward(pieces))
        missed |= of_text
    prompt = model.encoded(caption, outputs)
    small = replace(calibration, resolution=min(calibration.resolution, _SIDE))
    opened = model.denoiser(small.levels)
    with opened as network, _uncalled(network, paths - text) as of_denoiser:
        sampler = Sampler.of(model, network, small)
        middle = sampler.sigmas[(len(sampler.sigmas) - 1) // 2]
        latents = sampler.start(noise(sampler.shape, calibration.seed)[None], middle)[0]
        answer = network.forward([DenoiserRow(latents, middle, prompt)])
    if not answer.isfinite().all():
        raise CalibrationError(
            "the base model's own picture is not finite before any LoRA is on it. Load the model "
            "in another precision (bfloat16 or float32), and see if it draws at all"
        )
    missed |= of_denoiser
    for lora in loras:
        own = sorted(missed.intersection(lora.adapter.deltas))
        if own:
            raise AdapterError(
                f"{lora.adapter.name}: only a part of what it does can be measured. The model does "
                f"not call {len(own)} of its layers, such as {own[0]!r}: it reads their weights in "
                "code of its own, as ComfyUI does with int8 layers after an activation, or is "
                "compiled. Load the model in 16 bit, fp8 or GGUF, and merge in front of nodes that "
                "compile it"
            )


@contextmanager
def _uncalled(network: Network, paths: Collection[str]) -> Iterator[set[str]]:
    """Yield the layers that have not been called so far."""
    left = set(paths)

    def called(path: str, _module: nn.Module, _x: Tensor, y: Tensor) -> Tensor:
        left.discard(path)
        return y

    with layer_hooks({path: network.modules[path] for path in paths}, called):
        yield left


def prove_merged(model: DiffusionHost, merged: Adapter) -> None:
    """Compare the merged LoRA, weight by weight, with what the host patches with it, if it has a
    loader of its own.

    Raises:
        SolveError: They differ; names the layer that differs most.
    """
    wrong = _differences(merged, model.loader.weights_with(merged)) if model.loader else {}
    if wrong:
        raise SolveError(
            "the patched MODEL does not carry the merged LoRA that was solved: they differ at "
            f"{_worst(wrong)}. Another node probably patches the model. Connect MODEL and CLIP "
            "straight from their loaders; if it stays, report it"
        )


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
