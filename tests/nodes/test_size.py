"""How the merge node decides the size of the merged LoRA."""

import re

import pytest
import torch
from iteris_pack.nodes.size import Size

from iteris_core import Adapter, ConfigError, LowRankDelta
from iteris_core.diffusion.lora_use import LoadedLora

ADAPTER = Adapter("a", {"x": LowRankDelta(torch.ones(1000, 4), torch.ones(4, 2000))})
LORAS = [LoadedLora.of(ADAPTER, ("p",))] * 2


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        ("rank", 8.5, "size is rank, and size_value is 8.5; a rank is a whole number from 1 on"),
        ("rank", 0.0, "size is rank, and size_value is 0.0"),
        ("MB", 0.0, "size is MB, and size_value is 0.0; the size of a file is above 0 MB"),
        ("MB", 20_000.0, "size is MB, and size_value is 20000.0"),
        ("half", 1.0, "way is 'half'; it must be 'as is' or 'smaller' or 'rank' or 'MB'"),
        ("as is", float("nan"), "value is nan; it must be a number"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(way, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        Size(way=way, value=value)


def test_a_size_sets_one_thing_and_must_have_room_for_rank_one():
    for way, value, precision, config in (
        ("as is", 8.5, torch.float16, {}),
        ("smaller", 0.0, torch.float16, {"kept_energy": 0.99}),
        ("rank", 8.0, torch.float16, {"rank": 8}),
        ("MB", 1.0, torch.float16, {"size": (1_000_000 - 500) // 2}),
        ("MB", 1.0, torch.float32, {"size": (1_000_000 - 500) // 4}),
    ):
        assert Size(way=way, value=value).changes(LORAS, precision).config == config
    said = r"size_value is 0\.001 MB; .* rank 1 in all 1 layers, takes 0\.0 MB"
    with pytest.raises(ConfigError, match=said):
        Size(way="MB", value=0.001).changes(LORAS, torch.float16)
