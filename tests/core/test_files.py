"""Safetensors files: broken ones are refused, and what is written is what the library writes."""

import json
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import load, save

from iteris_core import AdapterError
from iteris_core.files.tensors import read_header, read_tensors, serialized, sha256

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
WHOLE = save(TENSORS, {"ss_title": "x"})


def with_header(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


PICKLE = (
    "this is a pickle file, which can run code when it is opened; IterIS reads only .safetensors"
)
BROKEN = "not a whole safetensors file"
BAD = {
    "empty": (b"", f"x.safetensors: {BROKEN} (0 bytes; "),
    "a few bytes": (b"\x01\x02\x03", f"{BROKEN} (3 bytes; "),
    "cut in the header": (WHOLE[:40], f"{BROKEN} (40 bytes; "),
    "cut in the data": (WHOLE[:-5], f"{BROKEN} ({len(WHOLE) - 5} bytes; "),
    "too long": (WHOLE + b"more", f"{BROKEN} ({len(WHOLE) + 4} bytes; "),
    "a zipped pickle": (b"PK\x03\x04" + bytes(100), PICKLE),
    "a web page": (b"<!DOCTYPE html><html></html>", f"{BROKEN} (28 bytes; "),
    "no JSON": (with_header(b"not json"), "the download was probably cut off. Download it again"),
    "no UTF-8": (with_header(b"\xff\xfe\xfd"), BROKEN),
    "a list": (with_header([1, 2]), BROKEN),
    "no offsets": (with_header({"a": {"dtype": "F32", "shape": [1]}}), BROKEN),
    "one offset": (with_header(entry(data_offsets=[0])), BROKEN),
    "text offsets": (with_header(entry(data_offsets=["0", "4"])), BROKEN),
    "deep nesting": (with_header(b"[" * 5000), BROKEN),
    "strange entry": (with_header({"a": 3}), BROKEN),
    "strange metadata": (with_header({"__metadata__": {"a": 1}}), BROKEN),
    "unknown type": (
        with_header(entry(dtype="F1"), bytes(4)),
        "'a' is of the type 'F1', which is not read. Use a version of it in float32",
    ),
}
# What only the tensors show.
INSIDE = {
    "another size than its shape": entry(shape=[9]),
    "overlapping": {**entry(data_offsets=[0, 4]), "b": entry()["a"]},
    "a gap": entry(shape=[0], data_offsets=[4, 4]),
}


@pytest.mark.parametrize("case", [*BAD, *INSIDE])
def test_a_broken_file_is_refused_with_the_reason(tmp_path, case):
    content, message = BAD.get(case) or (with_header(INSIDE[case], bytes(4)), BROKEN)
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (read_header, read_tensors) if case in BAD else (read_tensors,):
        with pytest.raises(AdapterError, match=re.escape(message)):
            read(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_known_by_its_bytes_or_its_name_and_nothing_in_it_is_run(tmp_path, protocol):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    content = pickle.dumps(Trap(), protocol=protocol)
    given = {"x.safetensors": content, "x.pt": content}
    given |= {f"x{suffix}": WHOLE for suffix in (".ckpt", ".bin", ".pth")}
    for name, written in given.items():
        (tmp_path / name).write_bytes(written)
        with pytest.raises(AdapterError, match=re.escape(f"{name}: {PICKLE}")):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0x280, 0x4B50, 0x380, 0x480, 0x580, 0x034B50])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path, size):
    """0x280 is little-endian 80 02, a pickle of protocol 2; 0x4B50 is PK."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(json.dumps(entry()).encode().ljust(size), bytes(4)))
    assert torch.equal(read_tensors(path)[0]["a"], torch.zeros(1))


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_a_missing_file_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(AdapterError) as refused:
        read_tensors(path)
    said = "there is no such file; give the path of a .safetensors file"
    assert str(refused.value) == f"{path}: {said}"


def test_a_file_is_known_by_its_hash(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(AdapterError, match=r"gone\.safetensors: the file cannot be read \(No such"):
        sha256(path.with_name("gone.safetensors"))
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


NAMES = ["b", "a.lora_up.weight", "é", "line\n", "\x7f", "a"]
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.bool)


def test_the_bytes_are_those_of_the_library_in_an_order_that_is_fixed():
    """Of every type of number, and of names that JSON escapes."""
    tensors = {f"{n}{dtype}": torch.arange(3).to(dtype) for dtype in TYPES for n in NAMES}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}
    assert b"".join(serialized(tensors, {})) == save(tensors)
    one = {"ss_title": 'ä "x" \u2028 /'}
    assert b"".join(serialized(tensors, one)) == save(tensors, one)
    many = {name: name for name in NAMES}
    turned = dict(reversed(tensors.items())), dict(reversed(many.items()))
    header, data = serialized(*turned)
    assert (header, data) == serialized(tensors, many)
    assert list(json.loads(header[8:])["__metadata__"]) == sorted(NAMES)
    assert b'"a":"x?"' in serialized({}, {"a": "x\ud800"})[0]  # half a character of a stranger's


def test_views_and_transposed_tensors_are_written_as_they_look():
    shared = torch.randn(4, 3)
    tensors = {"whole": shared, "view": shared[:2], "transposed": shared.T}
    found = load(b"".join(serialized(tensors, {})))
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
