"""What goes wrong in the middle of a merge leaves nothing behind."""

import pytest
from comfy_process import figures_of

PARTS = (
    "proof of the LoRAs",
    "text encoder",
    "sampling",
    "diffusion model",
    "check",
    "proof of the merge",
)
KINDS = ("exception", "cancel", "out of memory", "out of memory, by its text", "Ctrl-C")


@pytest.mark.parametrize(
    ("every", "faults"), [(4, 17), pytest.param(1, 68, marks=pytest.mark.nightly)]
)
def test_a_fault_leaves_the_model_as_it_was_and_the_next_merge_the_same(every, faults):
    *left, counts = figures_of("fault_checks.py", str(every))
    assert left == []
    assert counts["wrong"] == 0 and counts["freed_at_once"] == []
    assert counts["layers"] == 68 and counts["faults"] >= faults
    assert counts["merges after a fault"] >= faults // 10
    assert min(counts[name] for name in PARTS) >= faults // 17
    assert min(counts[name] for name in KINDS) >= faults // 6
    assert counts["grown MB"] < 30
    assert counts["asked"] == []  # no connection, program or pickle
