"""The host's own classes of quantised layers: hooks reach them, and a sweep merges on them."""

import pytest
from comfy_process import figures_of

QUANTISED = ["fp8 storage", "scaled fp8", "mixed precision"]
# Rows and weights are float32 here, in which base, hooks and patches differ by rounding alone.
ROUNDING = 2e-5
# What fp8's three bits are to a delta that is a third of its weight: 0.13 to 0.14 was measured.
FP8_ROUNDING = 0.05


@pytest.fixture(scope="module")
def figures():
    """Figures of each kind of layer, from a process of its own (the script says why)."""
    return {name: kind for found in figures_of("host_layers.py") for name, kind in found.items()}


@pytest.mark.parametrize("name", ["16 bit", *QUANTISED])
def test_hooks_reach_every_kind_of_layer_and_a_sweep_merges_on_it(figures, name):
    """Also on offloaded layers that carry another LoRA, which the host patches in each call."""
    if name == "scaled fp8" and name not in figures:
        pytest.skip("this ComfyUI loads scaled fp8 files as mixed precision")
    kind = figures[name]
    assert kind["quantised"] == [name in QUANTISED] * 3
    assert kind["nn_linear"] != (name == "mixed precision")
    assert kind["to_itself"] < ROUNDING
    assert kind["weight_functions"] == [1, 1, 1]
    assert kind["lowvram_to_itself"] < ROUNDING
    assert kind["restored"]
    if name in ("16 bit", "fp8 storage"):  # where the host does not round
        assert kind["lowvram_patch"] < ROUNDING
    if name in QUANTISED:
        assert kind["full_patch"] > FP8_ROUNDING
    # a DoRA is read with the weight that the layer multiplies by, also where the host has patched it
    assert kind["dora"] < ROUNDING
    assert kind["dora_on_lora"] < ROUNDING


def test_a_dora_is_refused_where_only_the_layer_can_read_its_weight(figures):
    assert "which a Packed of __main__ keeps in a packed form" in figures["packed"]
