"""The one door through which pictures of strangers come."""

import io
import os
import warnings

import pytest
from PIL import Image

from iteris_core import CalibrationError
from iteris_core.language.pictures import open_picture

READ = ("PNG", "JPEG", "WEBP", "BMP")
OTHERS = ("EPS", "GIF", "TIFF", "ICO", "PPM", "PCX", "TGA", "DDS", "PDF", "JPEG2000")


def saved(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def test_four_formats_are_read_whatever_the_file_is_called(tmp_path):
    for kind in READ:
        content = saved(Image.new("RGB", (9, 7), (250, 0, 0)), kind)
        (tmp_path / "a.png").write_bytes(content)
        for given in (tmp_path / "a.png", content):
            picture = open_picture(given)
            assert (picture.mode, picture.size) == ("RGB", (9, 7))
            red, green, _ = picture.getpixel((4, 4))
            assert red > 200 and green < 50


def test_no_other_format_is_tried(tmp_path):
    for kind in OTHERS:
        (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (9, 7)), kind))
        with pytest.raises(CalibrationError, match=r"a\.png: cannot be read as a picture"):
            open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("side", [6_400, 14_500])
def test_a_picture_that_is_small_as_a_file_alone_is_refused_before_its_pixels(
    tmp_path, monkeypatch, side
):
    (tmp_path / "a.png").write_bytes(saved(Image.new("1", (side, side)), "PNG"))
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("it was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CalibrationError, match=r"a\.png: has more than 40 million pixels"):
            open_picture(tmp_path / "a.png")


def test_a_picture_that_is_cut_off_is_refused():
    for kind in READ:
        content = saved(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
        for length in range(1, len(content) // 2, len(content) // 20):
            with pytest.raises(CalibrationError, match="cannot be read as a picture"):
                open_picture(content[:length])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(CalibrationError, match=r"a\.png: there is no such file"):
        open_picture(tmp_path / "a.png")
