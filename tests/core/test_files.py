"""Safetensors files: broken ones are refused with the reason."""

import json
import os
import pickle
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from iteris_core import AdapterError
from iteris_core.files.tensors import (
    check_readable,
    read_tensors,
    sha256,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
WHOLE = save(TENSORS, {"ss_title": "x"})


def with_header(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


# --- reading ---


def test_a_whole_file_is_read_with_its_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(WHOLE)
    tensors, metadata = read_tensors(str(path))
    assert metadata == {"ss_title": "x"}
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {
        "a": torch.float32,
        "b": torch.float16,
    }
    assert all(torch.equal(tensors[key], tensor) for key, tensor in TENSORS.items())


def test_a_file_without_metadata_has_none(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors")[1] == {}


PICKLE = "this is a pickle file, which can run code when it is opened"
BAD = {
    "empty": (b"", "x.safetensors: not a whole safetensors file (0 bytes; "),
    "a few bytes": (b"\x01\x02\x03", "not a whole safetensors file (3 bytes; "),
    "cut in the header": (WHOLE[:40], "not a whole safetensors file (40 bytes; "),
    "cut in the data": (WHOLE[:-5], f"whole safetensors file ({len(WHOLE) - 5} bytes; "),
    "too long": (WHOLE + b"more", f"whole safetensors file ({len(WHOLE) + 4} bytes; "),
    "a pickle": (pickle.dumps({"a": 1}, protocol=2), PICKLE),
    "a zipped pickle": (b"PK\x03\x04" + bytes(100), PICKLE),
    "a web page": (b"<!DOCTYPE html><html></html>", "not a whole safetensors file (28 bytes; "),
    "no JSON": (with_header(b"not json"), "the download was probably cut off. Download it again"),
    "no UTF-8": (with_header(b"\xff\xfe\xfd"), "not a whole safetensors file"),
    "a list": (with_header([1, 2]), "not a whole safetensors file"),
    "no offsets": (
        with_header({"a": {"dtype": "F32", "shape": [1]}}),
        "not a whole safetensors file",
    ),
    "one offset": (with_header({"a": {"data_offsets": [0]}}), "not a whole safetensors file"),
    "text offsets": (
        with_header({"a": {"data_offsets": ["0", "4"]}}),
        "not a whole safetensors file",
    ),
    "deep nesting": (with_header(b"[" * 5000), "not a whole safetensors file"),
    "strange entry": (with_header({"a": 3}), "not a whole safetensors file"),
    "unknown type": (
        with_header({"a": {"dtype": "F1", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "'a' is of the type 'F1', which is not read. Use a version of it in float32",
    ),
    "wrong shape": (
        with_header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, bytes(4)),
        "not a whole safetensors file",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_broken_file_is_refused_with_the_reason(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (check_readable, read_tensors):
        with pytest.raises(AdapterError, match=re.escape(message)):
            read(path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth"])
def test_a_pickle_is_known_by_its_name_too(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(WHOLE)
    with pytest.raises(
        AdapterError, match=rf"x{suffix}: this is a pickle file.*reads only \.safetensors"
    ):
        check_readable(path)


@pytest.mark.parametrize("size", [0x280, 0x4B50, 0x380, 0x480, 0x580, 0x034B50])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path, size):
    """0x280 is little-endian 80 02, a pickle of protocol 2; 0x4B50 is PK."""
    raw = (
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        .encode()
        .ljust(size)
    )
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    assert torch.equal(read_tensors(path)[0]["a"], torch.zeros(1))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_known_by_its_bytes_whatever_its_protocol(tmp_path, protocol):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps({"a": list(range(100))}, protocol=protocol))
    with pytest.raises(AdapterError, match="this is a pickle file"):
        check_readable(path)


def test_nothing_in_a_pickle_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    for name, protocol in (("x.pt", 2), ("x.safetensors", 2), ("y.safetensors", 4)):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(), protocol=protocol))
        with pytest.raises(AdapterError):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(
        AdapterError, match=r"there is no such file .*give the path of a .safetensors file"
    ):
        read_tensors(tmp_path / name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), max_size=3),
    cut=st.integers(0, 9),
)
def test_a_damaged_file_is_read_or_refused_never_anything_else(tmp_path, changes, cut):
    content = bytearray(WHOLE)
    for position, value in changes.items():
        content[position] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: len(content) - cut])
    try:
        read_tensors(path)
    except AdapterError as error:
        assert str(error).startswith("x.safetensors: ")
    else:
        assert cut == 0


def test_a_file_is_known_by_its_hash(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(AdapterError, match=r"gone\.safetensors: the file cannot be read \(No such"):
        sha256(path.with_name("gone.safetensors"))
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
