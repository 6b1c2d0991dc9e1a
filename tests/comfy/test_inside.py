"""Checks with ComfyUI's own classes, each file of `inside` in a process of its own."""

import pytest
from comfy_families import LAYERS, TRAINED
from comfy_process import check_inside


def checked(names, with_every_change):
    nightly = pytest.mark.nightly
    return [pytest.param(n, marks=() if n in with_every_change else nightly) for n in names]


@pytest.mark.parametrize("family", checked(LAYERS, ("SD1.5", "Flux.1")))
def test_family(family):
    check_inside("families", family)


def test_pair():
    check_inside("pair")


@pytest.mark.parametrize("family", checked(("SD1.5", "Flux.1"), ("SD1.5",)))
def test_load(family):
    check_inside("load", family)


def test_options_of_other_nodes():
    check_inside("options")


def test_proof():
    check_inside("proof")


def test_quantised_layers():
    check_inside("layers")


@pytest.mark.parametrize("family", checked(TRAINED, ("SD3.5",)))
def test_spellings(family):
    check_inside("spellings", family)


@pytest.mark.parametrize("every", checked(("4", "1"), ("4",)))
def test_faults(every):
    check_inside("faults", every)
