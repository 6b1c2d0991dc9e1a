"""Settings are declared once: checks, JSON and options are made of the declarations."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy
import pytest
import torch
from pydantic import Field

from iteris_core import BaselineOptions, ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.language.samples import ReadingOptions
from iteris_core.settings import (
    MOST_CHARACTERS,
    MOST_ITEMS,
    Precision,
    Texts,
    alternatives,
    declared,
    from_json,
    from_text,
    labelled,
    schema_of,
    settings,
    shown,
)

KINDS = (BaselineOptions, MergeConfig, Calibration, ReadingOptions)
FIELDS = [(kind, name, item) for kind in (*KINDS, LoraUse) for name, item in declared(kind).items()]
NUMBERS = [
    field
    for field in FIELDS
    if {"integer", "number"} & {part.get("type") for part in alternatives(schema_of(field[2]))}
]


def test_every_number_has_a_lower_and_an_upper_bound_and_is_finite():
    assert len(NUMBERS) > 20
    for kind, name, item in NUMBERS:
        (part, *_) = (
            p for p in alternatives(schema_of(item)) if p["type"] in ("integer", "number")
        )
        assert {"minimum", "exclusiveMinimum"} & set(part), (kind, name)
        assert {"maximum", "exclusiveMaximum"} & set(part), (kind, name)
        required = {"name": "a", "file": None, "sha256": "", "prompts": ()}
        required |= {"strength_model": 1, "strength_clip": 1}
        others = required if kind is LoraUse else {}
        for number in (math.nan, math.inf, -math.inf):
            with pytest.raises(ConfigError, match=rf"{name} is -?(nan|inf); it must be "):
                kind(**{**others, name: number})
            with pytest.raises(ConfigError, match=rf"^here: .*{name} is "):
                from_json("here", {**others, name: number}, kind)
            with pytest.raises(ConfigError, match=r"^--x is "):
                from_text("--x", str(number), item)


@settings
class Every:
    """Settings of every kind."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    mixed: Annotated[float, Field(ge=0, lt=1)] = 0.0
    count: Annotated[int | None, Field(ge=1, le=99, title="runs")] = None
    side: Annotated[int, Field(ge=64, le=512, multiple_of=64)] = 64
    rank: (
        Annotated[int, Field(ge=1, le=9)]
        | Literal["sum"]
        | Mapping[str, Annotated[int, Field(ge=1, le=9)]]
    ) = "sum"
    word: Literal["one", "two"] = "one"
    switch: bool = False
    name: str = ""
    texts: Texts = ()
    precision: Precision = torch.float32
    inner: BaselineOptions = BaselineOptions()

    def __post_init__(self) -> None:
        if self.word == "two" and self.switch:
            raise ConfigError("two has no switch")


RANK = "a whole number from 1 to 9, 'sum', or an object, each value a whole number from 1 to 9"
TEXT = "a text of 0 to 4000 Unicode characters"
REFUSED = {  # what may be there -> values that may not
    ("share", "a number above 0, up to 1"): (0, 1.5, "0.5", True, None, 10**400),
    ("mixed", "a number from 0 to below 1"): (1, -0.1, "1"),
    ("count", "a whole number from 1 to 99 or none"): (True, 2.0, "5", 0, 100),
    ("side", "a multiple of 64 from 64 to 512"): (100, 0),
    ("rank", RANK): (0, "max", {"layer": 0}, {1: 1}, 1.0),
    ("word", "'one' or 'two'"): ("three", 1, None),
    ("switch", "true or false"): (1, "true"),
    ("name", TEXT): (1, "a" * (MOST_CHARACTERS + 1), "half a character \ud83d", None),
    ("texts", f"a list, each item {TEXT}, of 1000 items at most"): (
        "word",
        (1,),
        ("a",) * (MOST_ITEMS + 1),
        ("a" * (MOST_CHARACTERS + 1),),
    ),
    ("precision", "'float16' or 'bfloat16' or 'float32' or 'float64'"): (
        "int8",
        torch.int8,
        torch.ones(2),
        None,
    ),
    ("inner", "an object"): ({}, None),
}


def test_a_wrong_value_is_refused_with_what_may_be_there():
    for (name, expected), values in REFUSED.items():
        for value in values:
            with pytest.raises(ConfigError) as error:
                Every(**{name: value})
            assert str(error.value) == f"{name} is {shown(value)}; it must be {expected}"


def test_values_inside_their_range_are_kept():
    whole = {
        "share": 1,
        "count": 3,
        "rank": {"layer": 3},
        "texts": ("a" * MOST_CHARACTERS, "a cat \U0001f600") * (MOST_ITEMS // 2),
        "precision": torch.float64,
    }
    made = Every(**whole, inner=BaselineOptions(scale=-2, projection=None))
    assert {name: getattr(made, name) for name in whole} == whole
    as_json = {**whole, "texts": list(whole["texts"]), "precision": "float64"}
    read = from_json("here", {**as_json, "inner": {"scale": -2, "projection": None}}, Every)
    assert read == made == replace(Every(), **vars(made)) == copy.deepcopy(made)
    assert hash(Every(texts=["a"])) == hash(Every(texts=("a",)))
    assert Every(share=numpy.float32(0.5), count=numpy.int64(3)) == Every(count=3)


def test_settings_that_do_not_go_together_are_refused_as_they_say_it():
    with pytest.raises(ConfigError, match=r"^two has no switch$"):
        Every(word="two", switch=True)
    with pytest.raises(ConfigError, match=r"^here: two has no switch$"):
        from_json("here", {"word": "two", "switch": True}, Every)
    with pytest.raises(TypeError, match="Every: Unexpected keyword argument: colour"):
        Every(colour=1)


def test_a_front_end_has_its_own_words_and_a_file_has_the_fields_names():
    with labelled({"count": "runs"}):
        with pytest.raises(ConfigError, match=r"^runs is 0; "):
            Every(count=0)
        with pytest.raises(ConfigError, match=r"^here: count is 0; "):
            from_json("here", {"count": 0}, Every)
