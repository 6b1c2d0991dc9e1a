"""Which pictures of a comparison are kept for the next one."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from fake_host import use
from iteris_pack.nodes import kept_pictures
from iteris_pack.nodes.sockets import MergedLora

from iteris_core import Adapter
from iteris_core.diffusion.lora_use import LoadedLora

BASE, DOG, CAT, STACKED, MERGED = range(5)
How = namedtuple("How", "negative")

HOW = How("")


class Thing:
    """Anything that can be gone."""


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(kept_pictures, "_PICTURES", type(kept_pictures._PICTURES)())


def a_base():
    patcher = SimpleNamespace(patches_uuid=1)
    return SimpleNamespace(
        given=(Thing(), Thing()),
        model=patcher,
        clip=SimpleNamespace(patcher=patcher),
        texts=SimpleNamespace(learned=lambda text: ""),
    )


def a_merge(base, **loose):
    uses = [use(name, sha256=name) for name in ("dog", "cat")]
    loras = tuple(LoadedLora(each, Adapter(each.name, {})) for each in uses)
    return MergedLora(Adapter("merged", {}), base, "{}", loras, loose)


def test_pictures_of_a_lora_that_is_in_no_file_are_not_kept():
    base = a_base()
    wanted = [(way, "a dog") for way in (BASE, DOG, CAT, STACKED, MERGED)]
    keys = kept_pictures.keys_of(base, Thing(), a_merge(base, cat={}), HOW, wanted)
    assert [key is None for key in keys] == [False, False, True, True, False]
    kept_pictures.keep(None, torch.zeros(1))
    assert kept_pictures.find([None]) == {}


def test_what_is_kept_keeps_no_model_alive_and_goes_with_it():
    base, vae = a_base(), Thing()
    merges = [a_merge(base), a_merge(base)]
    for merge in merges:
        [key] = kept_pictures.keys_of(base, vae, merge, HOW, [(MERGED, "a dog")])
        kept_pictures.keep(key, torch.zeros(1))
    assert len(kept_pictures._PICTURES) == 2, "of two merges"
    del merges[0]
    [key] = kept_pictures.keys_of(base, vae, merges[0], HOW, [(BASE, "a dog")])
    kept_pictures.keep(key, torch.zeros(1))
    assert len(kept_pictures._PICTURES) == 2, "of one of them, and of the base model"
    del vae
    kept_pictures.keep((), torch.zeros(1))
    assert [*kept_pictures._PICTURES] == [()]


def test_the_oldest_pictures_are_forgotten_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr(kept_pictures, "MOST_BYTES", 40)
    for name in "abc":
        kept_pictures.keep((name,), torch.zeros(4))
        kept_pictures.find([("a",)])
    assert [*kept_pictures.find([("a",), ("b",), ("c",)])] == [0, 2], (
        "one that was seen since is younger"
    )
