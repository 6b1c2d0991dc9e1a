"""What a merged file tells other programs."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from iteris_core import Adapter, SaveError
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.recipe import metadata_of_merge
from iteris_core.files.limits import HEADER_BYTES
from iteris_core.files.metadata import Origin, hashes, origin_of
from iteris_core.files.writing import write_tensors


def lora(name, metadata, trigger=""):
    return LoadedLora.of(Adapter(name, {}, metadata=metadata), (), trigger=trigger)


def test_triggers_and_titles_of_the_sources_live_on():
    cat = {"modelspec.trigger_phrase": "sks cat", "modelspec.title": "My cat"}
    ink = {"ss_tag_frequency": json.dumps({"1_x": {"cat": 1, "ink": 5}, "2_y": {"ink": 1}})}
    loras = [lora("cat", cat), lora("style/ink", ink)]
    found = metadata_of_merge("both", loras, "{}")
    assert found["modelspec.trigger_phrase"] == "sks cat, ink"
    assert found["iteris.recipe"] == "{}"
    assert found["modelspec.merged_from"] == "My cat, style/ink"
    assert "modelspec.trigger_phrase" not in metadata_of_merge("x", [lora("b", {})], "{}")
    assert "modelspec.date" not in found  # equal merges have equal files
    assert found["modelspec.title"] == found["ss_output_name"] == "both"


CAT = {"name": "cat", "file": "style/cat.safetensors", "sha256": "1" * 64}
CAT |= {"strength_model": 1.0, "strength_clip": 0.0}
TRAINED = CAT | {"name": "trained", "file": None, "sha256": "2" * 64}
OFF = CAT | {"file": "off.safetensors", "strength_model": 0.0}


def test_a_recipe_says_what_files_a_merge_was_made_of_and_whether_by_measuring():
    recipe = {"loras": [CAT, OFF, TRAINED], "config": {"measured": False}}
    stated = {"modelspec.merged_from": "My cat, trained"}

    def found(recipe):
        return origin_of(stated | {"iteris.recipe": json.dumps(recipe)})

    assert found(recipe) == Origin(("style/cat.safetensors", "trained"), is_preview=True)
    assert not found(recipe | {"config": {"measured": True}}).is_preview
    assert not found(recipe | {"config": {}}).is_preview, "of before there were previews"
    titles = Origin(("My cat", "trained"))
    assert origin_of(stated) == titles
    for broken in ([], {}, recipe | {"config": []}, recipe | {"loras": {}}, {"loras": [1]}):
        assert found(broken) == titles
    many = found(recipe | {"loras": [CAT] * 99})
    assert len(many.names) < 50, "a page asks for many files"
    assert origin_of({}) == Origin()


def test_the_user_calls_what_the_file_does_not_name():
    loras = [
        lora("cat", {"modelspec.trigger_phrase": "sks cat"}, "a cat"),
        lora("dog", {}, "a ohwx dog"),
        lora("ink", {"modelspec.trigger_phrase": "None"}, "in ink style"),
    ]
    found = metadata_of_merge("x", loras, "{}")
    assert found["modelspec.trigger_phrase"] == "sks cat, a ohwx dog, in ink style"


def test_hashes_are_those_of_sd_scripts(tmp_path):
    """The reference reads the file that would be saved, as sd-scripts' train_util does."""
    tensors = {
        "a.lora_up.weight": torch.randn(512, 600),
        "a.lora_down.weight": torch.randn(600, 512),
    }
    metadata = {"ss_network_dim": "600", "modelspec.title": "changed later"}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_network_dim": "600"})
    content = (tmp_path / "a.safetensors").read_bytes()
    assert len(content) > 0x110000
    header = int.from_bytes(content[:8], "little")
    found = hashes(tensors, metadata)
    assert found["sshs_model_hash"] == hashlib.sha256(content[8 + header :]).hexdigest()
    assert found["sshs_legacy_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert found["modelspec.hash_sha256"] == "0x" + found["sshs_model_hash"]
    assert hashes(tensors, metadata | {"modelspec.title": "other"}) == found


def test_no_file_is_written_that_is_not_read_again(tmp_path):
    metadata = {"iteris.recipe": "x" * HEADER_BYTES}
    with pytest.raises(SaveError, match=r"header would have \d+ bytes, and at most"):
        write_tensors({"a": torch.ones(1)}, tmp_path / "a.safetensors", metadata)
    assert list(tmp_path.iterdir()) == []
