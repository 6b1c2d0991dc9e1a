"""How the widgets of IterIS Merge decide the ranks."""

import re

import pytest
import torch
from iteris_pack.nodes.merge import Ranks, weights_in

from iteris_core import Adapter, ConfigError, LowRankDelta
from iteris_core.diffusion.lora_use import LoadedLora


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((8, 0.9, 0), "rank is 8 and kept_energy is 0.9, but"),
        ((0, 0.5, 20), "kept_energy is 0.5 and size_mb is 20, but"),
        ((4, 0.99, 1.5), "rank is 4 and kept_energy is 0.99 and size_mb is 1.5, but"),
    ],
)
def test_only_one_way_to_choose_ranks(values, words):
    with pytest.raises(
        ConfigError,
        match=re.escape(words) + ".*Set one, and leave the others off: rank 0, kept_energy 1",
    ):
        Ranks(*values)


@pytest.mark.parametrize("values", [(0, 1.0, 0.0), (8, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 30.0)])
def test_one_way_to_choose_ranks_raises_nothing(values):
    Ranks(*values)


def test_a_size_becomes_weights_and_must_have_room_for_rank_one():
    adapter = Adapter("a", {"x": LowRankDelta(torch.ones(1000, 4), torch.ones(4, 2000))})
    loras = [LoadedLora.of(adapter, ("p",))] * 2
    assert weights_in(1.0, torch.float16, loras) == (1_000_000 - 500) // 2
    assert weights_in(1.0, torch.float32, loras) == (1_000_000 - 500) // 4
    with pytest.raises(
        ConfigError, match=r"size_mb is 0\.001; .* rank 1 in all 1 layers, takes 0\.0 MB"
    ):
        weights_in(0.001, torch.float16, loras)
