"""The proof before a merge, against the host's own loader; other faults: `tests/core/test_proof.py`."""

from dataclasses import replace
from unittest import mock

import pytest
import tiny_hosts
import torch
from comfy_loras import SMALL, loaded, lora_of
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.host.families import HOST_FAMILIES
from iteris_pack.nodes.keys import HostWeight

from iteris_core import AdapterError, CalibrationError
from iteris_core.diffusion.proof import check_called, prove_merged

FP8 = torch.float8_e4m3fn


def with_bias(host, tensors):
    """Return a LoRA's tensors with a change of one bias, which rows do not wear, and with an alpha."""
    places = host.keys.module_of_base
    path, base = next(
        (path, base)
        for base, path in places.items()
        if f"{base}.lora_B.weight" in tensors and f"{path}.bias" in host.model.model.state_dict()
    )
    rank = tensors[f"{base}.lora_A.weight"].shape[0]
    return {
        **tensors,
        f"{base}.diff_b": torch.full(host.keys.shapes[path][:1], 3.0),
        f"{base}.alpha": torch.tensor(float(rank)),
    }


def prepared(family, dtype=torch.float32, more=None, clip=None, **of_use):
    """Return a tiny model and a LoRA, with `more` tensors in its file, and another one's CLIP if named."""
    host = tiny_hosts.host_of(family, dtype)
    if clip is not None:
        host = ComfyModel(host.model, tiny_hosts.clip_of(tiny_hosts.TINY[clip]))
    tensors = with_bias(host, lora_of(host, 1, "diffusers")) | (more or {})
    return host, loaded(host, "first", tensors, "a photo of sks dog", **of_use), tensors


def proved(host, lora, tensors):
    host.prove_reading(lora.use, lora.adapter, tensors)
    check_called(host, [lora], SMALL.for_family(host.family))
    prove_merged(host, lora.adapter)


BLOCKS = {
    "blocks": "BASE:-0.5, IN03:0.25, MID:0, OUT:0.5",
    "without": ("*output_blocks.1.*attn2*",),
}


@pytest.mark.parametrize(
    ("family", "of_use"), [("SD1.5", {}), ("SD1.5", BLOCKS), ("SDXL", {}), ("Wan", {})]
)
def test_a_lora_that_is_read_well_is_proved_with_nothing_said(family, of_use):
    """Its change of a bias does not count."""
    host, lora, tensors = prepared(family, **of_use)
    assert len(lora.adapter.vectors) == 1
    proved(host, lora, tensors)


def test_a_file_on_which_the_hosts_own_loader_fails_is_refused():
    """A change of a whole weight beside a stray half of a pair, for which the host looks first."""
    host = tiny_hosts.host_of("SD1.5", torch.float32)
    base, path = next(iter(host.keys.module_of_base.items()))
    tensors = {
        f"{base}.diff": torch.zeros(host.keys.weight_shape(path)),
        f"{base}_lora.up.weight": torch.zeros(host.keys.shapes[path][0], 2),
    }
    lora = loaded(host, "mixed", tensors, "a photo of sks dog")
    with pytest.raises(AdapterError, match=r"^mixed: ComfyUI's own LoRA loader fails.*KeyError"):
        host.prove_reading(lora.use, lora.adapter, tensors)


def forgotten_order():
    """Read files as if no weight had rows in another order than the files."""
    part_of = HostWeight.part_of

    def forgetful(weight, d_out):
        part = part_of(weight, d_out)
        return None if part is None else replace(part, reorder=None)

    return mock.patch.object(HostWeight, "part_of", forgetful)


def uncalled_layers():
    """Let layers behind an activation be computed from their weights, as int8 layers are."""

    def fused(self, x):
        *before, last = self
        for module in before:
            x = module(x)
        return last.forward(x)

    return mock.patch.object(torch.nn.Sequential, "forward", fused)


def forgotten_blocks():
    """Let the host's loader put a file on the model as if it had no block weights."""
    strengths = ComfyModel._strengths
    return mock.patch.object(
        ComfyModel,
        "_strengths",
        lambda host, use: strengths(host, replace(use, blocks="", without=())),
    )


@pytest.mark.parametrize(
    ("family", "wrong", "dtype", "of_use"),
    [
        ("SD1.5", forgotten_blocks, torch.float32, BLOCKS),
        ("Flux.1", forgotten_order, torch.float32, {}),
        ("Flux.1", forgotten_order, FP8, {}),  # also where the host rounds
    ],
)
def test_a_lora_that_is_misread_is_an_error(family, wrong, dtype, of_use):
    with wrong(), pytest.raises(AdapterError, match="own loader makes another change of it"):
        proved(*prepared(family, dtype, **of_use))


def test_layers_that_are_computed_from_their_weights_are_named():
    with uncalled_layers(), pytest.raises(AdapterError, match="does not call 5 of its layers"):
        proved(*prepared("Flux.1"))


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16])
def test_a_base_in_coarse_numbers_is_proved_by_its_weights(dtype):
    proved(*prepared("Flux.1", dtype, strength=0.1))


_T5 = {
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (48, 48),
    "text_encoder_3.encoder.block.1.layer.1.DenseReluDense.wo": (48, 64),
}
OF_T5 = {
    f"{base}.lora_{end}.weight": torch.ones(shape)
    for base, (d_out, d_in) in _T5.items()
    for end, shape in (("up", (d_out, 1)), ("down", (1, d_in)))
}


def without_row(family):
    """Forget the row of a family's class."""
    config = tiny_hosts.TINY[family].config
    rows = {name: row for name, row in HOST_FAMILIES.items() if name != config}
    return mock.patch.dict(HOST_FAMILIES, rows, clear=True)


@pytest.mark.parametrize("family", ["Flux.1", "Qwen-Image"])
def test_keys_for_a_t5_are_left_out_and_the_rest_is_read(family):
    """Whether the CLIP has one or not."""
    host, lora, tensors = prepared(family, more=OF_T5)
    assert len(lora.adapter.left_out) == 4 and lora.adapter.unmatched == ()
    proved(host, lora, tensors)


def test_a_class_that_no_row_names_is_tried_and_says_what_fails():
    with without_row("Qwen-Image"):
        host, lora, tensors = prepared("Qwen-Image")
        assert len(lora.adapter.deltas) == 34
        proved(host, lora, tensors)
        said = (
            "the MODEL fails with RuntimeError.*"
            "ComfyUI's class QwenImage, on which merging was never tested"
        )
        with pytest.raises(CalibrationError, match=said):
            proved(*prepared("Qwen-Image", clip="SD1.5"))
