"""Advanced inputs and words of a search, on hosts that know them and on those that do not."""

from dataclasses import make_dataclass

import pytest
from iteris_pack.nodes import sockets


@pytest.mark.parametrize("known", [False, True], ids=["before 0.10", "since 0.10"])
def test_inputs_are_marked_as_advanced_only_where_the_host_knows_the_mark(monkeypatch, known):
    def before(self, id, default=None): ...
    def since(self, id, default=None, *, advanced=None): ...

    monkeypatch.setattr(sockets.io.Float.Input, "__init__", since if known else before)
    assert sockets.advanced() == ({"advanced": True} if known else {})


@pytest.mark.parametrize("known", [True, False])
def test_a_node_is_found_by_other_words_only_where_the_host_knows_them(monkeypatch, known):
    schema = make_dataclass("Schema", ["node_id", *(["search_aliases"] if known else [])])
    monkeypatch.setattr(sockets.io, "Schema", schema)
    assert sockets.found_by("merge") == ({"search_aliases": ["merge"]} if known else {})
