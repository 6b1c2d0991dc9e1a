"""Covers, and tables of pictures whose labels may be any text."""

import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from iteris_pack.nodes.pictures import (
    Labelled,
    png_of,
    shortened,
    table,
)
from PIL import Image


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
    image = Image.open(io.BytesIO(png_of(torch.tensor(pixel).expand(8, 8, len(pixel)))))
    assert image.mode == "RGB"
    assert max(abs(a - b) for a, b in zip(image.getpixel((4, 4)), color, strict=True)) < 8


def colours(*values, height=64, width=96):
    return [torch.full((height, width, 3), value) for value in values]


def test_a_table_of_many_rows_is_no_higher_than_8192():
    whole = table([Labelled("x", ["merged"], colours(0.5, height=512, width=512))] * 100)
    assert 8000 < whole.shape[1] <= 8192


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=3), st.text(max_size=600))
@example(["\ud800", "\x00\x1b[31m", ""], "\u202e 水墨画\n\n\ud800")
def test_any_text_is_a_label(names, row):
    pictures = colours(*[0.5] * len(names), height=8, width=40)
    whole = table([Labelled(row, names, pictures)], row)
    assert bool(whole.isfinite().all())


@given(st.text(max_size=30), st.integers(0, 12))
def test_what_is_shortened_fits(text, room):
    short = shortened(text, room, len)
    assert len(short) <= room or short == ""
    assert short == text or len(text) > room


def test_a_name_keeps_its_beginning_and_its_end():
    assert shortened("character_sks_dog-000010", 13, len) == "charac\u2026000010"
