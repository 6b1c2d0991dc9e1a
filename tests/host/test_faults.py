"""What goes wrong in the middle of a merge leaves nothing behind."""

import pytest
from comfy_process import figures_of

PARTS = ("proof of the LoRAs", "text encoder", "sampling", "diffusion model", "check")
KINDS = ("exception", "cancel", "out of memory", "out of memory, by its text", "Ctrl-C")


@pytest.fixture(scope="module")
def figures():
    """A line for each fault that left something, and one with the counts."""
    return figures_of("fault_checks.py")


def test_a_fault_at_any_layer_leaves_the_model_as_it_was_and_the_next_merge_the_same(figures):
    *left, counts = figures
    assert left == []
    assert counts["wrong"] == 0
    assert counts["faults"] > counts["layers"] == 68
    assert counts["merges after a fault"] >= 7


def test_every_part_of_a_merge_and_every_kind_of_fault_was_among_them(figures):
    counts = figures[-1]
    assert min(counts[name] for name in (*PARTS, "proof of the merge")) >= 5
    assert min(counts[name] for name in KINDS) >= 13


def test_memory_does_not_grow(figures):
    assert figures[-1]["grown MB"] < 30


def test_no_merge_asks_for_a_connection_a_program_or_a_pickle(figures):
    assert figures[-1]["asked"] == []
