"""The host's own classes of quantised layers: hooks reach them, and a sweep merges on them."""

import pytest
from comfy_process import figures_of

QUANTISED = ["fp8 storage", "scaled fp8", "mixed precision"]
KINDS = ["16 bit", *QUANTISED]
# Rows and weights are float32 here, in which base, hooks and patches differ by rounding alone.
ROUNDING = 2e-5
# What fp8's three bits are to a delta that is a third of its weight: 0.13 to 0.14 was measured.
FP8_ROUNDING = 0.05


@pytest.fixture(scope="module")
def figures():
    """Figures of each kind of layer, from a process of its own (the script says why)."""
    return {name: kind for found in figures_of("host_layers.py") for name, kind in found.items()}


@pytest.fixture
def kind(request, figures):
    if request.param == "scaled fp8" and request.param not in figures:
        pytest.skip("this ComfyUI loads scaled fp8 files as mixed precision")
    return figures[request.param]


each_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


@each_kind
def test_one_lora_merges_to_itself(kind):
    assert kind["to_itself"] < ROUNDING


@each_kind
def test_it_does_so_on_offloaded_layers_that_carry_another_lora(kind):
    assert kind["weight_functions"] == [1, 1, 1]  # lowvram: the host patches in each call
    assert kind["lowvram_to_itself"] < ROUNDING
    assert kind["restored"]


@pytest.mark.parametrize("kind", ["16 bit", "fp8 storage"], indirect=True)
def test_hooks_do_what_the_host_does_where_it_does_not_round(kind):
    assert kind["lowvram_patch"] < ROUNDING


@pytest.mark.parametrize("kind", QUANTISED, indirect=True)
def test_layers_that_the_host_rounds_when_it_patches_them_are_known_as_quantised(kind):
    assert kind["quantised"] == [True, True, True]
    assert kind["full_patch"] > FP8_ROUNDING


@each_kind
def test_a_dora_is_read_with_the_weight_that_the_layer_multiplies_by(kind):
    assert kind["dora"] < ROUNDING
    assert kind["dora_on_lora"] < ROUNDING  # also where the host has patched it in place


def test_a_dora_is_refused_where_only_the_layer_can_read_its_weight(figures):
    assert "which a Packed of __main__ keeps in a packed form" in figures["packed"]


@pytest.mark.parametrize("kind", ["16 bit"], indirect=True)
def test_a_base_in_16_bits_is_not_quantised(kind):
    assert kind["quantised"] == [False, False, False]


@pytest.mark.parametrize("kind", ["mixed precision"], indirect=True)
def test_a_layer_that_is_no_linear_of_pytorch_is_among_them(kind):
    assert not kind["nn_linear"]
