"""Chunks of one sweep in lockstep: several forward calls that wait for each other at every target
layer.

Each chunk runs as a greenlet, so there is one OS thread and one torch state, and the model's
forward needs no change. What a forward switches on for itself (autocast, gradients) is put aside
while it waits.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from ..errors import CalibrationError
from .parking import Parked, Parking


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
        on_arrival: Called once per place, between the workers' pauses and their return from them.
        parking: Where the tensors of paused workers wait; None: where they are.

    Returns:
        What each worker returned.

    Raises:
        CalibrationError: Two workers paused at different places, or one ended while another paused.
    """
    lets = [_Worker(worker) for worker in workers]
    modes = _torch_modes()
    parked: dict[_Worker, Parked] = {}
    for let in lets:  # each needs a context of its own; one context cannot be entered twice
        let.gr_context = contextvars.copy_context()
    try:
        while True:
            places = []
            for let in lets:
                if let in parked:
                    parked.pop(let).bring_back()
                places.append(let.switch())
                _set_torch_modes(modes)
                if parking is not None and not let.dead:
                    parked[let] = parking.park(let.gr_frame)
            ended = [let.dead for let in lets]
            if all(ended):
                return places
            if any(ended) or any(place != places[0] for place in places):
                raise CalibrationError(_disagreement(places, ended))
            on_arrival(places[0])
    finally:
        for let in lets:
            if let in parked:  # what a caller handed in must be whole again, whatever happened
                parked.pop(let).bring_back()
            if let:  # paused: unwind it, so that its frames and their tensors go
                let.throw(GreenletExit)
        _set_torch_modes(modes)


class _Worker(greenlet):
    """A greenlet that remembers in which inference mode it was started."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__(run)
        self.inference_mode = torch.is_inference_mode_enabled()


def _torch_modes() -> tuple[bool, list[tuple[str, bool, torch.dtype]]]:
    autocast = [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    ]
    return torch.is_grad_enabled(), autocast


def _set_torch_modes(modes: tuple[bool, list[tuple[str, bool, torch.dtype]]]) -> None:
    gradients, autocast = modes
    torch.set_grad_enabled(gradients)
    for kind, enabled, dtype in autocast:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _disagreement(places: list[Any], ended: list[bool]) -> str:
    here = ["the end" if end else repr(place) for place, end in zip(places, ended, strict=True)]
    other = next(i for i, place in enumerate(here) if place != here[0])
    return (
        f"the forward passes took different ways: chunk 0 reached {here[0]} while chunk {other} "
        f"reached {here[other]}. Every sample has to run through the same target layers in the same "
        "order; remove what makes the model skip layers for some inputs (a cache, dropout of "
        "layers, a step-dependent patch)"
    )
