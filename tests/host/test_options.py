"""What other nodes have put on a MODEL and a CLIP is measured as ComfyUI's own sampler runs it, or
named in the report.
"""

import pytest
from comfy_process import figures_of


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
    ],
)
def test_what_takes_part_in_each_call_is_measured_as_the_sampler_runs_it(cases, case, named):
    found = cases[case]
    assert found["difference"] < 1e-6
    assert found["effect"] > 0.01
    assert named in found["notes"][0]
    assert "were measured with them" in found["notes"][0]


def test_a_patch_that_reads_which_rows_are_negative_is_measured(cases):
    assert cases["SAG"]["difference"] < 1e-6


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
