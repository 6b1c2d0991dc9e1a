"""Chunks of one sweep in lockstep: several forward calls that wait for each other at every target layer.

Each chunk runs as a greenlet, so there is one OS thread and one torch state (inference mode, autocast, default device),
and the model's forward needs no change.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from .errors import CalibrationError


def pause(place: Hashable) -> None:
    """Wait, inside a worker of `run_in_lockstep`, until every worker has arrived at this place."""
    getcurrent().parent.switch(place)


def run_in_lockstep(workers: Sequence[Callable[[], Any]], on_arrival: Callable[[Any], None]) -> list[Any]:
    """Run workers side by side; whenever all of them pause at the same place, call ``on_arrival(place)`` and go on.

    Args:
        workers: Functions without arguments that call `pause`, all at the same places in the same order.
        on_arrival: Called once per place, between the workers' pauses and their return from them.

    Returns:
        What each worker returned.

    Raises:
        CalibrationError: Two workers paused at different places, or one ended while another paused.
    """
    lets = [greenlet(worker) for worker in workers]
    for let in lets:  # each needs a context of its own; one context cannot be entered twice
        let.gr_context = contextvars.copy_context()
    try:
        while True:
            places = [let.switch() for let in lets]
            ended = [let.dead for let in lets]
            if all(ended):
                return places
            if any(ended) or any(place != places[0] for place in places):
                raise CalibrationError(_disagreement(places, ended))
            on_arrival(places[0])
    finally:
        for let in lets:
            if let:  # paused: unwind it, so that its frames and their tensors go
                let.throw(GreenletExit)


def _disagreement(places: list[Any], ended: list[bool]) -> str:
    here = ["the end" if end else repr(place) for place, end in zip(places, ended, strict=True)]
    other = next(i for i, place in enumerate(here) if place != here[0])
    return (
        f"the forward passes took different ways: chunk 0 reached {here[0]} while chunk {other} reached {here[other]}. "
        "Every sample has to run through the same target layers in the same order; "
        "remove what makes the model skip layers for some inputs (a cache, dropout of layers, a step-dependent patch)"
    )
