"""Keys of the host's own models: parts of fused weights, swapped rows, and every kind of adapter."""

import functools

import pytest
from comfy_process import figures_of

ROUNDING = 1e-6
OF_FACTORS = 1e-3  # a dense delta loses its smallest singular values


@functools.cache
def figures_of_family(name):
    """Return the figures of a family, from a process of its own (the script says why)."""
    (found,) = figures_of("host_keys.py", name)
    return found


NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in ("Flux.1", "AuraFlow")]


@pytest.fixture(params=["SD3.5", "Z-Image", *NIGHTLY])
def family(request):
    return request.param, figures_of_family(request.param)


def test_every_key_of_the_host_is_read_as_the_host_reads_it(family):
    name, found = family
    assert found["unread"] == []
    assert found["lora"] < ROUNDING
    assert max(found["lokr"], found["dora"]) < OF_FACTORS
    assert found["parts"] > 5 or name == "AuraFlow"  # whose weights are not fused
    assert found["reordered"] > 0 or name == "Z-Image"


def test_a_lora_comes_off_the_model_as_it_was_loaded(family):
    assert family[1]["off"] < ROUNDING


def test_the_stock_loader_reads_the_same_from_parts_and_from_the_saved_file(family):
    name, found = family
    assert found["loaded"] < ROUNDING
    assert found["saved"] < ROUNDING
    assert found["families"] == [name, name]
