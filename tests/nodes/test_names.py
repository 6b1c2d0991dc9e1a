"""Names of LoRAs, places to save to, covers."""

import base64
import io

import pytest
import torch
from iteris_pack.nodes.loras.names import adapter_name, free_path, jpeg_uri
from PIL import Image

from iteris_core import IterisError


def test_files_of_one_stem_have_names_of_their_own():
    files = ("cat.safetensors", "style/cat.safetensors", "style\\dog.v2.safetensors")
    assert [adapter_name(file) for file in files] == ["cat", "style/cat", "style/dog.v2"]


def test_a_loras_folder_that_is_a_link_is_below_the_output_folder(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "output" / "loras").symlink_to(tmp_path / "disk")
    assert (
        free_path(tmp_path / "output", "loras/a", False)
        == tmp_path / "output" / "loras" / "a.safetensors"
    )
    (tmp_path / "disk" / "a.safetensors").touch()
    assert free_path(tmp_path / "output", "loras/a", False).name == "a_02.safetensors"
    with pytest.raises(IterisError, match="is outside ComfyUI's output folder"):
        free_path(tmp_path / "output", "loras/../../a", False)


@pytest.mark.parametrize(
    ("pixel", "color"),
    [
        ((0.5,), (128, 128, 128)),
        ((0.5, 1.0), (128, 128, 128)),
        ((0.5, 0.0, 1.0), (128, 0, 255)),
        ((0.5, 0.0, 1.0, 0.2), (128, 0, 255)),
    ],
    ids=["grey", "grey and alpha", "RGB", "RGB and alpha"],
)
def test_a_cover_of_any_channels(pixel, color):
    uri = jpeg_uri(torch.tensor(pixel).expand(8, 8, len(pixel)))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.mode == "RGB"
    assert max(abs(a - b) for a, b in zip(image.getpixel((4, 4)), color, strict=True)) < 8
