"""Names of LoRAs, places to save to."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iteris_pack.nodes.loras.names import adapter_name, path_to_save

from iteris_core import IterisError


def test_files_of_one_stem_have_names_of_their_own():
    files = ("cat.safetensors", "style/cat.safetensors", "style\\dog.v2.safetensors")
    assert [adapter_name(file) for file in files] == ["cat", "style/cat", "style/dog.v2"]


def test_a_loras_folder_that_is_a_link_is_below_the_output_folder(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "disk").mkdir()
    folder = tmp_path / "output" / "loras"
    folder.symlink_to(tmp_path / "disk")
    assert path_to_save(tmp_path / "output", "loras/a") == folder / "a.safetensors"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a", "a"),
        (" a.safetensors ", "a"),
        ("loras/a", "a"),
        ("loras", "loras"),
        ("styles/ink", "styles/ink"),
        ("loras\\styles\\ink", "styles/ink"),
        ("loras/styles/../a", "a"),
        ("2026_100%", "2026_100%"),
    ],
)
def test_a_name_is_the_one_in_lists_of_loras(tmp_path, name, path):
    assert path_to_save(tmp_path, name) == tmp_path / "loras" / f"{path}.safetensors"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the file name is empty"),
        ("loras/", "the file name is empty"),
        ("loras/../a", "is outside the folder loras in ComfyUI's output folder"),
        ("..\\a", "is outside the folder loras in ComfyUI's output folder"),
        ("/etc/a", "is outside the folder loras in ComfyUI's output folder"),
        ("loras/" + "a" * 300, "can be no name: a name has no control characters"),
        ("loras/a\0b", "can be no name"),
        ("loras/\ud800", "can be no name"),
        ("%date:hh:mm%", "can be no name"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name, said):
    with pytest.raises(IterisError, match=re.escape(said)):
        path_to_save(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=200)
@given(name=st.text(st.sampled_from("a./\\ \0:~") | st.characters(), max_size=40))
def test_no_name_leads_out_of_the_folder(name):
    folder = Path("/output")
    try:
        path = path_to_save(folder, name)
    except IterisError:
        return
    assert path.is_relative_to(folder / "loras")
    assert ".." not in path.parts
    assert path.suffix == ".safetensors"
