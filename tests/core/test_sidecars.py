"""Trigger words and pictures that other programs keep beside a LoRA's file."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from iteris_core.files.beside import has_picture, picture_beside, words_beside
from iteris_core.files.headers import lora_header
from iteris_core.files.limits import PICTURE_BYTES, SIDECAR_BYTES

TAGS = json.dumps({"10_ohwx": {"ohwx": 9, "outdoors": 4}})
METADATA = {"modelspec.trigger_phrase": "a sks cat", "ss_tag_frequency": TAGS}
MANAGER = {"file_name": "cat", "civitai": {"trainedWords": ["ohwx cat", " red collar, "]}}
CIVITAI = {"id": 7, "trainedWords": ["of civitai"], "images": []}


@pytest.fixture
def lora(tmp_path):
    base = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{base}.lora_up.weight": torch.ones(1280, 2)}
    tensors[f"{base}.lora_down.weight"] = torch.ones(2, 2048)
    path = tmp_path / "a.cat.safetensors"
    save_file(tensors, path, METADATA)
    return path


def write(lora, ending, value):
    lora.with_suffix(ending).write_text(json.dumps(value))


def test_words_beside_the_file_come_before_its_own(lora):
    assert lora_header(lora).triggers.source == "modelspec.trigger_phrase"
    write(lora, ".civitai.info", CIVITAI)
    found = lora_header(lora).triggers
    assert (found.source, found.triggers) == ("a.cat.civitai.info", ("of civitai",))
    write(lora, ".metadata.json", MANAGER)  # which its user may have edited
    found = lora_header(lora).triggers
    assert (found.source, found.triggers) == ("a.cat.metadata.json", ("ohwx cat", "red collar"))
    assert found.words == ("ohwx cat", "red collar", "a sks cat", "ohwx", "outdoors")


UNREADABLE = [
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    json.dumps([CIVITAI]).encode(),
    json.dumps({"trainedWords": "a cat"}).encode(),
    json.dumps({"trainedWords": [1, None, ["x"], {}, " , ", "y" * 2001]}).encode(),
    json.dumps({"civitai": {"trainedWords": {"a": "b"}}}).encode(),
    json.dumps({"civitai": "trainedWords"}).encode(),
    json.dumps({"trainedWords": ["none", "N/A"]}).encode(),
    json.dumps(CIVITAI).encode().ljust(SIDECAR_BYTES + 1),
]


def test_what_cannot_be_read_beside_a_file_is_not_there(lora):
    for content in UNREADABLE:
        lora.with_suffix(".metadata.json").write_bytes(content)
        found = lora_header(lora).triggers
        assert (found.source, found.triggers) == ("modelspec.trigger_phrase", ("a sks cat",))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_plain_file_is_not_opened(lora):
    """A pipe would wait for ever."""
    os.mkfifo(lora.with_suffix(".metadata.json"))
    os.mkfifo(lora.with_suffix(".preview.png"))
    lora.with_suffix(".civitai.info").mkdir()
    lora.with_suffix(".png").mkdir()
    assert words_beside(lora) == ("", ())
    assert picture_beside(lora) is None


PNG = b"\x89PNG\r\n\x1a\n and more"
JPEG = b"\xff\xd8\xff\xe0 and more"
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 and more"


def test_a_picture_lies_beside_the_file(lora):
    for ending, content, kind in (
        (".preview.png", PNG, "image/png"),
        (".preview.png", WEBP, "image/webp"),  # LoRA Manager keeps the name
        (".jpg", JPEG, "image/jpeg"),
        (".jpeg", JPEG, "image/jpeg"),
    ):
        assert not has_picture(lora)
        lora.with_suffix(ending).write_bytes(content)
        assert has_picture(lora)
        assert picture_beside(lora) == (content, kind)
        lora.with_suffix(ending).unlink()


def test_the_first_real_picture_counts(lora, tmp_path):
    """A link that leads elsewhere is none, either."""
    (tmp_path / "secret").write_text("password")
    lora.with_suffix(".preview.png").symlink_to(tmp_path / "secret")
    for content in (b"", b"<html>", b"<svg onload=alert(1)>", b"RIFF\x10\x00\x00\x00WAVE"):
        lora.with_suffix(".png").write_bytes(content)
        assert picture_beside(lora) is None and not has_picture(lora)
    lora.with_suffix(".png").write_bytes(PNG)
    lora.with_suffix(".webp").write_bytes(WEBP)
    assert picture_beside(lora) == (PNG, "image/png")
    lora.with_suffix(".png").write_bytes(PNG.ljust(PICTURE_BYTES + 1))
    assert picture_beside(lora) == (WEBP, "image/webp")
