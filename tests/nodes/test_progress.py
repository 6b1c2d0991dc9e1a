"""How long a stage still takes, and how its progress is shown."""

from iteris_pack.nodes.progress import StageClock, progress_line

from iteris_core.progress import Stage


def test_the_time_left_is_that_of_the_pace_since_the_stage_began_anew():
    clock = StageClock()
    assert clock.seconds_left(0, 10, 100.0) == 0
    assert clock.seconds_left(5, 10, 150.0) == 50
    assert clock.seconds_left(0, 10, 200.0) == 0  # the second sweep
    assert clock.seconds_left(5, 10, 205.0) == 5
    assert clock.seconds_left(6, 20, 300.0) == 0  # another total
    assert clock.seconds_left(7, 20, 301.0) == 13
    assert clock.seconds_left(19, 20, 301.5) == 1.5 / 13


def test_a_line_names_the_stage_its_steps_and_a_time_that_is_worth_a_word():
    stage = Stage("Sampling", 3, 4)
    assert progress_line(stage, 5, 10, 50.4) == "stage 3 of 4: Sampling 5/10, about 50 s left"
    assert progress_line(Stage("Sampling"), 9, 10, 1.9) == "Sampling 9/10"
