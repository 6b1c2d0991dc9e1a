"""Precision, few tokens, shared inputs: what must not change the answer does not."""

from dataclasses import replace

import pytest
import torch
import toy
from torch.utils._python_dispatch import TorchDispatchMode

from iteris_core import (
    Adapter,
    ConfigError,
    LowRankDelta,
    MergeConfig,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.algebra.moments import Sums
from iteris_core.rows.lockstep import pause

# its answer needs no cut, and can be solved for on fewer tokens than the layer is wide
DELTA = MergeConfig(unit_gain=1.0, target="delta")


def wide_layer(dtype, tokens):
    """One Linear whose inputs have outlier channels and a decaying spectrum, as a transformer's have."""
    d_in, d_out = 96, 48
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(d_in, d_out).to(dtype).requires_grad_(False)
    scale = torch.logspace(0, -2, d_in)
    scale[:2] = 100.0
    inputs = [
        (torch.randn(tokens, d_in, generator=generator) * scale + 0.1).to(dtype) for _ in range(8)
    ]

    def delta():
        up = torch.randn(d_out, 4, generator=generator)
        return LowRankDelta(up, torch.randn(4, d_in, generator=generator))

    adapters = [Adapter(name, {"0": delta()}) for name in "ab"]
    tasks = [Task(name, [Sample(x) for x in inputs[k::2]], {k: 1.0}) for k, name in enumerate("ab")]
    network = Network({"0": layer}, lambda rows: layer(torch.stack(list(rows))))
    return network, adapters, tasks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [1e-3, 1e-7])
def test_the_objective_is_within_a_percent_of_float64_also_with_outlier_channels(dtype, alpha):
    network, adapters, tasks = wide_layer(dtype, tokens=300)
    config = replace(DELTA, alpha=alpha)
    found = merge(network, adapters, tasks, config).adapter.deltas["0"].to(dtype=torch.float64)
    x = [torch.cat([sample.teacher for sample in task.samples]).double() for task in tasks]
    own = [adapter.deltas["0"].to(dtype=torch.float64).dense() for adapter in adapters]
    at_layer = [toy.DenseTask(rows, rows, delta, 1.0) for rows, delta in zip(x, own, strict=True)]
    best = toy.solve_densely(torch.zeros(48, 96), at_layer, config)

    def objective(delta):
        total = 0.0
        for rows, meant in zip(x, own, strict=True):
            lam = meant.norm() ** 2 / (rows @ meant.T).norm() ** 2
            mu = alpha * (rows.T @ rows).norm()
            off = meant - delta
            total += lam * ((rows @ off.T).norm() ** 2 + mu * off.norm() ** 2)
        return total.item()

    assert objective(found.dense()) <= 1.01 * objective(best)


@pytest.mark.parametrize(
    ("samples", "length", "budget", "tokens"),
    [
        ((4, 4), 2000, 30, 750),
        ((4, 2), 2000, 30, 1500),
        ((4, 4), 512, 1, 512),  # as short as a text: read whole
        ((4, 2), 512, None, 512),
    ],
)
def test_as_many_tokens_are_measured_as_the_width_needs(samples, length, budget, tokens):
    """Of a layer that is 100 wide, evenly from the rows of the task that has fewest."""
    layer = torch.nn.Linear(100, 5).requires_grad_(False)
    network = Network({"layer": layer}, lambda rows: layer(torch.stack(list(rows))))
    delta = LowRankDelta(torch.randn(5, 2), torch.randn(2, 100))
    adapters = [Adapter(name, {"layer": delta}) for name in "ab"]
    tasks = [
        Task(name, [Sample(torch.randn(length, 100)) for _ in range(count)], {k: 1.0})
        for k, (name, count) in enumerate(zip("ab", samples, strict=True))
    ]
    result = merge(network, adapters, tasks, MergeConfig(tokens_per_dimension=budget))
    found = [task.tokens for task in result.report.layers[0].tasks]
    assert found == [count * tokens for count in samples]


