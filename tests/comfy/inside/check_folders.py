"""Which file ComfyUI's lists have under the name of one that is to be saved."""

import os

import folder_paths
import pytest
from iteris_pack.nodes.host import find_lora, namesake


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three folders of LoRAs; merges are saved in the second."""
    found = [tmp_path / name for name in ("models", "output", "more")]
    for folder in found:
        (folder / "styles").mkdir(parents=True)
    _, endings = folder_paths.folder_names_and_paths["loras"]
    entry = (list(map(str, found)), endings)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    return found


@pytest.mark.parametrize("name", ["a.safetensors", "styles/a.safetensors"])
def test_a_file_of_an_earlier_folder_is_found_instead_of_a_merge(folders, name):
    models, output, _ = folders
    assert namesake(output / name) is None
    (models / name).touch()
    for _ in range(2):
        assert namesake(output / name) == models / name == find_lora(name)
        (output / name).touch()  # which is not what the lists have
    assert namesake(models / name) is None


def test_a_file_of_a_later_folder_is_found_until_there_is_a_merge(folders):
    _, output, more = folders
    (more / "a.safetensors").touch()
    assert namesake(output / "a.safetensors") == more / "a.safetensors"
    (output / "a.safetensors").touch()
    assert namesake(output / "a.safetensors") is None


def test_one_folder_under_two_names_holds_one_file(folders):
    models, output, _ = folders
    os.rmdir(models / "styles")
    os.rmdir(models)
    models.symlink_to(output, target_is_directory=True)
    (output / "a.safetensors").touch()
    assert namesake(output / "a.safetensors") is None
    assert namesake(output / "new" / "a.safetensors") is None


def test_a_file_that_no_list_has_has_no_namesake(folders, tmp_path):
    (folders[0] / "a.safetensors").touch()
    assert namesake(tmp_path / "a.safetensors") is None
