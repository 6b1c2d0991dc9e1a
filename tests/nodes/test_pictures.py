"""Covers, and tables of pictures whose labels may be any text."""

import base64
import functools
import io
import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from iteris_pack.nodes import pictures
from iteris_pack.nodes.pictures import (
    Labelled,
    broken,
    jpeg_uri,
    shortened,
    table,
    with_room,
    without_accents,
)
from PIL import Image, ImageFont


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


def colours(*values, height=64, width=96):
    return [torch.full((height, width, 3), value) for value in values]


def test_a_table_of_many_rows_is_no_higher_than_8192():
    whole = table([Labelled("x", ["merged"], colours(0.5, height=512, width=512))] * 100)
    assert 8000 < whole.shape[1] <= 8192


@given(st.lists(st.text("ab", min_size=1, max_size=9)), st.integers(0, 20))
def test_a_text_is_broken_between_its_parts_where_its_room_ends(parts, room):
    lines = broken(parts, room, len)
    assert ", ".join(lines) == ", ".join(parts)
    assert all(len(line) <= room or line in parts for line in lines)
    for line, after in itertools.pairwise(lines):
        assert len(f"{line}, {after.partition(',')[0]}") > room


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=3), st.text(max_size=600))
@example(["\ud800", "\x00\x1b[31m", ""], "\u202e 水墨画\n\n\ud800")
def test_any_text_is_a_label(names, row):
    pictures = colours(*[0.5] * len(names), height=8, width=40)
    said = [(name, row) for name in names]
    whole = table([Labelled(row, names, pictures)], row, said, names)
    assert bool(whole.isfinite().all())


@given(st.text(max_size=30), st.integers(0, 12))
def test_what_is_shortened_fits(text, room):
    short = shortened(text, room, len)
    assert len(short) <= room or short == ""
    assert short == text or len(text) > room


def test_a_name_keeps_its_beginning_and_its_end():
    assert shortened("character_sks_dog-000010", 13, len) == "charac\u2026000010"


def test_letters_with_accents_are_read_without_them_where_no_font_has_them(monkeypatch):
    assert without_accents("Zo\u00eb, \ufb01n \u6c34") == "Zoe, fin \u6c34"
    monkeypatch.setattr("iteris_pack.nodes.pictures._MORE_FONTS", ())
    plain, accents = (table([Labelled("x", [name], colours(0.5))]) for name in ("Zoe", "Zo\u00eb"))
    assert torch.equal(plain, accents)


def test_a_font_that_is_missing_is_looked_for_once(monkeypatch):
    looked = []

    own = ImageFont.truetype

    def missing(name, size, **more):
        if not isinstance(name, str):  # Pillow's own
            return own(name, size, **more)
        looked.append(name)
        raise OSError

    find = functools.lru_cache(pictures._font.__wrapped__)
    monkeypatch.setattr(pictures, "_font", find)  # which knows none yet
    monkeypatch.setattr(ImageFont, "truetype", missing)
    rows = [Labelled("\u6c34", [letter], colours(0.5)) for letter in "\u732b\u72ac"]
    table(rows)
    table(rows)
    assert looked and len(looked) == len(set(looked))


def test_a_name_gives_way_to_its_verdict():
    assert with_room("char_anna_01", "likely good", 20, len) == "char\u2026_01 likely good"
    assert with_room("dog", "lost", 20, len) == "dog lost"
    assert with_room("dog", "likely good", 5, len) == "likely good"
