"""How long a stage still takes."""

from iteris_pack.nodes.progress import StageClock


def test_the_time_left_is_that_of_the_pace_since_the_stage_began_anew():
    clock = StageClock()
    assert clock.told("UNet", 0, 10, 100.0) == "UNet 0/10"
    assert clock.told("UNet", 5, 10, 150.0) == "UNet 5/10, about 50 s left"
    assert clock.told("UNet", 0, 10, 200.0) == "UNet 0/10"  # the second sweep
    assert clock.told("UNet", 5, 10, 205.0) == "UNet 5/10, about 5 s left"
    assert clock.told("UNet", 6, 20, 300.0) == "UNet 6/20"  # another total
    assert clock.told("UNet", 7, 20, 301.0) == "UNet 7/20, about 13 s left"
    assert clock.told("UNet", 19, 20, 301.5) == "UNet 19/20"