@pytest.fixture
def derived(monkeypatch):
    """Let sums follow from inputs, whatever that costs; the places where chunks have waited."""
    places = []
    monkeypatch.setattr("iteris_core.engines.layer_sums._MORE_PER_TOKEN", 0)
    monkeypatch.setattr("iteris_core.engines.layer_sums._PRODUCTS", 0)
    monkeypatch.setattr(
        "iteris_core.engines.sweep.pause", lambda path: places.append(path) or pause(path)
    )
    return places


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_that_follow_from_an_input_are_those_of_its_layers(dtype, derived, monkeypatch):
    """And the layers that share an input are solved where the first of them is."""
    net, adapters, tasks = toy.three_adapters()
    weights = {"image": torch.tensor([2.0, 0.0, 1.0, *[0.5] * (toy.TOKENS - 3)])}
    tasks[0] = replace(
        tasks[0], samples=[replace(s, token_weights=weights) for s in tasks[0].samples]
    )
    net.model.to(dtype)

    def rounded(sample):
        return replace(sample, teacher=tuple(part.to(dtype) for part in sample.teacher))

    tasks = [replace(task, samples=[*map(rounded, task.samples)]) for task in tasks]
    settings = {"target": "full_output", "unit_gain": 2.0, "samples_per_chunk": 3}
    for more in ({}, {"input_mix": 0.25}, {"alpha_cross": 1e-3}):
        derived.clear()
        found = toy.merge_toy(net, adapters, tasks, **settings, **more)
        chunks = 4
        firsts = ["self_attention.q", "self_attention.o", "cross_attention.q"]
        firsts += ["cross_attention.k", "cross_attention.o", "feed_forward"]
        assert derived == [path for path in firsts for _ in range(chunks)]
        with monkeypatch.context() as never:
            never.setattr("iteris_core.engines.layer_sums.may_derive", lambda config: False)
            expected = toy.merge_toy(net, adapters, tasks, **settings, **more)
        assert len(derived) == chunks * (len(firsts) + len(net.targets))
        # rows are rounded
        bound = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.05}[dtype]
        both = (toy.dense(found.adapter), toy.dense(expected.adapter))
        assert toy.largest_error(*both) < bound, more
        for ours, theirs in zip(found.report.layers, expected.report.layers, strict=True):
            for mine, other in zip(ours.tasks, theirs.tasks, strict=True):
                close = pytest.approx(other.residual, rel=10 * bound, abs=bound)
                assert mine.residual == close


def test_a_layer_that_does_more_than_a_product_is_measured_by_its_outputs(derived):
    """Though it shares its input with layers whose sums follow from it."""
    net, adapters, tasks = toy.pair("attention", 4)
    settings = {"target": "full_output", "samples_per_chunk": 3}
    key = net.model.get_submodule("self_attention.k")
    plain = key.forward
    key.forward = lambda x: plain(x) + torch.tanh(5 * plain(x))
    found = toy.merge_toy(net, adapters, tasks, **settings)
    assert {"self_attention.q", "self_attention.k"} <= set(derived)
    assert "self_attention.v" not in derived
    expected = toy.merge_toy(net, adapters, tasks, engine="iterate", max_iter=12, **settings)
    assert toy.largest_error(toy.dense(found.adapter), toy.dense(expected.adapter)) < 1e-9


def test_sums_are_forgotten_with_the_tensors_that_they_were_measured_on(monkeypatch):
    net = toy.build("stack")
    alive = []
    adapters = [net.adapter("a"), net.adapter("b")]

    class Counted(Sums):
        count = 0

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            Counted.count += 1
            alive.append(Counted.count)

        def __del__(self):
            Counted.count -= 1

    monkeypatch.setattr("iteris_core.engines.layer_sums.Sums", Counted)
    toy.merge_toy(net, adapters, toy.own_tasks(net, adapters))
    # two tasks; the network itself keeps its input and its skip, so their sums may still be needed,
    # and this layer's
    assert max(alive) <= 2 * 3 < 2 * len(net.targets)
    assert Counted.count == 0


