"""Learned tokens (textual inversion) in prompts, in captions with other LoRAs, and in scenes; and
what is noted of a MODEL that other nodes have changed.
"""

import math

import pytest
from comfy_process import figures_of

VECTORS = 2


@pytest.fixture(scope="module")
def found():
    """A merge of two LoRAs, of which one's prompt names a learned token that is there."""
    [figures] = figures_of("note_checks.py")
    return figures


def test_every_caption_that_names_a_learned_token_is_read_with_it(found):
    naming = {
        caption: count for caption, count in found["read"].items() if "embedding:sks" in caption
    }
    assert set(naming.values()) == {VECTORS}
    assert any("cat" in caption for caption in naming)  # in a scene, beside the other LoRA
    assert len(naming) > 3
    others = [count for caption, count in found["read"].items() if caption not in naming]
    assert set(others) == {0}


def test_it_is_read_as_the_host_reads_it(found):
    assert found["unlike the host"] < 1e-5
    assert found["unlike the word"] > 1e-2
    words = ["a", "photo", "of", "learned", "learned", "dog"]
    assert found["positions"] == list(range(1, len(words) + 1))


def test_the_merge_is_measured_with_it(found):
    assert "together" in found["kinds"]
    assert all(math.isfinite(error) for error in found["errors"])


def test_a_learned_token_that_is_not_there_is_noted(found):
    [note] = found["notes"]
    assert note.startswith("left out of the negative prompt: embedding:NotThere; there is no such")
    assert found["unknown"] == ["gone", "lost.v2"]


def test_changes_of_a_model_by_other_nodes_are_noted(found):
    kinds, texts = zip(*found["carried"], strict=True)
    assert kinds == ("host", "twice", "host", "host", "host", "host")
    said = (
        "carry 1 LoRA already, which count as part of the base model",
        "dog is in the merge and on the MODEL, too",
        "draws in few steps (its sampling), and such models are used without guidance",
        "CLIP stops at layer -2 from its end (clip skip)",
        "changes of other nodes: FreeU (output_block_patch), changed (attn2)",
        "changes of sampling by other nodes: RescaleCFG (sampler_cfg_function)",
    )
    for text, words in zip(texts, said, strict=True):
        assert words in text
    assert found["plain"] == []


def test_a_lora_that_the_model_carries_is_recognised_at_other_strengths(found):
    assert found["twice"] == [True, False]
