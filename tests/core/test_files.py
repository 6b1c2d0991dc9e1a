"""Safetensors files: broken ones are refused with the reason, new ones are there whole or not at
all.
"""

import json
import os
import pickle
import re
import stat

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from iteris_core import AdapterError
from iteris_core.files.layout import sha256_of_tensors
from iteris_core.files.tensors import (
    check_readable,
    read_tensors,
    sha256,
)
from iteris_core.files.writing import write_tensors

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
        "not a whole safetensors file",
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


@pytest.mark.parametrize("size", [0x280, 0x4B50, 0x380, 0x480, 0x580, 0x04034B50])
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
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    save_file(TENSORS, path)
    assert sha256_of_tensors(TENSORS) == sha256(path)


# --- writing ---


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "new folder" / "x.safetensors"
    shared = torch.randn(4, 3)
    write_tensors(
        {"whole": shared, "view": shared[:2], "transposed": shared.T}, path, {"ss_title": "x"}
    )
    found = load_file(path)
    assert torch.equal(found["whole"], shared)
    assert torch.equal(found["view"], shared[:2])
    assert torch.equal(found["transposed"], shared.T)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "ss_title": "x"}
    assert os.listdir(path.parent) == ["x.safetensors"]
    assert (
        stat.S_IMODE(path.stat().st_mode) == 0o644
    )  # a temporary file's 0600 would hide it from other users


def test_a_file_that_is_there_is_not_replaced_unless_asked(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(
        FileExistsError,
        match=r"x\.safetensors exists already; choose another name, or allow overwriting",
    ):
        write_tensors(TENSORS, path, {})
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["x.safetensors"]
    write_tensors(TENSORS, path, {}, overwrite=True)
    assert set(load_file(path)) == {"a", "b"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_no_file(tmp_path, monkeypatch, overwrite, error):
    def half_written(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise error

    monkeypatch.setattr("iteris_core.files.writing.save_file", half_written)
    if overwrite:
        (tmp_path / "x.safetensors").write_bytes(b"precious")
    with pytest.raises(type(error)):
        write_tensors(TENSORS, tmp_path / "x.safetensors", {}, overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == (
        {"x.safetensors": b"precious"} if overwrite else {}
    )


def test_the_file_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    seen = []

    def watched(tensors, draft, metadata):
        save_file(tensors, draft, metadata)
        seen.append(path.exists())

    monkeypatch.setattr("iteris_core.files.writing.save_file", watched)
    write_tensors(TENSORS, path, {})
    assert seen == [False]
    assert path.exists()


@pytest.mark.parametrize("code", [PermissionError(1, "no links"), OSError(95, "not supported")])
def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch, code):
    def no_links(*args, **kwargs):
        raise code

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "x.safetensors"
    write_tensors(TENSORS, path, {})
    assert set(load_file(path)) == {"a", "b"}
    with pytest.raises(FileExistsError, match="exists already"):
        write_tensors({"c": torch.ones(1)}, path, {})
    assert set(load_file(path)) == {"a", "b"}
    assert os.listdir(tmp_path) == ["x.safetensors"]