def test_an_input_that_was_changed_in_place_in_inference_mode_is_another_one():
    """There torch keeps no count of in-place changes, so a merge leaves it."""
    case = toy.pair("in place")
    outside = toy.dense(toy.merge_toy(*case).adapter)
    with torch.inference_mode():
        inside = toy.dense(toy.merge_toy(*case).adapter)
    assert toy.largest_error(inside, outside) == 0


def test_patches_of_a_convolution_are_bounded_and_the_answer_stays_close(monkeypatch):
    net, adapters, tasks = toy.pair("convolution", 8)
    every = toy.merge_toy(net, adapters, tasks)
    monkeypatch.setattr("iteris_core.engines.counted_tokens.PATCHES", 16 * 8)
    some = toy.merge_toy(net, adapters, tasks)
    tokens = {layer.path: layer.tasks[0].tokens for layer in some.report.layers}
    assert tokens == {"inlet": 8 * 16, "spatial": 8 * 8, "shrink": 8 * 4, "outlet": 8 * 4}
    assert toy.largest_error(toy.dense(some.adapter), toy.dense(every.adapter)) > 1e-9
    ranks = [[d.rank for d in merged.adapter.deltas.values()] for merged in (some, every)]
    assert ranks[0] == ranks[1]


def test_a_rank_of_no_layer_is_refused():
    said = "rank names 'typo', which no adapter changes; the layers are down1"
    with pytest.raises(ConfigError, match=said):
        toy.merge_toy(*toy.pair("stack"), rank={"typo": 1})


