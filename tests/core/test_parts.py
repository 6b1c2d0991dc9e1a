"""Parts of fused weights: keys of a part make a delta of the whole weight."""

import re

import pytest
import torch

from iteris_core import AdapterError
from iteris_core.files import kohya
from iteris_core.files.adapter_kinds import own_dense_delta
from iteris_core.files.families import FAMILIES
from iteris_core.files.kohya import ModelKeys
from iteris_core.files.parts import WeightPart


def swap_halves(rows):
    """As ComfyUI's `swap_scale_shift`."""
    first, second = rows.chunk(2, dim=0)
    return torch.cat([second, first], dim=0)


def rotated(rows):
    """No involution, so that the way there and the way back differ."""
    return rows.roll(1, 0)


PARTS = {
    "q": WeightPart("qkv", 0, 4),
    "k": WeightPart("qkv", 4, 4),
    "qk": WeightPart("qkv", 0, 8),
    "v": WeightPart("qkv", 8, 4),
    "norm": WeightPart("out", 0, 6, swap_halves),
    "turned": WeightPart("out", 0, 6, rotated),
    "kernel": WeightPart("conv", 2, 3),
}
KEYS = ModelKeys(
    FAMILIES["Flux.1"],
    {"fused": "qkv", "whole_out": "out"},
    {"qkv": "lora_unet_qkv", "out": "lora_unet_out", "conv": "lora_unet_conv"},
    {"qkv": (12, 5), "out": (6, 3), "conv": (5, 2 * 9)},
    {"conv": (3, 3)},
    {"qkv.bias": 12},
    PARTS,
)


def factors(base, d_out, d_in, rank=2):
    return {
        f"{base}.lora_B.weight": torch.randn(d_out, rank),
        f"{base}.lora_A.weight": torch.randn(rank, d_in),
    }


def parse(tensors, **options):
    return kohya.parse("file", tensors, KEYS, **options)


def dense(tensors, base):
    return tensors[f"{base}.lora_B.weight"] @ tensors[f"{base}.lora_A.weight"]


def test_parts_of_one_weight_are_one_delta_of_it():
    tensors = factors("v", 4, 5) | factors("q", 4, 5, rank=3)
    tensors["q.alpha"] = torch.tensor(1.5)
    adapter = parse(tensors)
    assert list(adapter.deltas) == ["qkv"] and adapter.unmatched == ()
    expected = torch.zeros(12, 5)
    expected[:4] = dense(tensors, "q") * 1.5 / 3
    expected[8:] = dense(tensors, "v")
    torch.testing.assert_close(adapter.deltas["qkv"].dense(), expected)
    assert adapter.deltas["qkv"].rank == 5


@pytest.mark.parametrize(("base", "function"), [("norm", swap_halves), ("turned", rotated)])
def test_the_rows_of_a_part_are_brought_to_the_models_order(base, function):
    tensors = factors(base, 6, 3)
    found = parse(tensors).deltas["out"].dense()
    torch.testing.assert_close(found, function(dense(tensors, base)))
    assert (found - dense(tensors, base)).norm() > 0.1


def test_a_part_of_a_convolution():
    up = torch.randn(3, 2, 1, 1)
    down = torch.randn(2, 2, 3, 3)
    delta = parse({"kernel.lora_up.weight": up, "kernel.lora_down.weight": down}).deltas["conv"]
    expected = torch.zeros(5, 18)
    expected[2:] = up[:, :, 0, 0] @ down.flatten(1)
    torch.testing.assert_close(delta.dense(), expected)


def test_a_difference_of_a_part():
    difference = torch.randn(4, 5)
    delta = parse({"k.diff": difference}).deltas["qkv"].dense()
    torch.testing.assert_close(delta[4:8], difference, rtol=1e-4, atol=1e-5)
    assert not delta[:4].any() and not delta[8:].any()


@pytest.mark.parametrize(("base", "function"), [("norm", swap_halves), ("turned", rotated)])
def test_a_dora_of_a_part_reads_the_weight_in_the_order_of_the_file(base, function):
    """The reference trains on the part alone, in the order of the file."""
    inverse = torch.argsort(function(torch.arange(6)))
    weight = torch.randn(6, 3)
    tensors = factors(base, 6, 3)
    magnitude = torch.rand(6) + 1
    tensors[f"{base}.lora_magnitude_vector"] = magnitude
    found = parse(tensors, dense_delta=own_dense_delta({"out": weight}.__getitem__))
    of_file = weight[inverse]
    adapted = of_file + dense(tensors, base)
    change = magnitude[:, None] * adapted / adapted.norm(dim=1, keepdim=True) - of_file
    torch.testing.assert_close(found.deltas["out"].dense(), function(change), rtol=1e-4, atol=1e-5)


REFUSED = [
    (factors("q", 4, 5) | factors("qk", 8, 5), "'qk' describes 'qkv' a second time"),
    (factors("fused", 12, 5) | factors("v", 4, 5), "'v' describes 'qkv' a second time"),
    (factors("whole_out", 6, 3) | factors("norm", 6, 3), "'norm' describes 'out' a second time"),
    (
        factors("k", 5, 5),
        "(5, 2) and (2, 5), but this model's weight there is 4 x 5 (rows 4 to 7 of",
    ),
    (factors("k", 4, 5) | {"k.diff_b": torch.zeros(4)}, "also changes the bias ('k.diff_b')"),
    ({"k.diff": torch.zeros(4)}, "'k' also changes the bias ('k.diff')"),
]


def test_what_cannot_be_read_is_refused():
    for tensors, message in REFUSED:
        with pytest.raises(AdapterError, match=re.escape(message)):
            parse(tensors)
