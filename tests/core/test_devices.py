"""How a device's memory is shared out between the samples of a call and those that wait."""

import pytest

from iteris_core.devices import share_out

GB = 1 << 30


def takes(samples):
    return 0.25 * GB * samples


def test_all_samples_wait_on_a_device_that_has_room_for_them():
    room = share_out(takes, samples=90, most=8, free=40 * GB)
    assert (room.samples_per_chunk, room.waiting_bytes) == (8, None)
    assert room.required == takes(90)


@pytest.mark.parametrize("free", [1, 4, 8, 12, 24])
def test_what_a_call_and_the_waiting_samples_take_fits_on_a_smaller_device(free):
    room = share_out(takes, samples=90, most=8, free=free * GB)
    assert 1 <= room.samples_per_chunk <= 8
    assert 0 <= room.waiting_bytes < 0.8 * free * GB
    assert room.required == room.waiting_bytes + takes(2 * room.samples_per_chunk)
    assert room.required <= max(0.8 * free * GB, takes(2))


def test_more_room_lets_more_samples_wait_there():
    waiting = [share_out(takes, 90, 8, free * GB).waiting_bytes for free in (8, 12, 24, 30)]
    assert waiting == sorted(set(waiting))


def test_a_model_that_does_not_fit_leaves_no_room_and_one_sample_a_call():
    room = share_out(takes, samples=90, most=8, free=-2 * GB)
    assert (room.samples_per_chunk, room.waiting_bytes) == (1, 0)


def test_on_the_host_there_is_nowhere_else_to_wait():
    room = share_out(takes, samples=90, most=8, free=8 * GB, is_host=True)
    assert room.waiting_bytes is None
