"""Forward calls of several chunks that wait for each other at every target layer.

Each chunk runs as a greenlet, so there is one OS thread and one torch state, and the model's
forward needs no change. What a forward switches on for itself (autocast, gradients) is put aside
while it waits.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import CalibrationError, IterisError, MissingLibraryError

if TYPE_CHECKING:
    from .parking import Parking

try:
    from greenlet import GreenletExit, getcurrent, greenlet
except ModuleNotFoundError as error:
    raise MissingLibraryError(
        "a merge needs the package greenlet, which is not installed for this Python. Install it "
        f'with: "{sys.executable}" -m pip install greenlet'
    ) from error


def pause(place: Hashable) -> None:
    """Wait, inside a worker of `run_in_lockstep`, until every worker has arrived at this place."""
    if torch.is_inference_mode_enabled() != getcurrent().inference_mode:
        raise CalibrationError(
            f"the model switches torch's inference mode inside its forward, around {place!r}; that "
            "cannot be put aside while other chunks run. Switch it on around the whole merge "
            "instead"
        )
    modes = _torch_modes()
    getcurrent().parent.switch(place)
    _set_torch_modes(modes)


def run_in_lockstep(
    workers: Sequence[Callable[[], Any]],
    on_arrival: Callable[[Any], None],
    parking: Parking | None = None,
) -> list[Any]:
    """Run workers side by side; whenever all of them pause at the same place, call
    ``on_arrival(place)`` and go on.

    Args:
        workers: Functions without arguments that call `pause`, all at the same places in the same
            order.
        on_arrival: Function that is called once per place, while all workers are paused there.
        parking: Parking of the tensors of paused workers; None: they stay.

    Returns:
        The return values of the workers.

    Raises:
        CalibrationError: Two workers paused at different places, or one ended while another paused.
    """
    running = [_Worker(worker, parking) for worker in workers]
    modes = _torch_modes()
    with nullcontext() if parking is None else parking.told_of_returns(_returned):
        try:
            while True:
                if parking is not None:
                    parking.new_round(len(running))
                places = [worker.go_on(modes) for worker in running]
                ended = [worker.dead for worker in running]
                if all(ended):
                    return places
                if any(ended) or any(place != places[0] for place in places):
                    raise CalibrationError(_disagreement(places, ended))
                on_arrival(places[0])
        finally:
            for worker in running:
                worker.unwind()
            _set_torch_modes(modes)


def _returned(module: nn.Module) -> None:
    """Bring back what a module's callers need when its call returns."""
    worker = getcurrent()
    if isinstance(worker, _Worker):
        worker.bring_back(module)


class _Worker(greenlet):
    """A greenlet with its own context, and with the state that is put aside while it is paused."""

    def __init__(self, run: Callable[[], Any], parking: Parking | None) -> None:
        super().__init__(run)
        self.gr_context = contextvars.copy_context()
        self.inference_mode = torch.is_inference_mode_enabled()
        self.parking = parking
        self.parked = None if parking is None else parking.new_chunk()

    def go_on(self, modes: _Modes) -> Any:
        """Run up to the next pause or to the end, and return the place or the worker's return
        value.
        """
        self.bring_back(None)
        place = self.switch()
        _set_torch_modes(modes)
        if self.parking and self.parked and not self.dead:
            self.parking.park(self.gr_frame, self.parked)
        return place

    def unwind(self) -> None:
        """Bring back parked tensors, as far as there is room for them, and end a paused worker, so
        that its frames and their tensors are freed.
        """
        # what is raised already says more, and the next worker has to end, too
        with suppress(IterisError, RuntimeError, MemoryError):
            for module in (None, *(self.parked.waiting if self.parked else ())):
                self.bring_back(module)
        if self.parking and self.parked:
            self.parking.let_go(self.parked)
        if self:
            self.throw(GreenletExit)

    def bring_back(self, module: nn.Module | None) -> None:
        """Bring back what is needed when a module's call returns; None: when the worker goes on."""
        if self.parking and self.parked:
            self.parking.bring_back(self.parked, module)


_AUTOCAST_KINDS = [k for k in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(k)]

# Whether gradients are on; and for each kind of device whether autocast is on, and its dtype.
_Modes = tuple[bool, list[tuple[str, bool, torch.dtype]]]


def _torch_modes() -> _Modes:
    autocast = [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in _AUTOCAST_KINDS
    ]
    return torch.is_grad_enabled(), autocast


def _set_torch_modes(modes: _Modes) -> None:
    gradients, autocast = modes
    torch.set_grad_enabled(gradients)
    for kind, enabled, dtype in autocast:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _disagreement(places: list[Any], ended: list[bool]) -> str:
    here = ["the end" if end else repr(place) for place, end in zip(places, ended, strict=True)]
    other = next(i for i, place in enumerate(here) if place != here[0])
    return different_ways(f"chunk 0 reached {here[0]} while chunk {other} reached {here[other]}")


def different_ways(what: str) -> str:
    """Return the text of the error about chunks that do not run through the same layers."""
    return (
        f"the forward passes took different ways: {what}. Every sample has to run through the same "
        "target layers in the same order; remove what makes the model skip layers for some inputs "
        "(a cache, dropout of layers, a step-dependent patch)"
    )
