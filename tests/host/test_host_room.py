"""Models that run on a host with little memory: their rows wait in a file."""

from comfy_process import figures_of


def test_rows_that_wait_in_a_file_make_the_same_merge_bit_for_bit():
    [found] = figures_of("host_room_checks.py", "SD1.5")
    assert found["waiting_bytes"] == 0  # of a host without any room; None was: as many as you like
    assert found["written"] > 100 * found["layers"]
    assert found["same"] == found["layers"] == 68
