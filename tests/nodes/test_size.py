"""How the merge node decides the size of the merged LoRA."""

import re

import pytest
from iteris_pack.nodes.asked import Size

from iteris_core import ConfigError


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        ("rank", 8.5, "size is rank, and size_value is 8.5; a rank is a whole number from 1 on"),
        ("rank", 0.0, "size is rank, and size_value is 0.0"),
        ("half", 1.0, "way is 'half'; it must be 'as is' or 'smaller' or 'rank'"),
        ("as is", float("nan"), "value is nan; it must be a number"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(way, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        Size(way=way, value=value)


def test_a_size_sets_one_thing():
    for way, value, config in (
        ("as is", 8.5, {}),
        ("smaller", 0.0, {"kept_energy": 0.99}),
        ("rank", 8.0, {"rank": 8}),
    ):
        assert Size(way=way, value=value).changes().config == config
