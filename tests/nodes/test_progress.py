"""How long a merge still takes."""

import pytest
from iteris_pack.nodes.progress import WorkClock

from iteris_core.progress import Stage


def test_the_time_left_is_that_of_all_stages():
    clock = WorkClock()
    first = Stage("Sampling", 1, 2, starts=0.0, share=0.4)
    second = Stage("Diffusion model", 2, 2, starts=0.4, share=0.6)
    assert clock.seconds_left(first, 0, 4, 0.0) == 0
    assert clock.seconds_left(first, 2, 4, 10.0) == pytest.approx(40)
    assert clock.seconds_left(first, 4, 4, 20.0) == pytest.approx(30)
    assert clock.seconds_left(second, 0, 10, 20.0) == pytest.approx(30)
    assert clock.seconds_left(second, 5, 10, 50.0) == pytest.approx(30)  # slower than thought


def test_the_time_before_a_stages_first_step_counts():
    """As where the layers are measured in silence, and then solved in no time."""
    clock = WorkClock()
    sampling = Stage("Sampling", 1, 3, starts=0.0, share=0.2)
    layers = Stage("Diffusion model", 2, 3, starts=0.2, share=0.4)
    check = Stage("Check", 3, 3, starts=0.6, share=0.4)
    clock.seconds_left(sampling, 0, 10, 0.0)
    assert clock.seconds_left(sampling, 10, 10, 40.0) == pytest.approx(160)
    assert clock.seconds_left(layers, 1, 10, 80.0) == pytest.approx(152), "the first step is late"
    assert clock.seconds_left(layers, 2, 10, 81.0) == pytest.approx(144), "the second is not"
    assert clock.seconds_left(layers, 10, 10, 90.0) == pytest.approx(0.4 * 50 / 0.4)
    assert clock.seconds_left(check, 1, 10, 95.0) == pytest.approx(45)


def test_a_stage_that_is_not_like_the_others_tells_its_own_time_and_nothing_of_theirs():
    clock = WorkClock()
    text = Stage("Text encoder", 1, 2, starts=0.0, share=0.1, is_alike=False)
    sampling = Stage("Sampling", 2, 2, starts=0.1, share=0.9)
    assert clock.seconds_left(text, 0, 4, 0.0) == 0
    assert clock.seconds_left(text, 1, 4, 10.0) == pytest.approx(30)
    assert clock.seconds_left(text, 4, 4, 40.0) == pytest.approx(0)
    assert clock.seconds_left(sampling, 0, 9, 40.0) == 0, "its pace is not known yet"
    assert clock.seconds_left(sampling, 3, 9, 43.0) == pytest.approx(6)
