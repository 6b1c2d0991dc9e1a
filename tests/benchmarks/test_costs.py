"""What a card has room for, counted on a model without weights."""

import pytest

from benchmarks import memory

pytestmark = pytest.mark.nightly


def test_memory_is_counted_on_a_model_without_weights():
    def tiny(resolution):
        return memory.sd15(
            resolution,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=48,
            attention_head_dim=4,
        )

    counted = memory.count(memory.Case("tiny", "SD1.5", 64, 1.0, tiny))
    assert counted.model == 2 * sum(w.numel() for w in counted.modules[""].parameters())
    assert memory.verdict(counted, (memory.NOT_FREE + 10e9) / 2**30, 2) == "fits"
    assert memory.verdict(counted, memory.NOT_FREE / 2**30, 2) == "no"
    table = memory.table_of([counted])
    assert all(len(row) == len(table.columns) for row in table.rows)
