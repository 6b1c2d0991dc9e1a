"""Who wears what: rows of one batch that run through different adapters, without patching
anything.
"""

import copy

import pytest
import torch
import toy
from torch import nn

from iteris_core import (
    Adapter,
    CalibrationError,
    LowRankDelta,
    MergeConfig,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.network import in_calls
from iteris_core.rows.chunks import split_into_chunks
from iteris_core.rows.wearing import layer_hooks, wearing, worn_delta

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


def test_rows_are_told_apart_by_number_not_by_what_they_read():
    net = toy.build("stack")
    row = net.make_row()
    with wearing(net.network().modules, [net.adapter()], [{0: 1.0}, {}, {0: 1.0}]):
        dressed, bare, again = toy.run(net.model, [row, row, row])
    torch.testing.assert_close(dressed, again)
    torch.testing.assert_close(bare, toy.run(net.model, [row])[0])
    assert not torch.allclose(dressed, bare)


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_of_another_size_is_refused(count):
    net = toy.build("convolution")
    with (
        pytest.raises(
            CalibrationError,
            match=f"layer 'inlet' got {count} rows in a batch of 2.*leave this layer out",
        ),
        wearing(net.network().modules, [net.adapter()], [{0: 1.0}, {}]),
    ):
        toy.run(net.model, [net.make_row() for _ in range(count)])
    assert toy.hook_count(net.model) == 0


def test_an_exception_inside_leaves_nothing_behind():
    net = toy.build("attention")
    with (
        pytest.raises(KeyboardInterrupt),
        wearing(net.network().modules, [net.adapter()], [{0: 1.0}]),
    ):
        assert toy.hook_count(net.model) == len(net.targets)
        raise KeyboardInterrupt
    assert toy.hook_count(net.model) == 0


def test_a_module_that_takes_no_hook_leaves_none_on_the_others():
    class Stubborn(nn.Linear):
        def register_forward_hook(self, *args, **kwargs):
            raise RuntimeError("no hooks")

    first = nn.Linear(2, 2)
    with (
        pytest.raises(RuntimeError, match="no hooks"),
        layer_hooks({"first": first, "second": Stubborn(2, 2)}, lambda *_: None),
    ):
        pytest.fail("never entered")
    assert not first._forward_hooks


def test_hooks_see_path_module_input_and_output_and_replace_the_output():
    layers = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    seen = []

    def hook(path, module, x, y):
        seen.append((path, module is layers[path], torch.equal(y, module.forward(x))))
        return y + 1

    x = torch.ones(1, 2)
    expected = layers["b"](layers["a"](x) + 1) + 1
    with layer_hooks(layers, hook):
        found = layers["b"](layers["a"](x))
    assert seen == [("a", True, True), ("b", True, True)]
    torch.testing.assert_close(found, expected)


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


def test_a_layer_may_get_its_input_by_keyword():
    net = toy.build("stack")
    x = net.make_row()[0][None]
    plain = net.model.down1(x)
    with wearing(net.network().modules, [net.adapter()], [{0: 1.0}]):
        by_keyword = net.model.down1(input=x)
        assert torch.equal(by_keyword, net.model.down1(x))
    assert not torch.equal(by_keyword, plain)


def test_a_mix_is_one_delta_of_what_changes_the_layer():
    net = toy.build("stack")
    adapters = [net.adapter("a", paths=["down1"]), net.adapter("b", paths=["down1", "up2"])]
    assert worn_delta("up2", adapters, {0: 1.0}) is None
    assert worn_delta("down1", adapters, {0: 0.0, 1: 0.0}) is None
    assert worn_delta("down1", adapters, {}) is None
    both = worn_delta("down1", adapters, {1: -0.5, 0: 2.0})
    expected = 2 * adapters[0].deltas["down1"].dense() - 0.5 * adapters[1].deltas["down1"].dense()
    torch.testing.assert_close(both.delta.dense(), expected)
    # in the order of the mix, so that nobody has to count
    for k, share in ((1, -0.5), (0, 2.0)):
        own = adapters[k].deltas["down1"]
        torch.testing.assert_close(both.delta.up[:, both.slices[k]], share * own.up)
        assert torch.equal(both.delta.down[both.slices[k]], own.down)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_chunks_hold_every_sample_once_teachers_before_students(size):
    tasks = [
        Task("a", [Sample(f"a{i}", f"A{i}") for i in range(3)], {}),
        Task("b", [Sample("b0"), Sample("b1", "B1")], {}),
    ]
    chunks = split_into_chunks(tasks, size, ANY)
    assert [len(chunk.samples) for chunk in chunks] == [size] * (5 // size) + [5 % size] * (
        5 % size > 0
    )
    seen = {0: [], 1: []}
    for chunk in chunks:
        for block in chunk.blocks:
            pairs = zip(chunk.inputs[block.teacher], chunk.inputs[block.student], strict=True)
            seen[block.task].extend(pairs)
            assert len(block.samples) == block.teacher.stop - block.teacher.start
    assert seen == {0: [("a0", "A0"), ("a1", "A1"), ("a2", "A2")], 1: [("b0", "b0"), ("b1", "B1")]}


def test_rows_of_one_key_share_a_chunk_and_keep_their_numbers():
    tasks = [
        Task("a", [Sample(text) for text in ("xx", "y", "zz", "w")], {}),
        Task("b", [Sample("v")], {}),
    ]
    chunks = split_into_chunks(tasks, 2, Network({}, lambda rows: None, call_key=len))
    assert [chunk.inputs[: len(chunk.samples)] for chunk in chunks] == [
        ["xx", "zz"],
        ["y", "w"],
        ["v"],
    ]
    assert [[(block.task, block.numbers) for block in chunk.blocks] for chunk in chunks] == [
        [(0, (0, 2))],
        [(0, (1, 3))],
        [(1, (0,))],
    ]


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
    """Return such a network in double precision, and two adapters of both layers."""
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


def test_without_being_told_so_such_a_layer_is_refused():
    _, network, adapters = folding()
    rows = [torch.randn(5, 4).double()] * 2
    with (
        wearing(network.modules, adapters, [{0: 1.0}] * 2),
        pytest.raises(CalibrationError, match="10 rows"),
    ):
        network.forward(rows)


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
def test_one_adapter_merges_to_itself_through_such_a_layer(engine):
    _, network, adapters = folding()
    samples = [Sample(torch.randn(5, 4).double()) for _ in range(5)]
    config = MergeConfig(
        target="delta", engine=engine, samples_per_chunk=2, output_dtype=torch.float64
    )
    merged = merge(network, adapters[:1], [Task("a", samples, {0: 1.0})], config).adapter
    for path, delta in adapters[0].deltas.items():
        torch.testing.assert_close(merged.deltas[path].dense(), delta.dense())


def test_a_teacher_and_a_student_that_cannot_share_a_call_are_refused():
    task = Task("sks dog in scenes", [Sample("long", "s")], {})
    with pytest.raises(CalibrationError, match="'sks dog in scenes' read texts that cannot share"):
        split_into_chunks([task], 2, Network({}, lambda rows: None, call_key=len))


def test_calls_hold_one_key_in_order_and_no_more_than_allowed():
    assert in_calls("abacaaa", 2) == [[0, 2], [4, 5], [6], [1], [3]]
    assert in_calls("", 3) == []


def test_token_weights_of_a_stream_that_some_samples_do_not_name_are_1_there():
    weights = torch.tensor([0.0, 2.0])
    (chunk,) = split_into_chunks(
        [Task("a", [Sample("x", token_weights={"text": weights}), Sample("y")], {})], 2, ANY
    )
    (block,) = chunk.blocks
    assert block.token_weights("text", 2, "layer").tolist() == [0.0, 2.0, 1.0, 1.0]
    assert block.token_weights("image", 2, "layer") is None


def test_token_weights_may_be_a_function_of_a_layers_number_of_tokens():
    samples = [
        Sample("x", token_weights={"image": torch.arange}),
        Sample("y"),
    ]
    (chunk,) = split_into_chunks([Task("a", samples, {})], 2, ANY)
    (block,) = chunk.blocks
    assert block.token_weights("image", 3, "layer").tolist() == [0, 1, 2, 1, 1, 1]
    assert block.token_weights("image", 2, "layer").tolist() == [0, 1, 1, 1]


def test_teachers_tokens_of_a_stream_that_some_samples_do_not_name_are_the_students():
    samples = [
        Sample("x", teacher_tokens={"text": torch.tensor([1, 1])}),
        Sample("y", teacher_tokens={"text": lambda tokens: torch.arange(tokens).flip(0)}),
        Sample("z"),
    ]
    (chunk,) = split_into_chunks([Task("a", samples, {})], 3, ANY)
    (block,) = chunk.blocks
    assert block.teacher_tokens("text", 2, "layer").tolist() == [[1, 1], [1, 0], [0, 1]]
    assert block.teacher_tokens("image", 2, "layer") is None


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, 2], [-1, 0]])
def test_tokens_that_the_teacher_does_not_have_are_refused(numbers):
    sample = Sample("x", teacher_tokens={"text": torch.tensor(numbers)})
    (chunk,) = split_into_chunks([Task("a", [sample], {})], 1, ANY)
    with pytest.raises(
        CalibrationError,
        match=r"layer 'layer' sees 2 tokens a row.*for the stream 'text'.*from 0 to 1",
    ):
        chunk.blocks[0].teacher_tokens("text", 2, "layer")


def test_a_function_with_another_number_of_weights_is_refused():
    (chunk,) = split_into_chunks(
        [Task("a", [Sample("x", token_weights={"image": lambda tokens: torch.ones(5)})], {})],
        1,
        ANY,
    )
    with pytest.raises(
        CalibrationError,
        match=r"layer 'layer' sees 4 tokens a row, but a sample has \(5,\) token weights",
    ):
        chunk.blocks[0].token_weights("image", 4, "layer")
