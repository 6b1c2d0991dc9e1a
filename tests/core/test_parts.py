"""Parts of fused weights make a delta of the whole weight; real models' are in `tests/comfy`."""

import re

import pytest
import torch

from iteris_core import AdapterError
from iteris_core.files import kohya
from iteris_core.files.families import FAMILIES
from iteris_core.files.model_keys import ModelKeys, WeightPart


def rotated(rows):
    """No involution, so that the way there and the way back differ."""
    return rows.roll(1, 0)


PARTS = {
    "q": WeightPart("qkv", 0, 4),
    "k": WeightPart("qkv", 4, 4),
    "qk": WeightPart("qkv", 0, 8),
    "v": WeightPart("qkv", 8, 4),
    "norm": WeightPart("out", 0, 6, rotated),
}
KEYS = ModelKeys(
    FAMILIES["Flux.1"],
    {"fused": "qkv", "whole_out": "out"},
    {"qkv": "lora_unet_qkv", "out": "lora_unet_out"},
    {"qkv": (12, 5), "out": (6, 3)},
    {},
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
    tensors |= factors("norm", 6, 3)
    tensors["q.alpha"] = torch.tensor(1.5)
    adapter = parse(tensors)
    assert set(adapter.deltas) == {"qkv", "out"} and adapter.unmatched == ()
    expected = torch.zeros(12, 5)
    expected[:4] = dense(tensors, "q") * 1.5 / 3
    expected[8:] = dense(tensors, "v")
    torch.testing.assert_close(adapter.deltas["qkv"].dense(), expected)
    assert adapter.deltas["qkv"].rank == 5
    torch.testing.assert_close(adapter.deltas["out"].dense(), rotated(dense(tensors, "norm")))


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
