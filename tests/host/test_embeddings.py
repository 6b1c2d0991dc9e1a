"""Learned tokens (textual inversion) in prompts, in captions with other LoRAs, and in scenes."""

import math

import pytest
from comfy_process import figures_of

VECTORS = 2


@pytest.fixture(scope="module")
def found():
    """A merge of two LoRAs, of which one's prompt names a learned token that is there."""
    [figures] = figures_of("embedding_checks.py")
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
    assert note.startswith(
        "cat: left out of its prompts: embedding:NotThere; there is no such file"
    )
