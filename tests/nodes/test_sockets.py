"""Words of a search, on hosts that know them and on those that do not."""

from dataclasses import make_dataclass

import pytest
from iteris_pack.nodes import sockets


@pytest.mark.parametrize("known", [True, False])
def test_a_node_is_found_by_other_words_only_where_the_host_knows_them(monkeypatch, known):
    schema = make_dataclass("Schema", ["node_id", *(["search_aliases"] if known else [])])
    monkeypatch.setattr(sockets.io, "Schema", schema)
    assert sockets.found_by("merge") == ({"search_aliases": ["merge"]} if known else {})
