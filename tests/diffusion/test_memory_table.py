"""The benchmark of memory counts what rows hold on models without weights."""

import pytest
import torch

from benchmarks import memory

pytestmark = pytest.mark.nightly

SIDE = 8  # of the latents
WIDTH = 32
TEXT = 48
PICTURE = memory.ROWS * WIDTH * SIDE * SIDE * memory.HALF  # bytes of one map of features
TIME = memory.ROWS * (WIDTH + 4 * WIDTH) * memory.HALF  # the step, and what is made of it
DOWN = "down_blocks.0.attentions.0.transformer_blocks.0"
UP = "up_blocks.1.attentions.1.transformer_blocks.0"


def tiny(resolution):
    return memory.sd15(
        resolution,
        block_out_channels=(WIDTH, 2 * WIDTH),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=4,
    )


@pytest.fixture(scope="module")
def counted():
    return memory.count(memory.Case("tiny", "SD1.5", 8 * SIDE, 1.0, tiny))


def test_what_waits_is_what_the_forward_passes_hold(counted):
    # the wide input of the layer, its output, and six maps: what conv_in made (the skip), the
    # input of the attention's block, what goes on beside it, its normed copy, what attention
    # added, and what comes out of that
    assert counted.at_layers[f"{DOWN}.ff.net.2"] == (4 + 1 + 6) * PICTURE + TIME
    # keys of 77 tokens as its output; the text itself is every row's own input
    text = memory.ROWS * 77 * WIDTH * memory.HALF
    # queries, the normed input, what goes on, what attention added, the block's input twice; the
    # skip that is used up, the one that waits, and the map of twice the width from before
    assert counted.at_layers[f"{UP}.attn2.to_k"] == text + (6 + 2 + 2) * PICTURE + TIME


def test_a_running_call_holds_more_than_a_waiting_one_and_the_weights_do_not_count(counted):
    assert counted.call > counted.widest
    assert counted.call < 2 * counted.widest
    weights = sum(weight.numel() for weight in counted.modules[""].parameters())
    assert counted.model == 2 * weights


def test_a_larger_picture_holds_more_and_every_layer_of_attention_counts(counted):
    larger = memory.count(memory.Case("tiny", "SD1.5", 16 * SIDE, 1.0, tiny))
    path = f"{DOWN}.ff.net.0.proj"
    assert larger.at_layers[path] - TIME >= 4 * (counted.at_layers[path] - TIME)
    assert {path.rpartition(".")[2] for path in larger.at_layers} >= {"to_q", "proj", "proj_in"}


def test_a_card_fits_or_lets_rows_wait_or_is_too_small(counted):
    enough = (memory.NOT_FREE + 10e9) / 2**30
    assert memory.verdict(counted, enough, 2) == "fits"
    case = counted.case
    sums = counted.sums(2)
    half = 0.5 * case.samples(2) * counted.widest
    little = memory.NOT_FREE + counted.model + (sums + case.formula(2) + half) / 0.8
    assert "90 of 180 wait: " in memory.verdict(counted, little / 2**30, 2)
    none = memory.NOT_FREE + counted.model / 2 + sums + case.formula(1)
    assert memory.verdict(counted, none / 2**30, 2).startswith("model 0.0 GB too large, ")
    assert memory.verdict(counted, memory.NOT_FREE / 2**30, 2) == "no"


def test_what_stands_around_the_markers_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Results\n\nbefore\n", encoding="utf-8")
    memory.write(page, "first")
    page.write_text(page.read_text(encoding="utf-8") + "\nafter\n", encoding="utf-8")
    memory.write(page, "second")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\nbefore\n") and text.endswith("\nafter\n")
    assert "second" in text and "first" not in text and text.count(memory.BEGIN) == 1


def test_live_bytes_are_those_that_live_together():
    known = torch.zeros(4)
    with memory.LiveBytes([known]) as live:
        known.add_(1)
        for _ in range(3):
            made = torch.ones(2, dtype=torch.float64)
            del made
        pair = torch.zeros(3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        assert pair[0].view(3, 1).numel() == 3
    assert (live.now, live.most) == (32, 32)
