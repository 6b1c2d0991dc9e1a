"""Workers that wait for each other: their order, and the state that each of them sees."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
import torch

from iteris_core import CalibrationError
from iteris_core.rows.lockstep import pause, run_in_lockstep


def worker(log, name, places):
    def work():
        for place in places:
            log.append(f"{name} at {place}")
            pause(place)
        return name

    return work


def test_all_workers_arrive_before_any_goes_on():
    log = []
    workers = [worker(log, name, ["x", "y"]) for name in "ab"]
    assert run_in_lockstep(workers, lambda place: log.append(f"solve {place}")) == ["a", "b"]
    assert log == ["a at x", "b at x", "solve x", "a at y", "b at y", "solve y"]


def test_every_worker_has_context_variables_of_its_own():
    variable = ContextVar("variable")

    def work(value):
        def inside():
            before = variable.get()
            variable.set(value)
            pause("x")
            return before, variable.get()

        return inside

    variable.set("caller's")
    seen_on_arrival = []
    answers = run_in_lockstep(
        [work(1), work(2)], lambda place: seen_on_arrival.append(variable.get())
    )
    assert answers == [("caller's", 1), ("caller's", 2)]
    assert seen_on_arrival == ["caller's"]
    assert variable.get() == "caller's"


def in_a_thread(function):
    """Run where torch's modes, which belong to a thread, cannot leak into other tests."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["cpu", "xpu", "mps"])
def test_a_torch_mode_that_a_worker_enters_is_its_own(fails, kind):
    def state():
        return (
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
            torch.is_grad_enabled(),
        )

    @contextlib.contextmanager
    def autocast(kind):  # torch's own refuses kinds of devices that are not there
        before = torch.get_autocast_dtype(kind)
        torch.set_autocast_enabled(kind, True)
        torch.set_autocast_dtype(kind, torch.float16)
        try:
            yield
        finally:
            torch.set_autocast_enabled(kind, False)
            torch.set_autocast_dtype(kind, before)

    def work():
        before = state()
        with autocast(kind), torch.no_grad():
            pause("x")
            inside = state()
        return before, inside, state()

    on_arrival = []

    def arrive(place):
        on_arrival.append(state())
        if fails:
            raise RuntimeError("stop")

    def whole():
        outside = state()
        answers = None
        with contextlib.suppress(RuntimeError):
            answers = run_in_lockstep([work, work, work], arrive)
        return outside, answers, state()

    outside, answers, afterwards = in_a_thread(whole)
    assert answers == (None if fails else [(outside, (True, torch.float16, False), outside)] * 3)
    assert on_arrival == [outside]
    assert afterwards == outside


def test_inference_mode_inside_a_worker_is_refused_and_does_not_leak():
    def work():
        with torch.inference_mode():
            pause("layer")

    def whole():
        said = "switches torch's inference mode inside its forward, around 'layer'"
        with pytest.raises(CalibrationError, match=said):
            run_in_lockstep([work, work], lambda place: None)
        with torch.inference_mode():
            run_in_lockstep([work, work], lambda place: None)
        return torch.is_inference_mode_enabled()

    assert in_a_thread(whole) is False
