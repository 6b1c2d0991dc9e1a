"""What other nodes have put on a MODEL and a CLIP is measured as ComfyUI's own sampler runs it, or
named in the report. Learned tokens (textual inversion) are read as the host reads them.
"""

import math

import pytest
from comfy_process import figures_of

VECTORS = 2  # of the learned token


@pytest.fixture(scope="module")
def cases():
    return {found["case"]: found for found in figures_of("option_checks.py")}


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("attention", "attention (attn2_patch)"),
        ("diffusion model wrapper", "wrapped (test)"),
        ("apply model wrapper", "wrapped (test)"),
        ("hooks", "CLIP carries 1 hook"),
        ("injected", "injected (bypass_lora)"),
    ],
)
def test_what_takes_part_in_each_call_is_measured_as_the_sampler_runs_it(cases, case, named):
    found = cases[case]
    assert found["difference"] < 1e-6
    assert found["effect"] > 0.01
    assert not found["left"]  # on the model, as hooks would be
    assert named in found["notes"][0]
    assert "were measured with them" in found["notes"][0]


def test_clip_skip_is_measured(cases):
    found = cases["clip skip"]
    assert found["difference"] < 1e-6 and found["effect"] > 0.01
    assert "CLIP stops at layer -2" in found["notes"][0]


@pytest.mark.parametrize(
    ("case", "named"), [("EasyCache", "(easycache)"), ("compiled", "(torch.compile)")]
)
def test_what_needs_a_whole_sampling_run_is_left_out_and_named(cases, case, named):
    assert cases[case]["difference"] < 1e-6
    [note] = cases[case]["notes"]
    assert named in note
    assert "were measured without them" in note


def test_hooks_that_change_with_the_steps_are_refused(cases):
    assert "CalibrationError: the CLIP carries hooks whose" in cases["scheduled hooks"]["error"]


def test_a_function_of_another_node_that_fails_is_named(cases):
    error = cases["failing"]["error"]
    assert "CalibrationError: the MODEL fails with KeyError: 'of_my_own_sampler'" in error
    assert "failing (attn2_patch)" in error
    assert "Connect MODEL from before its node" in error


def test_learned_tokens_are_read_as_the_host_reads_them_and_unknown_ones_are_noted(cases):
    """In a merge of two LoRAs, of which one's prompt names a learned token that is there."""
    learned = cases["learned tokens"]
    read = learned["read"]
    naming = {caption: read[caption] for caption in read if "embedding:sks" in caption}
    assert set(naming.values()) == {VECTORS} and len(naming) > 3
    assert any("cat" in caption for caption in naming)  # in a scene, beside the other LoRA
    assert {count for caption, count in read.items() if caption not in naming} == {0}
    assert learned["unlike the host"] < 1e-5
    assert learned["unlike the word"] > 1e-2
    words = ["a", "photo", "of", "learned", "learned", "dog"]
    assert learned["positions"] == list(range(1, len(words) + 1))
    assert "together" in learned["kinds"]
    assert all(math.isfinite(error) for error in learned["errors"])
    [note] = learned["notes"]
    assert note.startswith("left out of the negative prompt: embedding:NotThere; there is no such")
    assert learned["unknown"] == ["gone", "lost.v2"]
