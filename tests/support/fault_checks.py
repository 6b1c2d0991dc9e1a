"""Faults at every layer and in every part of a merge, with ComfyUI's own classes.

    python tests/support/fault_checks.py COMFYUI EVERY

A small merge is made again and again. Each time something goes wrong at one of its moments: at every
so many layers, in the part of the merge that has had the fewest faults. The kinds of faults take
turns. After a fault everything must be as before, and after each tenth the merge is made again. Writes
lines of JSON: one for a fault that left something or ended in another way than it should, and a last
one with the counts, and with what was asked of the outside.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import family_checks
import faults
import in_comfy
import outside

# isort: split
import comfy.model_management
import psutil
import tiny_hosts
import torch
from faults import (
    Kind,
    Moment,
    Moments,
    factors_of,
    hooks_of,
    same_tensors,
    torch_modes,
    weights_of,
)
from iteris_pack.nodes.host import latent_cache
from iteris_pack.nodes.host.diffusion_model import ComfyModel

from iteris_core import IterisError, MergeConfig, MergeResult
from iteris_core.diffusion import merging
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.held_out import HeldOutCheck
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.diffusion.sampling import Sampler

SMALL = Calibration(
    trajectories=1,
    timesteps=2,  # of which one is kept after a step
    sampling_steps=3,
    resolution=64,
    cfg=2.0,
    preserve_captions=("a street",),
    held_out=1,
)
SETTINGS = MergeSettings(MergeConfig(samples_per_chunk=4))
# Part of a merge -> the function that does it.
PARTS = {
    "proof of the LoRAs": (merging, "prove_loras"),
    "text encoder": (merging, "merge_text_encoder"),
    "diffusion model": (merging, "merge_denoiser"),
    "sampling": (Sampler, "sample"),
    "check": (HeldOutCheck, "measure"),
    "proof of the merge": (merging, "prove_merged"),
}
_Cancelled = comfy.model_management.InterruptProcessingException
KINDS = {
    # memory that is full ends in a sentence, wherever it is
    **{
        name: replace(kind, ends_in=IterisError) if kind.stays else kind
        for name, kind in faults.KINDS.items()
    },
    "cancel": Kind(_Cancelled, _Cancelled),
}


class Merge:
    """A small merge that can be made again, and goes wrong at a moment."""

    def __init__(self) -> None:
        host = tiny_hosts.host_of("SD1.5")
        self.model, self.clip = host.model, host.clip
        self.models = (self.model.model, self.clip.cond_stage_model)
        self.files = {
            ("first", "a photo of sks dog"): family_checks.lora_of(host, 1, "kohya"),
            ("second", "a drawing of zwx car"): family_checks.lora_of(host, 2, "kohya"),
        }
        paths = {path for lora in self.loras(host) for path in lora.adapter.deltas}
        self.layers = {
            module: path
            for model in self.models
            for path, module in model.named_modules()
            if path in paths
        }
        assert len(self.layers) == len(paths)

    def host(self) -> ComfyModel:
        return ComfyModel(self.model, self.clip)

    def loras(self, host: ComfyModel) -> list[LoadedLora]:
        return [
            family_checks.loaded(host, name, tensors, prompt)
            for (name, prompt), tensors in self.files.items()
        ]

    def result(self, moments: Moments) -> MergeResult:
        """Merge, and note the moments."""
        with ExitStack() as stack:
            stack.enter_context(moments.watched())
            for part, (place, name) in PARTS.items():
                run = in_part(moments, part, getattr(place, name))
                stack.enter_context(mock.patch.object(place, name, run))
            host = self.host()
            return merging.merge_and_check(
                Job.of(host, self.loras(host), SMALL, SETTINGS), lambda *_: moments.reached()
            )

    def moments(self, fault: tuple[int, Kind] | None = None) -> Moments:
        return Moments(self.layers, fault)

    def again(self) -> dict[str, torch.Tensor]:
        """Merge with nothing going wrong, and return the merged LoRA's tensors."""
        return factors_of(self.result(self.moments()))


