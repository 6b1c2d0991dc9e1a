"""LoRAs as rows of a text. The same table is read by the page's tests, `tests/web/test_modules.py`."""

import json
import re
from pathlib import Path

import pytest
from fake_host import use
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import ConfigError
from iteris_core.diffusion.lora_rows import Row, read_rows, row_of, written

TABLE = json.loads((Path(__file__).parents[1] / "data" / "rows.json").read_text(encoding="utf-8"))


def row(entry):
    model = entry.get("model", 1)
    strengths = model, entry.get("clip", model)
    said = entry.get("kind"), entry.get("priority", 1), entry.get("called", "")
    lists = (tuple(entry.get(name, ())) for name in ("without", "prompts"))
    where = f"Row {entry.get('row', 1)}"
    return Row(entry["name"], *strengths, *said, entry.get("blocks", ""), *lists, where)


@pytest.mark.parametrize("example", TABLE["good"], ids=lambda example: example["text"][:40])
def test_a_text_is_read(example):
    assert read_rows(example["text"]) == [
        row(entry) for entry in example["rows"] if entry.get("on", True)
    ]


@pytest.mark.parametrize("example", TABLE["good"], ids=lambda example: example["text"][:40])
def test_rows_are_written(example):
    if "#" not in example["text"][:1] and "\n#" not in example["text"]:
        rows = [row(entry) for entry in example["rows"]]
        assert written(rows) == example.get("written", example["text"])


@pytest.mark.parametrize("example", TABLE["bad"], ids=lambda example: example["text"][:40])
def test_what_is_no_row_is_named(example):
    meant = f".*; did you mean {re.escape(example['meant'])}\\? After" if "meant" in example else ""
    place = rf"^Row {example['row']}\b"
    with pytest.raises(ConfigError, match=rf"{place}.*{re.escape(example['found'])}{meant}"):
        read_rows(example["text"])


def test_a_name_that_looks_like_a_row_is_told_to_be_renamed():
    said = r"Row 1: '<lora:<lora:x:1>:1>' has a <.*rename the file"
    with pytest.raises(ConfigError, match=said):
        read_rows("<lora:<lora:x:1>:1>")


@pytest.mark.parametrize("example", TABLE["unchosen"], ids=lambda example: example["text"][:40])
def test_a_row_without_a_file_is_told_to_choose_one(example):
    place = f"^Row {example['row']}: no file yet. Choose one"
    with pytest.raises(ConfigError, match=place) as error:
        read_rows(example["text"])
    assert "spelling" not in str(error.value)
    assert read_rows("\n".join(f"# {line}" for line in example["text"].split("\n"))) == []


NAMES = st.text(
    st.characters(blacklist_characters="<>:\n\r", blacklist_categories=("C", "Z")), min_size=1
)
# braces of one prompt would hold the | of the next, and other programs' {a|b} is refused later
LETTERS = st.characters(blacklist_characters="{}", blacklist_categories=("Cs", "Cc", "Z"))
VALUES = st.text(LETTERS, min_size=1)
ROWS = st.builds(
    Row,
    name=NAMES,
    strength_model=st.floats(-100, 100),
    strength_clip=st.floats(-100, 100),
    kind=st.sampled_from([None, "subject", "style"]),
    priority=st.floats(0, 100),
    called=st.just("") | VALUES,
    blocks=st.just("") | VALUES,
    without=st.lists(VALUES, max_size=3).map(tuple),
    prompts=st.lists(VALUES, max_size=3).map(tuple),
    where=st.just("Row 1"),
)


@given(st.text(st.sampled_from('<lora:a1> |#"\\{}=,sutyle\n')))
def test_any_text_is_read_or_named(text):
    try:
        again = written(read_rows(text))
    except ConfigError as error:
        assert str(error).startswith("Row ")
    else:
        assert "{" in text or written(read_rows(again)) == again


@given(ROWS)
def test_what_is_written_is_read_again(row):
    assert read_rows(written([row])) == [row]


def test_a_lora_to_merge_becomes_a_row():
    lora = use("a", ("p", "q"), file="b/a.safetensors", weight=2.0, kind="style", trigger="in a")
    assert written([row_of(lora)]) == (
        '<lora:b/a.safetensors:1> style priority=2 called="in a" | p | q'
    )


def test_too_many_rows_are_refused():
    with pytest.raises(ConfigError, match="there are 101 LoRAs"):
        read_rows("<lora:a>\n" * 101)


def test_a_long_line_of_hardly_anything_is_read_at_once():
    with pytest.raises(ConfigError, match="strength"):
        read_rows(f"<lora:a:{'1' * 400_000}x>")
