"""Checks with ComfyUI's own classes, each file of `inside` in a process of its own."""

from shutil import which

import pytest
from comfy_families import LAYERS, TRAINED
from comfy_process import check_inside, has_newer_classes

FAMILIES = ("SD1.5", "Flux.1")  # a UNet, and one with fused weights; of the others nightly
OF_NO_FAMILY = ("folders", "options", "proof", "layers")


def checked(names, with_every_change):
    nightly = pytest.mark.nightly
    return [pytest.param(n, marks=() if n in with_every_change else nightly) for n in names]


@pytest.mark.parametrize("family", checked(LAYERS, FAMILIES))
def test_family(family):
    """The first one's process also checks what needs none: to import ComfyUI takes as long as most checks."""
    more = OF_NO_FAMILY * (family == FAMILIES[0])
    check_inside("families", *more, checked=family)


@pytest.mark.parametrize("family", checked(TRAINED, ("SD3.5",)))
def test_spellings(family):
    check_inside("spellings", checked=family)


compiled = pytest.mark.skipif(
    not (which("c++") and which("ninja")), reason="a C++ compiler and ninja make the device"
)


@pytest.mark.nightly
@compiled
@pytest.mark.parametrize("device", ["", "--novram"])
def test_a_device_of_its_own(device):
    """With its own memory, which ComfyUI moves weights to, or copies them for each call."""
    check_inside("families", "options", checked="SD1.5", device=device)
    check_inside("faults", checked="8", device=device)


@pytest.mark.nightly
@compiled
@pytest.mark.skipif(not has_newer_classes(), reason="ComfyUI 0.3.75 loads no weights on demand")
@pytest.mark.parametrize("family", ["SD1.5", "Flux.1"])
def test_weights_that_are_loaded_on_demand(family):
    """As newer versions of ComfyUI do on GPUs of NVIDIA and AMD."""
    options = "--enable-dynamic-vram --disable-pinned-memory --async-offload 2"
    check_inside("families", *["proof"] * (family == "SD1.5"), checked=family, device=options)


@pytest.mark.nightly
@compiled
def test_a_device_that_is_full():
    check_inside("memory", checked="SD1.5", device="")


@pytest.mark.parametrize("every", checked(("11", "1"), ("11",)))
def test_faults(every):
    check_inside("faults", checked=every)
