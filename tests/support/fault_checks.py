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
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import family_checks
import in_comfy
import outside

# isort: split
import comfy.model_management
import psutil
import tiny_hosts
import torch
from family_checks import same_tensors
from iteris_pack.nodes.host import latent_cache
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from torch import nn

from iteris_core import IterisError, MergeConfig, MergeResult
from iteris_core.diffusion import merging
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.held_out import HeldOutCheck
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.diffusion.sampling import Sampler
from iteris_core.rows import lockstep

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
_WORKER = lockstep._Worker


class Broken(Exception):
    """What no code knows."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what is raised, what the merge then raises, and whether it is raised at every
    later moment, too, as when memory is full.
    """

    error: Callable[[], BaseException]
    ends_in: type[BaseException]
    stays: bool = False


_Cancelled = comfy.model_management.InterruptProcessingException
KINDS = {
    "exception": Kind(lambda: Broken("broken"), Broken),
    "out of memory": Kind(lambda: torch.OutOfMemoryError("full"), IterisError, True),
    "out of memory, by its text": Kind(
        lambda: RuntimeError("MPS backend out of memory"), IterisError, True
    ),
    "Ctrl-C": Kind(KeyboardInterrupt, KeyboardInterrupt),
    "cancel": Kind(_Cancelled, _Cancelled),
}


@dataclass(frozen=True)
class Moment:
    """A call of a layer, or a step of progress (path ""), in a part of the merge; the number counts
    the moments before it.
    """

    part: str
    path: str
    number: int


class Moments:
    """The moments of one merge, at one of which it may go wrong.

    Args:
        layers: Layer -> its path.
        fault: The number of the moment at which something goes wrong, and what; None: nothing does.
    """

    def __init__(self, layers: Mapping[nn.Module, str], fault: tuple[int, Kind] | None) -> None:
        self.all: list[Moment] = []
        self.part = ""
        self._layers = layers
        self._fault = fault
        self._workers: list[weakref.ref[Any]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the calls of layers; a model's own hooks are not touched."""
        hook = nn.modules.module.register_module_forward_pre_hook(self._called)
        try:
            with mock.patch.object(lockstep, "_Worker", self._worker):
                yield
        finally:
            hook.remove()

    def reached(self, path: str = "") -> None:
        """Note a moment, and go wrong at the one that is meant."""
        moment = Moment(self.part, path, len(self.all))
        self.all.append(moment)
        if self._fault is not None:
            number, kind = self._fault
            if moment.number == number or (kind.stays and moment.number > number):
                raise kind.error()

    def waiting(self) -> int:
        """Return how many forward calls still wait; one that has ended may be held by an error."""
        workers = [worker() for worker in self._workers]
        return sum(worker is not None and not worker.dead for worker in workers)

    def _called(self, module: nn.Module, args: object) -> None:
        if module in self._layers:
            self.reached(self._layers[module])

    def _worker(self, *args: Any) -> Any:
        worker = _WORKER(*args)
        self._workers.append(weakref.ref(worker))
        return worker


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

    def again(self, moments: Moments | None = None) -> dict[str, torch.Tensor]:
        """Merge with nothing going wrong, and return the merged LoRA's tensors."""
        merged = self.result(moments or self.moments()).adapter
        return {
            f"{path}.{name}": getattr(delta, name)
            for path, delta in merged.deltas.items()
            for name in ("up", "down")
        }


def in_part(moments: Moments, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes that moments are in its part of the merge."""

    def run(*args: Any, **kwargs: Any) -> Any:
        before, moments.part = moments.part, part
        try:
            return original(*args, **kwargs)
        finally:
            moments.part = before

    return run


def hooks_of(model: nn.Module) -> int:
    """Return how many hooks a model has, and forwards that were put in front of its own."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


def torch_modes() -> tuple[object, ...]:
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")),
    )


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
            {
                f"{number}.{name}": tensor
                for number, model in enumerate(merge.models)
                for name, tensor in model.state_dict().items()
            },
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
    expected = merge.again(watched)
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
