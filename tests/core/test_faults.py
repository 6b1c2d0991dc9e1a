"""What goes wrong at any call of any layer of a network leaves nothing behind."""

import gc
import itertools

import pytest
import torch
import toy
from faults import KINDS, Moments, factors_of, hooks_of, same_tensors, torch_modes, weights_of

from iteris_core import merge

pytestmark = pytest.mark.slow

WAYS = {
    "one sample a call": {"samples_per_chunk": 1},
    "all samples in one call": {"samples_per_chunk": 100, "target": "full_output"},
    "the paper's iteration": {"engine": "iterate", "max_iter": 2, "samples_per_chunk": 2},
    "a rival": {"method": "regmean", "samples_per_chunk": 2},
}


class Merge:
    """A merge of a small network that can be made again, and goes wrong at a moment."""

    def __init__(self, name, settings):
        self.net = toy.build(name)
        self.adapters = [self.net.adapter("a"), self.net.adapter("b")]
        self.tasks = toy.own_tasks(self.net, self.adapters, samples=2)
        self.config = toy.exact(**settings)
        self.layers = {self.net.model.get_submodule(path): path for path in self.net.targets}

    def forward(self, rows):
        """Run rows in modes that the network switches on for itself, as ComfyUI and pipelines do."""
        with torch.set_grad_enabled(not self.grad), torch.autocast("cpu", torch.bfloat16):
            return toy.run(self.net.model, rows)

    def run(self, moments):
        self.grad = torch.is_grad_enabled()
        with moments.watched():
            return merge(
                self.net.network(self.forward),
                self.adapters,
                self.tasks,
                self.config,
                progress=lambda *_: moments.reached(),
            )

    def __call__(self):
        moments = Moments(self.layers, None)
        return self.run(moments), moments.all

    def goes_wrong(self, number, kind):
        """Return how many forward calls still wait afterwards."""
        moments = Moments(self.layers, (number, kind))
        with pytest.raises(kind.ends_in):
            self.run(moments)
        gc.collect(0)
        return moments.waiting()


@pytest.mark.parametrize(
    ("name", "way"), zip(["attention", "convolution", "stack", "attention"], WAYS, strict=True)
)
def test_a_fault_leaves_the_network_as_it_was_and_the_next_merge_the_same(name, way):
    merged = Merge(name, WAYS[way])
    model = merged.net.model
    before = {key: tensor.clone() for key, tensor in weights_of(model).items()}
    modes = torch_modes()
    result, moments = merged()
    assert {moment.path for moment in moments} == {*merged.net.targets, ""}
    kinds = itertools.cycle(KINDS.values())
    for moment, kind in zip(moments, kinds, strict=False):
        assert merged.goes_wrong(moment.number, kind) == 0
        assert hooks_of(model) == 0
        assert torch_modes() == modes
        assert same_tensors(weights_of(model), before)
        if moment.number % 4 == 0:
            assert same_tensors(factors_of(merged()[0]), factors_of(result))


def test_modes_that_were_on_are_on_afterwards():
    merged = Merge("attention", WAYS["one sample a call"])
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=True):
        modes = torch_modes()
        for kind in KINDS.values():
            merged.goes_wrong(5, kind)
            assert torch_modes() == modes
    assert torch_modes() != modes
