"""Faults at every layer and in every part of a merge leave nothing behind.

A small merge is made again and again. Each time something goes wrong at one of its moments: at every
CHECKED-th layer, in the part of the merge that has had the fewest faults. The kinds of faults take
turns. After a fault everything must be as before, and after each eighth the merge is made again.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import comfy.model_management
import comfy_loras
import outside
import tiny_hosts
import torch
from comfy_loras import same_tensors
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from torch import nn

from iteris_core import IterisError
from iteris_core.diffusion import merging
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job
from iteris_core.diffusion.sampling import Sampler
from iteris_core.memory import Room

EVERY = int(os.environ["CHECKED"])
SMALL = Calibration(
    trajectories=2,  # of which one makes a step
    sampling_steps=3,
    resolution=64,
    cfg=2.0,
    preserve_captions=("a street",),
)
ROOM = Room(samples_per_chunk=4)
# Part of a merge -> the function that does it.
PARTS = {
    "check of the LoRAs": (merging, "check_called"),
    "text encoder": (merging, "merge_text_encoder"),
    "diffusion model": (merging, "merge_denoiser"),
    "sampling": (Sampler, "sample"),
}


class Broken(Exception):
    """What no code knows."""


@dataclass(frozen=True)
class Kind:
    """What is raised, at one moment or at all later ones too, and what the merge then raises."""

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


class Moments:
    """The moments of one merge, as (part, path), at one of which it may go wrong: the calls of its
    layers, and its steps of progress (path "").

    Args:
        layers: Layer -> its path.
        fault: The number of the moment at which something goes wrong, and what; None: nothing does.
    """

    def __init__(self, layers, fault=None):
        self.all = []
        self.part = ""
        self._layers = layers
        self._fault = fault

    def reached(self, path=""):
        number = len(self.all)
        self.all.append((self.part, path))
        if self._fault is not None:
            at, kind = self._fault
            if number == at or (kind.stays and number > at):
                raise kind.error()

    @contextmanager
    def watched(self):
        def called(module, args):
            if module in self._layers:
                self.reached(self._layers[module])

        hook = nn.modules.module.register_module_forward_pre_hook(called)
        with ExitStack() as stack:
            stack.callback(hook.remove)
            for part, (place, name) in PARTS.items():
                run = self._in_part(part, getattr(place, name))
                stack.enter_context(mock.patch.object(place, name, run))
            yield

    def _in_part(self, part, original):
        def run(*args, **kwargs):
            before, self.part = self.part, part
            try:
                return original(*args, **kwargs)
            finally:
                self.part = before

        return run


class Merge:
    """A small merge that can be made again, and goes wrong at a moment."""

    def __init__(self):
        host = tiny_hosts.host_of("SD1.5")
        self.model, self.clip = host.model, host.clip
        self.models = (self.model.model, self.clip.cond_stage_model)
        self.files = {
            ("first", "a photo of sks dog"): comfy_loras.lora_of(host, 1, "kohya"),
            ("second", "a drawing of zwx car"): comfy_loras.lora_of(host, 2, "kohya"),
        }
        paths = {path for lora in self.loras(host) for path in lora.adapter.deltas}
        self.layers = {
            module: path
            for model in self.models
            for path, module in model.named_modules()
            if path in paths
        }

    def host(self):
        return ComfyModel(self.model, self.clip)

    def loras(self, host):
        return [
            comfy_loras.loaded(host, name, tensors, prompt)
            for (name, prompt), tensors in self.files.items()
        ]

    def made(self, moments=None):
        moments = moments or Moments(self.layers)
        with moments.watched():
            host = self.host()
            job = Job.of(host, self.loras(host), SMALL, room=ROOM)
            merged = merging.merge_loras(job, lambda *_: moments.reached()).adapter
        return {
            f"{path}.{name}": getattr(delta, name)
            for path, delta in merged.deltas.items()
            for name in ("up", "down")
        }

    def load(self):
        """Load both as any next node does: then the host puts back the weights that it changed in place."""
        comfy.model_management.load_models_gpu([self.model, self.clip.patcher])


def hooks_of(model):
    """Return how many hooks a model has, and forwards that were put in front of its own."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


