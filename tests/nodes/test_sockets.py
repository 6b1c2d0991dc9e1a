"""Inputs that grow and advanced inputs, on hosts that know them and on those that do not."""

import types
from dataclasses import make_dataclass

import pytest
from iteris_pack.nodes import sockets


def test_an_older_host_has_no_inputs_that_grow(monkeypatch):
    monkeypatch.delattr(sockets.io, "Autogrow", raising=False)
    assert sockets.growing("more", None, "") == []


def test_a_newer_host_is_asked_for_optional_inputs_that_grow(monkeypatch):
    autogrow = types.SimpleNamespace(
        TemplatePrefix=lambda *told: told, Input=lambda *told, **more: (*told, more)
    )
    monkeypatch.setattr(sockets.io, "Autogrow", autogrow, raising=False)
    socket = types.SimpleNamespace(Input=lambda name, **told: (name, told))
    [(name, template, told)] = sockets.growing("more", socket, "more of them")
    assert (name, told) == ("more", {"optional": True, "tooltip": "more of them"})
    assert template[:3] == (("loras", {"optional": True, "tooltip": "more of them"}), "loras", 0)


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
