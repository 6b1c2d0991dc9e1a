"""Load LoRAs scales blocks as a merge does. `tests/host/test_inputs.py` draws with it and with a chain
of ComfyUI's own loaders.
"""

import functools

import pytest
from comfy_process import figures_of

ROUNDING = 1e-5


@functools.cache
def figures(name):
    """Return the figures of a family, from a process with ComfyUI."""
    [found] = figures_of("loader_checks.py", name)
    return found


@pytest.fixture(params=["SD1.5", pytest.param("Flux.1", marks=pytest.mark.nightly)])
def family(request):
    return figures(request.param)


def test_block_weights_are_those_of_a_merge(family):
    assert family["blocks"] < ROUNDING
    of_merge, found, without_blocks = family["left out"]
    assert found <= of_merge < without_blocks
    assert family["left"] == 0


def test_what_does_not_fit_is_told_at_its_row(family):
    told = family["told"]
    assert "line 2: sdxl: this file is for SDXL, the model is" in told["<lora:sdxl>"]
    assert "line 2: odd: none of its 1 keys, such as 'nowhere" in told["<lora:odd>"]
    assert "line 2: 'c' is in none of" in told["<lora:c>"]
    assert "changes no such block. It has" in told["<lora:a> blocks=NR1:0.5"]
    assert "needs CLIP" in told["text"]
