"""Kinds of LoRA that only the host knows: what it makes of them, and what it says if it cannot."""

import logging
import re

import pytest
import torch
from iteris_pack.nodes.foreign import added_by_host

from iteris_core import AdapterError


def added(apply):
    return added_by_host("layer", {"layer.lokr_w1": torch.ones(1)}, torch.ones(3, 2), apply)


def test_zero_is_an_answer():
    assert torch.equal(added(lambda weight: weight), torch.zeros(3, 2))
    assert torch.equal(added(lambda weight: weight.add_(2)), torch.full((3, 2), 2.0))


@pytest.mark.parametrize("verbosity", [logging.INFO, logging.CRITICAL])
def test_an_error_that_the_host_only_logs_is_raised_with_its_text(verbosity, monkeypatch):
    def fail_as_the_host_does(weight):
        logging.error("ERROR lokr layer: shapes do not fit")
        return weight

    root = logging.getLogger()
    monkeypatch.setattr(root, "level", verbosity)
    handlers = list(root.handlers)
    said = r"has lokr_w1, which ComfyUI could not apply: ERROR lokr.*do not fit"
    with pytest.raises(AdapterError, match=said):
        added(fail_as_the_host_does)
    assert (root.level, root.handlers) == (verbosity, handlers)


def test_what_the_host_raises_does_not_know_or_reshapes_is_explained():
    def fail(weight):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    for apply, message in (
        (fail, "has lokr_w1, which ComfyUI could not apply: AttributeError: 'NoneType'"),
        (lambda weight: None, "has lokr_w1, which ComfyUI does not know at this weight"),
        (lambda weight: torch.ones(4, 2), "(4, 2), but this model's weight there is (3, 2)"),
    ):
        with pytest.raises(AdapterError, match=re.escape(message)):
            added(apply)


def test_a_cancel_goes_through():
    class Interrupt(Exception):
        pass

    def cancel(weight):
        raise Interrupt

    with pytest.raises(Interrupt):
        added(cancel)
