"""Rows of one batch that run through different adapters, without patching anything."""

import copy
from unittest import mock

import pytest
import torch
import toy
from torch import nn

from iteris_core import Adapter, CalibrationError, LowRankDelta, Network, Sample, Task
from iteris_core.rows import wearing as wearing_of
from iteris_core.rows.chunks import split_into_chunks
from iteris_core.rows.wearing import DeltaCache, as_worn, layer_hooks, wearing

ANY = Network({}, lambda rows: None)  # all rows may share a call


@pytest.mark.parametrize("name", ["stack", "attention", "convolution"])
def test_wearing_is_patching_row_by_row(name):
    net = toy.build(name)
    adapters = [
        net.adapter("a"),
        net.adapter("b", rank=1),
        net.adapter("part", paths=net.targets[:2]),
    ]
    mixes = [{}, {0: 1.0}, {0: 0.5, 1: -2.0}, {}, {2: 1.0}, {0: 1.0}, {1: 0.0}]
    rows = [net.make_row() for _ in mixes]
    before = {key: tensor.clone() for key, tensor in net.model.state_dict().items()}
    with wearing(net.network().modules, adapters, mixes):
        found = toy.run(net.model, rows)
        again = toy.run(net.model, rows)
    shapes = {
        path: tuple(net.model.get_submodule(path).weight.flatten(1).shape) for path in net.targets
    }
    for i, mix in enumerate(mixes):
        expected = toy.run(toy.patched(net.model, toy.mixed(adapters, mix, shapes)), [rows[i]])[0]
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, again)
    assert toy.hook_count(net.model) == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in net.model.state_dict().items())
    torch.testing.assert_close(toy.run(net.model, rows)[0], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 3])
def test_rows_wear_what_has_no_room_to_stay_on_the_device(kept):
    net = toy.build("stack")
    adapters = [net.adapter("a"), net.adapter("b", rank=5)]
    mixes = [{0: 1.0}, {1: 0.5}]
    rows = [net.make_row() for _ in mixes]
    made = []

    def seen(cache):
        with (
            mock.patch.object(
                wearing_of, "as_worn", lambda *a: made.append(as_worn(*a)) or made[-1]
            ),
            wearing(net.network().modules, adapters, mixes, cache),
        ):
            return toy.run(net.model, rows)

    expected = seen(DeltaCache())
    of_call = len(made)
    room = sum(delta.up.nbytes + delta.down.nbytes for delta in made[:kept])
    made.clear()
    cache = DeltaCache(room)
    for _ in range(2):
        assert torch.equal(seen(cache), expected)
    assert len(made) == 2 * of_call - kept
    assert sum(d.up.nbytes + d.down.nbytes for d in cache._kept.values()) <= room


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_hooks_change_what_a_layer_made_in_place_and_a_copy_of_everything_else(mode):
    class Layer(nn.Linear):
        """Keeps what it returns, made by a function of its input and of what it computes."""

        def __init__(self, returns):
            super().__init__(3, 3)
            self.returns = returns

        def forward(self, x):
            self.returned = self.returns(x, super().forward(x))
            return self.returned

    def frozen(x, made):
        with torch.inference_mode():
            return made.clone()

    kept = torch.randn(2, 4, 3)
    with mode():
        for returns, is_own in (
            (lambda x, made: made, True),
            (lambda x, made: x, False),
            (lambda x, made: x.detach(), False),
            (lambda x, made: kept[:1], False),
            (frozen, mode is torch.inference_mode),
        ):
            layer = Layer(returns)
            x = torch.randn(1, 4, 3)
            before = x.clone(), kept.clone()
            with layer_hooks({"layer": layer}, lambda path, module, x, y: y.add_(1)):
                found = layer(x)
            assert (found.data_ptr() == layer.returned.data_ptr()) is is_own
            assert torch.equal(found, returns(x, layer.returned) + (0 if is_own else 1))
            assert torch.equal(x, before[0]) and torch.equal(kept, before[1])


class Folding(nn.Module):
    """Cuts each row into single tokens for its second layer, as Krea 2 does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x):
        rows, tokens, width = x.shape
        return self.second(self.first(x).tanh().reshape(rows * tokens, 1, width)).reshape(
            rows, tokens, 3
        )


def folding():
    torch.manual_seed(0)
    model = Folding().double().requires_grad_(False)
    network = Network(
        {"first": model.first, "second": model.second},
        lambda rows: model(torch.stack(list(rows))),
        folds_rows=lambda path: path == "second",
    )

    def delta(d_out):
        return LowRankDelta(torch.randn(d_out, 1).double(), torch.randn(1, 4).double())

    adapters = [Adapter(name, {"first": delta(4), "second": delta(3)}) for name in "ab"]
    return model, network, adapters


def test_rows_of_a_layer_that_folds_them_wear_their_own():
    model, network, adapters = folding()
    rows = [torch.randn(5, 4).double() for _ in range(3)]
    mixes = [{0: 1.0}, {}, {1: 0.5}]
    with wearing(network.modules, adapters, mixes, folds_rows=network.folds_rows):
        found = network.forward(rows)
    for row, mix, answer in zip(rows, mixes, found, strict=True):
        patched = copy.deepcopy(model)
        for k, share in mix.items():
            for path, delta in adapters[k].deltas.items():
                patched.get_submodule(path).weight += share * delta.dense()
        torch.testing.assert_close(answer, patched(row[None])[0])


def test_a_teacher_and_a_student_that_cannot_share_a_call_are_refused():
    task = Task("sks dog in scenes", [Sample("long", "s")], {})
    with pytest.raises(CalibrationError, match="'sks dog in scenes' read texts that cannot share"):
        split_into_chunks([task], 2, Network({}, lambda rows: None, call_key=len))


@pytest.mark.parametrize("numbers", [[0, 2], [-1, 0]])
def test_tokens_that_the_teacher_does_not_have_are_refused(numbers):
    sample = Sample("x", teacher_tokens={"text": torch.tensor(numbers)})
    (chunk,) = split_into_chunks([Task("a", [sample], {})], 1, ANY)
    said = r"layer 'layer' sees 2 tokens a row.*for the stream 'text'.*from 0 to 1"
    with pytest.raises(CalibrationError, match=said):
        chunk.blocks[0].teacher_tokens("text", 2, "layer")
