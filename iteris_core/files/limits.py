"""Limits of what is read from files, which come from strangers.

Each number is several times what the largest real files have. A file beyond one is refused with its
name, except where a limit says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

FILE_BYTES = 2**35  # of an adapter, which is read whole: full differences of Flux have 24 GB
HEADER_BYTES = 20_000_000  # names every tensor and holds the metadata: tags of several MB
KEY_CHARACTERS = 300  # the longest have some 120

# What is beyond these counts as unreadable.
SETTINGS_BYTES = 10_000_000  # adapter_config.json; with a pattern for each layer it has 0.5 MB
SIDECAR_BYTES = 4_000_000  # what Civitai says about a LoRA takes up to 0.5 MB
PICTURE_BYTES = 16_000_000  # next to a LoRA's file, which is sent to the page as it is

# Trigger words: a phrase that lists all has some 300 characters; what is longer is a description.
WORD_CHARACTERS = 2_000
LISTED_WORDS = 1_000  # words between commas that are looked at
NAME_CHARACTERS = 200  # of a base model in the metadata; what is longer is not a name
SEARCHED_CHARACTERS = 1_000_000  # of keys, for a file's family: real files have 0.2 million
MERGED_CHARACTERS = 1_000  # of the names of the LoRAs that a file is a merge of


def first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yield texts as long as all together have no more characters."""
    for text in texts:
        characters -= len(text)
        if characters < 0:
            return
        yield text


def json_value(text: str) -> Any:
    """Return the value of a text of JSON.

    Raises:
        ValueError: The text is not JSON, or has too many levels.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many levels of lists and objects") from None
