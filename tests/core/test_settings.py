"""Settings are declared once: their checks, their JSON and their words on the command line are made
of the declarations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import pytest
import torch

from iteris_core import BaselineOptions, ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.language.caption_samples import CaptionOptions
from iteris_core.language.text_samples import TextOptions
from iteris_core.settings import (
    MOST_ITEMS,
    MOST_LETTERS,
    alternatives,
    check,
    declared,
    from_json,
    from_text,
    setting,
    shown,
)

KINDS = (BaselineOptions, MergeConfig, Calibration, TextOptions, CaptionOptions)
FIELDS = [(kind, item) for kind in KINDS for item in declared(kind)]


def names(pair):
    return f"{pair[0].__name__}.{pair[1].name}"


@pytest.mark.parametrize("pair", FIELDS, ids=names)
def test_every_setting_says_what_it_means_in_one_sentence(pair):
    _, item = pair
    assert item.setting.help.endswith(".")
    assert not item.is_required


def test_every_number_has_a_lower_and_an_upper_bound():
    for kind, item in [*NUMBERS, *((LoraUse, item) for item in declared(LoraUse))]:
        if {int, float} & set(alternatives(item.hint)):
            bounds = item.setting
            assert bounds.at_least is not None or bounds.above is not None, (kind, item.name)
            assert bounds.at_most is not None or bounds.below is not None, (kind, item.name)


@pytest.mark.parametrize(
    ("value", "is_fine"),
    [
        ("a" * MOST_LETTERS, True),
        ("a" * (MOST_LETTERS + 1), False),
        ("a cat \U0001f600", True),
        ("half a character \ud83d", False),
    ],
)
def test_a_text_has_a_largest_size_and_whole_letters(value, is_fine):
    for field in ({"name": value}, {"texts": (value,)}):
        if is_fine:
            Every(**field)
        else:
            with pytest.raises(ConfigError, match=r"a text of 4000 Unicode characters at most"):
                Every(**field)


def test_a_list_has_a_largest_size():
    Every(texts=("a",) * MOST_ITEMS)
    with pytest.raises(ConfigError, match=r"texts is .*, of 1000 items at most"):
        Every(texts=("a",) * (MOST_ITEMS + 1))


def test_any_value_can_be_shown():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    for value in (10**5000, nested, "x" * 10**6):
        assert len(shown(value)) <= 60


NUMBERS = [
    (kind, item)
    for kind, item in FIELDS
    if {int, float} & set(alternatives(item.hint)) and item.name != "baseline"
]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("pair", NUMBERS, ids=names)
def test_no_number_may_be_infinite_or_none_at_all(pair, number):
    kind, item = pair
    with pytest.raises(ConfigError, match=rf"^{item.name} is -?(nan|inf); it must be "):
        kind(**{item.name: number})
    with pytest.raises(ConfigError, match=f"^here: {item.name} is "):
        from_json("here", {item.name: number}, kind)
    with pytest.raises(ConfigError, match=r"^--x is "):
        from_text("--x", str(number), item)


@dataclass(frozen=True)
class Every:
    """Settings of every kind."""

    share: float = setting(0.5, "A share.", above=0, at_most=1)
    mixed: float = setting(0.0, "A mix.", at_least=0, below=1)
    count: int | None = setting(None, "A count.", at_least=1)
    side: int = setting(64, "A side.", at_least=64, multiple_of=64)
    rank: int | Literal["sum"] | Mapping[str, int] = setting("sum", "A rank.", at_least=1)
    word: Literal["one", "two"] = setting("one", "A word.")
    switch: bool = setting(False, "A switch.")
    name: str = setting("", "A name.")
    texts: tuple[str, ...] = setting((), "Some texts.")
    precision: torch.dtype = setting(torch.float32, "A precision.")
    inner: BaselineOptions = setting(BaselineOptions(), "Settings in settings.")

    def __post_init__(self) -> None:
        check(self)


ITEMS = {item.name: item for item in declared(Every)}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share", "1", 1.0),
        ("mixed", "1e-3", 0.001),
        ("count", "12", 12),
        ("count", "none", None),
        ("side", "128", 128),
        ("rank", "4", 4),
        ("rank", "sum", "sum"),
        ("word", "two", "two"),
        ("switch", "true", True),
        ("name", "none", "none"),
        ("precision", "bfloat16", torch.bfloat16),
    ],
)
def test_a_word_of_the_command_line_is_read_as_the_settings_type(name, text, value):
    found = from_text("--x", text, ITEMS[name])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("share", "0", "--x is 0.0; it must be a number above 0, and 1 at most"),
        ("share", "half", "--x is 'half'; it must be a number above 0, and 1 at most"),
        ("mixed", "1", "--x is 1.0; it must be a number from 0 to below 1"),
        ("count", "0", "--x is 0; it must be a whole number, 1 or more, or none"),
        ("count", "1.5", "--x is '1.5'; it must be a whole number, 1 or more, or none"),
        ("side", "100", "--x is 100; it must be a multiple of 64 from 64"),
        ("rank", "max", "--x is 'max'; it must be a whole number, 1 or more, 'sum', or an object"),
        ("word", "three", "--x is 'three'; it must be 'one' or 'two'"),
        ("switch", "on", "--x is 'on'; it must be true or false"),
        ("precision", "int8", "--x is 'int8'; it must be float16 or bfloat16 or float32"),
    ],
)
def test_a_word_that_means_nothing_is_refused_with_what_may_stand_there(name, text, said):
    with pytest.raises(ConfigError) as error:
        from_text("--x", text, ITEMS[name])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": True}, "count is True; it must be a whole number"),
        ({"count": 2.0}, "count is 2.0; it must be a whole number"),
        ({"share": "0.5"}, "share is '0.5'; it must be a number above 0"),
        ({"share": 10**400}, "share is 1000"),
        ({"rank": {"layer": 0}}, "rank is {'layer': 0}; it must be"),
        ({"texts": "word"}, "texts is 'word'; it must be a list, each item a text"),
        ({"texts": (1,)}, r"texts is (1,); it must be a list, each item a text"),
        ({"switch": 1}, "switch is 1; it must be true or false"),
        ({"precision": torch.int8}, "precision is torch.int8; it must be float16 or bfloat16"),
        ({"precision": torch.ones(2)}, "precision is tensor("),
        ({"inner": {}}, "inner is {}; it must be an object"),
    ],
)
def test_values_of_the_wrong_type_are_refused_where_settings_are_made(settings, said):
    with pytest.raises(ConfigError) as error:
        Every(**settings)
    assert str(error.value).startswith(said)


def test_settings_inside_their_range_are_kept():
    whole = {
        "share": 1,
        "count": 3,
        "rank": {"layer": 3},
        "texts": ("a", "b"),
        "precision": torch.float64,
    }
    made = Every(**whole, inner=BaselineOptions(scale=-2, projection=None))
    assert {name: getattr(made, name) for name in whole} == whole
    as_json = {**whole, "texts": ["a", "b"], "precision": "float64"}
    inner = {"scale": -2, "projection": None}
    assert from_json("here", {**as_json, "inner": inner}, Every) == made


def test_every_method_of_the_settings_is_one_that_the_rivals_have():
    from iteris_core.rivals import METHODS

    (method,) = (item for item in declared(MergeConfig) if item.name == "method")
    assert set(get_args(method.hint)) == {"iteris", *METHODS}
