"""Faults in the middle of a merge, and what must be as before afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from iteris_core import IterisError, MergeResult
from iteris_core.rows import lockstep

_WORKER = lockstep._Worker
_NO_MEMORY = (IterisError, RuntimeError)


class Broken(Exception):
    """What no code knows."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        error: Makes what is raised.
        ends_in: What the merge then raises.
        stays: Whether it is raised at every later moment, too, as when memory is full.
    """

    error: Callable[[], BaseException]
    ends_in: type[BaseException] | tuple[type[BaseException], ...]
    stays: bool = False


KINDS = {
    "exception": Kind(lambda: Broken("broken"), Broken),
    "out of memory": Kind(lambda: torch.OutOfMemoryError("full"), _NO_MEMORY, True),
    "Ctrl-C": Kind(KeyboardInterrupt, KeyboardInterrupt),
    "out of memory, by its text": Kind(
        lambda: RuntimeError("MPS backend out of memory"), _NO_MEMORY, True
    ),
}


@dataclass(frozen=True)
class Moment:
    """A call of a layer, or a step of progress ("").

    Args:
        part: The part of the merge.
        path: The layer.
        number: How many moments were before it.
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


def weights_of(*models: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of models, as they are: not copied."""
    return {
        f"{number}.{name}": tensor
        for number, model in enumerate(models)
        for name, tensor in model.state_dict().items()
    }


def same_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Return whether all tensors are bit-equal."""
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def factors_of(result: MergeResult) -> dict[str, torch.Tensor]:
    """Return the tensors of a merged LoRA."""
    return {
        f"{path}.{name}": getattr(delta, name)
        for path, delta in result.adapter.deltas.items()
        for name in ("up", "down")
    }