def in_one_layer(forward=None, tokens=300, **settings):
    network, adapters, tasks = wide_layer(torch.float32, tokens)
    layer = network.modules["0"]
    forward = forward or (lambda layer, x: layer(x))
    network = replace(network, forward=lambda rows: forward(layer, torch.stack(list(rows))))
    return merge(network, adapters, tasks, replace(DELTA, **settings))


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
@pytest.mark.parametrize("tokens", [300, 5])  # sums, and kept rows
def test_autocast_changes_no_digit_of_a_delta_target(engine, tokens):
    def forward(layer, x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    settings = {"engine": engine, "tokens": tokens, "alpha": 1e-2}
    plain = in_one_layer(**settings)
    inside = in_one_layer(forward, **settings)
    with torch.autocast("cpu", torch.float16):
        around = in_one_layer(**settings)
        assert torch.is_autocast_enabled("cpu")
    for cast in (inside, around):
        assert torch.equal(cast.adapter.deltas["0"].dense(), plain.adapter.deltas["0"].dense())
        assert cast.report.layers == plain.report.layers


class _Float32Products(TorchDispatchMode):
    """Notes of every product of float32 whether torch may round it."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        product = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        if product and args[0].dtype == torch.float32:
            self.allowed.append(_allowed())
        return func(*args, **(kwargs or {}))


def _allowed():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision


@pytest.fixture(params=["older", "newer"])
def rounded_products(request):
    """Float32 products may be rounded, by either of torch's switches, as another pack may set them."""
    has_newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    if request.param == "older":
        torch.set_float32_matmul_precision("high")
    elif has_newer:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        pytest.skip("this torch has no newer switches")
    yield _allowed()
    if has_newer:
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def test_rounded_products_that_are_allowed_are_not_for_ours(rounded_products):
    """They are put back at once: the model's own products run in what its user has chosen."""
    layer = torch.nn.Linear(6, 4).bfloat16().requires_grad_(False)  # its products are not float32
    adapters = [Adapter(n, {"0": LowRankDelta(torch.randn(4, 2), torch.randn(2, 6))}) for n in "ab"]
    tasks = [Task(n, [Sample(torch.randn(9, 6).bfloat16())], {k: 1.0}) for k, n in enumerate("ab")]
    seen = []

    def forward(rows):
        seen.append(_allowed())
        return layer(torch.stack(list(rows)))

    with _Float32Products() as products:
        merge(Network({"0": layer}, forward), adapters, tasks, MergeConfig())
    assert products.allowed and set(products.allowed) == {"highest"}
    assert {*seen, _allowed()} == {rounded_products} != {"highest"}


def two_layers(first, second):
    """Merge adapters of two layers that read one input, and of each layer alone."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"first": first, "second": second})
    model = model.double().requires_grad_(False)

    def delta(layer):
        d_out, d_in = layer.weight.flatten(1).shape
        return LowRankDelta(torch.randn(d_out, 2).double(), torch.randn(2, d_in).double())

    def forward(rows):
        x = torch.stack(list(rows))
        return [list(parts) for parts in zip(*(layer(x) for layer in model.values()), strict=True)]

    adapters = [Adapter(n, {path: delta(layer) for path, layer in model.items()}) for n in "ab"]
    pictures = torch.randn(6, 3, 9, 9).double().cumsum(-1)
    tasks = [Task(n, [Sample(x) for x in pictures[k::2]], {k: 1.0}) for k, n in enumerate("ab")]
    network = Network(dict(model.items()), forward)
    together = merge(network, adapters, tasks, toy.exact())
    alone = [
        merge(network, [one.select(path.__eq__) for one in adapters], tasks, toy.exact())
        for path in model
    ]
    return together, alone


def conv(*args, **settings):
    return torch.nn.Conv2d(3, 4, *args, **settings)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (conv(3, padding=1), conv(3, padding=6, dilation=6)),  # ASPP
        (conv(1), conv(1, stride=2)),  # the shortcut of a ResNet-50
        (conv(3, stride=2, padding=1), conv(1, stride=2)),  # that of a ResNet-18
        (conv(3, padding=1), conv(3, stride=2, padding=1)),
        (conv((1, 3)), conv((3, 1))),
        (conv(3), conv(3, padding=1)),
        (conv(1), torch.nn.Linear(9, 4)),
    ],
    ids=["dilation", "shortcut", "kernel", "stride", "shape", "padding", "linear"],
)
def test_layers_that_read_one_tensor_in_two_ways_have_sums_of_their_own(first, second):
    together, alone = two_layers(first, second)
    for path, result in zip(("first", "second"), alone, strict=True):
        found, expected = (one.adapter.deltas[path].dense() for one in (together, result))
        assert ((found - expected).norm() / expected.norm()).item() < 1e-12


@pytest.mark.parametrize(
    "settings",
    [{"unit_gain": 2.0}, {"engine": "iterate", "max_iter": 2}, {"method": "mix_of_show"}],
)
def test_residuals_added_in_place_change_nothing(settings):
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(16, 16) for name in ("one", "two")})
    layers = layers.double().requires_grad_(False)

    def merged(add):
        def forward(rows):
            x = torch.stack(list(rows))
            for layer in layers.values():
                x = add(x, layer(x).tanh())
            return x

        config = MergeConfig(output_dtype=torch.float64, target="delta", **settings)
        return merge(Network(dict(layers.items()), forward), adapters, tasks, config).adapter

    def delta():
        return LowRankDelta(torch.randn(16, 2).double(), torch.randn(2, 16).double() / 4)

    adapters = [Adapter(name, {path: delta() for path in layers}) for name in "ab"]
    # fewer tokens than the layer is wide, so that rows are kept
    tasks = [Task(n, [Sample(torch.randn(5, 16).double())], {k: 1.0}) for k, n in enumerate("ab")]
    found, expected = (toy.dense(merged(add)) for add in (torch.Tensor.add_, torch.add))
    assert toy.largest_error(found, expected) < 1e-9