def in_part(moments: Moments, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes that moments are in its part of the merge."""

    def run(*args: Any, **kwargs: Any) -> Any:
        before, moments.part = moments.part, part
        try:
            return original(*args, **kwargs)
        finally:
            moments.part = before

    return run


def patches_of(patcher: Any) -> tuple[object, ...]:
    return (
        patcher.patches_uuid,
        len(patcher.patches),
        len(patcher.object_patches),
        repr(patcher.model_options),
    )


def load(merge: Merge) -> None:
    """Load MODEL and CLIP as any next node does. The host changes weights in place, and puts them
    back when another MODEL of them is loaded.
    """
    comfy.model_management.load_models_gpu([merge.model, merge.clip.patcher])


def bytes_of_tensors(merge: Merge) -> int:
    """Return how much memory all tensors take that anything holds, but for the sampling runs that
    are kept.
    """
    load(merge)
    gc.collect()
    latent_cache._MEMORIES.clear()
    storages = {
        found.untyped_storage().data_ptr(): found.untyped_storage().nbytes()
        for found in gc.get_objects()
        if isinstance(found, torch.Tensor)
    }
    return sum(storages.values())


@dataclass(frozen=True)
class State:
    """What a fault must not change."""

    hooks: tuple[int, ...]
    modes: tuple[object, ...]
    patches: tuple[object, ...]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, merge: Merge) -> State:
        load(merge)
        return cls(
            tuple(map(hooks_of, merge.models)),
            torch_modes(),
            tuple(map(patches_of, (merge.model, merge.clip.patcher))),
            weights_of(*merge.models),
        )

    def copy(self) -> State:
        return replace(self, weights={name: t.clone() for name, t in self.weights.items()})

    def changes(self, other: State) -> list[str]:
        """Return what is not the same in another state."""
        names = ("hooks", "modes", "patches")
        changed = [name for name in names if getattr(self, name) != getattr(other, name)]
        return changed if same_tensors(self.weights, other.weights) else [*changed, "weights"]


def once(moments: list[Moment], every: int) -> list[Moment]:
    """Return one moment of every so many layers, in the part of the merge that has the fewest of them
    yet.
    """
    of_layers: dict[str, list[Moment]] = {}
    for moment in moments:
        of_layers.setdefault(moment.path, []).append(moment)
    taken: Counter[str] = Counter()
    found = []
    for of_layer in list(of_layers.values())[::every]:
        found.append(min(of_layer, key=lambda moment: taken[moment.part]))
        taken[found[-1].part] += 1
    return found


def complaints(merge: Merge, moment: Moment, kind: Kind, before: State) -> list[str]:
    """Let a merge go wrong, and return what is not as it should be."""
    latent_cache._MEMORIES.clear()
    found = []
    moments = merge.moments((moment.number, kind))
    try:
        merge.result(moments)
        found.append("it ended without an error")
    except BaseException as error:
        trace = sys.exc_info()[2]  # as ComfyUI does: a cycle that holds all frames until collected
        assert trace is not None
        if not isinstance(error, kind.ends_in):
            found.append(f"it ended in {type(error).__name__}: {error}")
    found += before.changes(State.of(merge))
    if moments.waiting():
        gc.collect()
        found += ["forward calls wait"] * (moments.waiting() > 0)
    return found


def left_in_host(texts: list[str]) -> list[str]:
    """Return what the host's list of loaded models has that nobody can unload, and what it has
    logged of models that leak.
    """
    gc.collect()
    entries = comfy.model_management.current_loaded_models
    dead = [type(entry.real_model()).__name__ for entry in entries if entry.is_dead()]
    found = [f"{name} is dead in the list of loaded models" for name in dead]
    if len(entries) > 2:
        found.append(f"{len(entries)} models are loaded")
    logged = [text for text in texts if "memory leak" in text]
    texts.clear()
    return found + logged[:1]


def freed_at_once(merge: Merge) -> list[str]:
    """Return what is left where one collection frees a model that carries a LoRA with all that it is
    a clone of, as with an error's frames.
    """
    host = merge.host()
    lora, _ = merge.loras(host)
    with family_checks.messages() as texts:
        held: list[Any] = [host, host.with_adapter(lora.adapter)]
        held.append(held)
        comfy.model_management.load_models_gpu([held[1].model, held[1].clip.patcher])
        del held, host, lora
        found = left_in_host(texts)
        load(merge)
        return found + left_in_host(texts)


def figures(every: int) -> Iterator[dict[str, Any]]:
    merge = Merge()
    before = State.of(merge).copy()
    watched = merge.moments()
    expected = factors_of(merge.result(watched))
    assert same_tensors(merge.again(), expected)  # on the sampling runs that were kept
    assert not before.changes(State.of(merge))
    asked = outside.refuse()
    process = psutil.Process()
    held = bytes_of_tensors(merge)
    resident = process.memory_info().rss
    counts: Counter[str] = Counter()
    wrong = 0
    for number, moment in enumerate(once(watched.all, every)):
        name = list(KINDS)[number % len(KINDS)]
        counts.update(("faults", moment.part, name))
        with family_checks.messages() as texts:
            found = complaints(merge, moment, KINDS[name], before)
            found += left_in_host(texts)
        if number % 10 == 0:
            counts["merges after a fault"] += 1
            if not same_tensors(merge.again(), expected):
                found.append("the next merge differs")
            if (now := bytes_of_tensors(merge)) != held:
                found.append(f"tensors hold {now - held} bytes more")
        if found:
            wrong += 1
            yield {"fault": name, **vars(moment), "wrong": found}
    grown = (process.memory_info().rss - resident) / 1e6
    left = {"asked": asked, "wrong": wrong, "grown MB": round(grown, 1)}
    left["freed_at_once"] = freed_at_once(merge)
    yield {**left, "layers": len(merge.layers), **counts}


if __name__ == "__main__":
    in_comfy.tell(figures(int(in_comfy.ARGUMENTS[0])))