def torch_modes():
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")),
    )


def patches_of(patcher):
    parts = (patcher.patches, patcher.object_patches)
    return (patcher.patches_uuid, *map(len, parts), repr(patcher.model_options))


@dataclass(frozen=True)
class State:
    """What a fault must not change; `held` are the bytes of all tensors."""

    hooks: list[int]
    modes: tuple[object, ...]
    patches: list[tuple[object, ...]]
    held: int
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, merge):
        merge.load()
        gc.collect()
        storages = {
            found.untyped_storage().data_ptr(): found.untyped_storage().nbytes()
            for found in gc.get_objects()
            if isinstance(found, torch.Tensor)
        }
        weights = {}
        for number, model in enumerate(merge.models):
            weights |= {f"{number}.{name}": t for name, t in model.state_dict().items()}
        return cls(
            list(map(hooks_of, merge.models)),
            torch_modes(),
            list(map(patches_of, (merge.model, merge.clip.patcher))),
            sum(storages.values()),
            weights,
        )

    def changes(self, other):
        names = ("hooks", "modes", "patches", "held")
        changed = [name for name in names if getattr(self, name) != getattr(other, name)]
        return changed if same_tensors(self.weights, other.weights) else [*changed, "weights"]


def chosen(moments):
    """Return a moment of every EVERY-th layer, in the part of the merge that has the fewest yet."""
    of_layers = {}
    for number, (part, path) in enumerate(moments):
        of_layers.setdefault(path, []).append((number, part))
    taken = Counter()
    found = []
    for of_layer in list(of_layers.values())[::EVERY]:
        number, part = min(of_layer, key=lambda moment: taken[moment[1]])
        taken[part] += 1
        found.append(number)
    return found


def end_of(merge, moments):
    try:
        merge.made(moments)
    except BaseException as error:
        # as ComfyUI does: a cycle that holds all frames until it is collected
        trace = sys.exc_info()[2]
        assert trace is not None
        return type(error)
    return type(None)


def left_in_host(texts):
    """Return what the host's list of models has that nobody can unload, and what it logged of leaks."""
    gc.collect()
    entries = comfy.model_management.current_loaded_models
    dead = [type(entry.real_model()).__name__ for entry in entries if entry.is_dead()]
    return [*dead, *entries[2:], *(text for text in texts if "memory leak" in text)]


def test_a_fault_leaves_the_model_as_it_was_and_the_next_merge_the_same():
    merge = Merge()
    watched = Moments(merge.layers)
    expected = merge.made(watched)
    before = State.of(merge)
    before = replace(before, weights={name: t.clone() for name, t in before.weights.items()})
    before = replace(before, held=State.of(merge).held)  # with these copies
    assert same_tensors(merge.made(), expected)
    assert before.changes(State.of(merge)) == []
    numbers = chosen(watched.all)
    assert {watched.all[number][0] for number in numbers} >= set(PARTS)
    asked = outside.refuse()
    for turn, number in enumerate(numbers):
        name = list(KINDS)[turn % len(KINDS)]
        called = (name, number, *watched.all[number])
        with comfy_loras.messages() as texts:
            ended_in = end_of(merge, Moments(merge.layers, (number, KINDS[name])))
            assert issubclass(ended_in, KINDS[name].ends_in), called
            assert before.changes(State.of(merge)) == [], called
            assert left_in_host(texts) == [], called
        if turn % 8 == 0:
            assert same_tensors(merge.made(), expected), called
    assert asked == []  # no connection, program or pickle


def test_one_collection_frees_a_model_that_carries_a_lora_and_all_that_it_is_a_clone_of():
    """As with an error's frames."""
    merge = Merge()
    host = merge.host()
    lora, _ = merge.loras(host)
    with comfy_loras.messages() as texts:
        model, clip = host.patched(lora.adapter)
        held = [host, model, clip]
        held.append(held)
        comfy.model_management.load_models_gpu([model, clip.patcher])
        del held, host, lora, model, clip
        assert left_in_host(texts) == []
        merge.load()
        assert left_in_host(texts) == []
