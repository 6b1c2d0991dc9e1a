"""The bytes of a safetensors file: those of the library safetensors, in an order that is fixed."""

import json

import torch
from safetensors.torch import load, save

from iteris_core.files.layout import DTYPES, blocks

NAMES = ["b", "a.lora_up.weight", "é", "line\n", "\x7f", "a"]


def content(tensors, metadata=None):
    return b"".join(blocks(tensors, metadata))


def test_bytes_are_those_of_safetensors():
    """Of every type of number, and of names that JSON escapes."""
    tensors = {
        f"{name}{dtype}": torch.arange(3).to(dtype) for dtype in reversed(DTYPES) for name in NAMES
    }
    tensors |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "odd": torch.ones(3).bool(),
    }
    assert content(tensors) == save(tensors)
    assert content(tensors, {"ss_title": 'ä "x" \u2028 /'}) == save(
        tensors, {"ss_title": 'ä "x" \u2028 /'}
    )
    assert content({}) == save({})


def test_views_and_transposed_tensors_are_written_as_they_look():
    shared = torch.randn(4, 3)
    found = load(content({"whole": shared, "view": shared[:2], "transposed": shared.T}))
    assert torch.equal(found["whole"], shared)
    assert torch.equal(found["view"], shared[:2])
    assert torch.equal(found["transposed"], shared.T)


def test_the_order_in_which_things_are_given_does_not_matter():
    tensors = {name: torch.full((2,), float(number)) for number, name in enumerate(NAMES)}
    metadata = {name: name for name in NAMES}
    turned = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    assert content(*turned) == content(tensors, metadata)
    text = content(tensors, metadata)
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    assert list(header["__metadata__"]) == sorted(NAMES)


def test_half_a_character_of_a_strangers_metadata_is_no_error():
    assert b'"a":"x?"' in content({}, {"a": "x\ud800"})
