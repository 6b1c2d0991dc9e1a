"""Advanced inputs and words of a search, on hosts that know them and on those that do not."""

from dataclasses import make_dataclass
from types import SimpleNamespace

import pytest
from iteris_pack.nodes import sockets


def test_inputs_are_marked_as_advanced_whether_the_host_knows_the_mark_or_not():
    before = SimpleNamespace(extra_dict={})
    since = SimpleNamespace(extra_dict={}, advanced=None)
    assert sockets.advanced(before, since) == (before, since)
    assert before.extra_dict == {"advanced": True}
    assert since.advanced and not since.extra_dict


@pytest.mark.parametrize("known", [True, False])
def test_a_node_is_found_by_other_words_only_where_the_host_knows_them(monkeypatch, known):
    schema = make_dataclass("Schema", ["node_id", *(["search_aliases"] if known else [])])
    monkeypatch.setattr(sockets.io, "Schema", schema)
    assert sockets.found_by("merge") == ({"search_aliases": ["merge"]} if known else {})
