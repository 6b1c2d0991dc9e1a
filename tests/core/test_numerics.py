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
from iteris_core.algebra.statistics import InputMoments, Sums
from iteris_core.rows.lockstep import pause_at_layer

DELTA = MergeConfig(
    unit_gain=1.0, target="delta"
)  # whose answer needs no cut, and can be solved for on fewer tokens than the layer is wide


def wide_layer(dtype, tokens, outliers=100.0, d_in=96, d_out=48):
    """One Linear whose inputs have two outlier channels and a decaying spectrum, as a transformer's
    have.
    """
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(d_in, d_out).to(dtype).requires_grad_(False)
    scale = torch.logspace(0, -2, d_in)
    scale[:2] = outliers
    inputs = [
        (torch.randn(tokens, d_in, generator=generator) * scale + 0.1).to(dtype) for _ in range(8)
    ]
    adapters = [
        Adapter(
            name,
            {
                "0": LowRankDelta(
                    torch.randn(d_out, 4, generator=generator),
                    torch.randn(4, d_in, generator=generator),
                )
            },
        )
        for name in "ab"
    ]
    tasks = [Task(name, [Sample(x) for x in inputs[k::2]], {k: 1.0}) for k, name in enumerate("ab")]
    network = Network({"0": layer}, lambda rows: layer(torch.stack(list(rows))))
    return network, adapters, tasks


def objective(delta, tasks, adapters, alpha):
    """The merge's objective in float64, with the paper's lambda."""
    total = 0.0
    for task, adapter in zip(tasks, adapters, strict=True):
        x = torch.cat([sample.teacher for sample in task.samples]).double()
        own = adapter.deltas["0"].to(dtype=torch.float64).dense()
        lam = own.norm() ** 2 / (x @ own.T).norm() ** 2
        mu = alpha * (x.T @ x).norm()
        total += lam * ((x @ (own - delta).T).norm() ** 2 + mu * (own - delta).norm() ** 2)
    return total.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [1e-3, 1e-7])
def test_the_objective_is_within_a_percent_of_float64_also_with_outlier_channels(dtype, alpha):
    network, adapters, tasks = wide_layer(dtype, tokens=300)
    found = (
        merge(network, adapters, tasks, replace(DELTA, alpha=alpha))
        .adapter.deltas["0"]
        .to(dtype=torch.float64)
        .dense()
    )
    normal = torch.zeros(96, 96).double()
    right = torch.zeros(96, 48).double()
    for task, adapter in zip(tasks, adapters, strict=True):
        x = torch.cat([sample.teacher for sample in task.samples]).double()
        own = adapter.deltas["0"].to(dtype=torch.float64).dense()
        lam = own.norm() ** 2 / (x @ own.T).norm() ** 2
        gram = x.T @ x
        gram += alpha * gram.norm() * torch.eye(96).double()
        normal = normal + lam * gram
        right = right + lam * gram @ own.T
    best = torch.linalg.solve(normal, right).T
    assert objective(found, tasks, adapters, alpha) <= 1.01 * objective(
        best, tasks, adapters, alpha
    )


@pytest.mark.parametrize("tokens", [1, 11])
def test_fewer_tokens_than_width_give_the_same_answer_as_the_gram_matrix(monkeypatch, tokens):
    network, adapters, tasks = wide_layer(torch.float64, tokens)
    few = merge(network, adapters, tasks, replace(DELTA, alpha=1e-6, output_dtype=torch.float64))
    monkeypatch.setattr("iteris_core.engines.measure.token_count", lambda module, x: 10**6)
    gram = merge(network, adapters, tasks, replace(DELTA, alpha=1e-6, output_dtype=torch.float64))
    torch.testing.assert_close(
        few.adapter.deltas["0"].dense(), gram.adapter.deltas["0"].dense(), rtol=1e-6, atol=1e-7
    )
    for mine, theirs in zip(few.report.layers[0].tasks, gram.report.layers[0].tasks, strict=True):
        assert mine.residual == pytest.approx(theirs.residual, rel=1e-4, abs=1e-6)
        assert mine.weight == pytest.approx(theirs.weight, rel=1e-9)


def test_a_task_with_a_zero_delta_counts_as_base_rows():
    network, adapters, tasks = wide_layer(torch.float64, tokens=40)
    zero = Adapter("b", {"0": LowRankDelta(torch.zeros(48, 4), torch.randn(4, 96))})
    result = merge(network, [adapters[0], zero], tasks, replace(DELTA, output_dtype=torch.float64))
    base = merge(
        network,
        adapters[:1],
        [tasks[0], Task("b", tasks[1].samples, {})],
        replace(DELTA, output_dtype=torch.float64),
    )
    torch.testing.assert_close(
        result.adapter.deltas["0"].dense(), base.adapter.deltas["0"].dense(), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(
    ("samples", "length", "budget", "tokens"),
    [
        ((4, 4), 2000, 30, 750),
        ((4, 2), 2000, 30, 1500),
        ((4, 4), 512, 1, 512),  # as short as a text: read whole
    ],
)
def test_as_many_tokens_are_measured_as_the_width_needs(samples, length, budget, tokens):
    """Of a layer that is 100 wide, evenly from the rows of the task that has fewest."""
    layer = torch.nn.Linear(100, 5).double().requires_grad_(False)
    network = Network({"layer": layer}, lambda rows: layer(torch.stack(list(rows))))
    adapters = [
        Adapter(
            name,
            {"layer": LowRankDelta(torch.randn(5, 2).double(), torch.randn(2, 100).double())},
        )
        for name in "ab"
    ]
    tasks = [
        Task(
            adapter.name,
            [Sample(torch.randn(length, 100).double()) for _ in range(count)],
            {k: 1.0},
        )
        for k, (adapter, count) in enumerate(zip(adapters, samples, strict=True))
    ]
    result = merge(network, adapters, tasks, MergeConfig(tokens_per_dimension=budget))
    found = [task.tokens for task in result.report.layers[0].tasks]
    assert found == [count * tokens for count in samples]
    assert min(found) >= min(budget * 100, length * min(samples))
    every = merge(network, adapters, tasks, MergeConfig(tokens_per_dimension=None))
    assert [t.tokens for t in every.report.layers[0].tasks] == [length * count for count in samples]


def count_measured_inputs(monkeypatch):
    sizes = []
    original = InputMoments.add
    monkeypatch.setattr(
        InputMoments, "add", lambda self, *rows: (sizes.append(self.d_in), original(self, *rows))[1]
    )
    return sizes


def test_layers_that_read_one_tensor_measure_it_once(monkeypatch):
    net, adapters, tasks = toy.pair("attention", 2)
    sizes = count_measured_inputs(monkeypatch)
    toy.merge_toy(net, adapters, tasks, samples_per_chunk=1)
    # self q,k,v | o | cross q | k,v | o | feed-forward: six inputs of nine layers
    assert len(sizes) == 6 * 4


@pytest.fixture
def derived(monkeypatch):
    """Let the sums of every layer follow from its input, whatever that costs; the places where
    chunks have waited.
    """
    places = []
    monkeypatch.setattr("iteris_core.engines.measure._MORE_PER_TOKEN", 0)
    monkeypatch.setattr("iteris_core.engines.measure._PRODUCTS", 0)
    monkeypatch.setattr(
        "iteris_core.engines.sweep.pause_at_layer",
        lambda path, *others: places.append(path) or pause_at_layer(path, *others),
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
    tasks = [
        replace(
            task,
            samples=[
                replace(s, teacher=tuple(part.to(dtype) for part in s.teacher))
                for s in task.samples
            ],
        )
        for task in tasks
    ]
    settings = {"target": "full_output", "unit_gain": 2.0, "samples_per_chunk": 3}
    for more in ({}, {"input_mix": 0.25}, {"alpha_cross": 1e-3}):
        derived.clear()
        found = toy.merge_toy(net, adapters, tasks, **settings, **more)
        chunks = 4
        firsts = ["self_attention.q", "self_attention.o", "cross_attention.q"]
        firsts += ["cross_attention.k", "cross_attention.o", "feed_forward"]
        assert derived == [path for path in firsts for _ in range(chunks)]
        with monkeypatch.context() as never:
            never.setattr("iteris_core.engines.measure.may_derive", lambda config: False)
            expected = toy.merge_toy(net, adapters, tasks, **settings, **more)
        assert len(derived) == chunks * (len(firsts) + len(net.targets))
        bound = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.05}[
            dtype
        ]  # rows are rounded
        both = (toy.dense(found.adapter), toy.dense(expected.adapter))
        assert toy.largest_error(*both) < bound, more
        for ours, theirs in zip(found.report.layers, expected.report.layers, strict=True):
            for mine, other in zip(ours.tasks, theirs.tasks, strict=True):
                figures = [(t.residual, t.stacked, t.averaged, t.gain or 0) for t in (mine, other)]
                assert figures[0] == pytest.approx(figures[1], rel=10 * bound, abs=bound)


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

    monkeypatch.setattr("iteris_core.engines.measure.Sums", Counted)
    toy.merge_toy(net, adapters, toy.own_tasks(net, adapters))
    # two tasks; the network itself keeps its input and its skip, so their sums may still be needed,
    # and this layer's
    assert max(alive) <= 2 * 3 < 2 * len(net.targets)
    assert Counted.count == 0


def test_an_input_that_was_changed_in_place_in_inference_mode_is_another_one():
    """There torch keeps no count of in-place changes, so a merge leaves it."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4)
            self.second = torch.nn.Linear(4, 4)

        def forward(self, x):
            x = x + 0
            x += self.first(x).tanh()
            return self.second(x)

    model = Residual().requires_grad_(False)
    adapter = Adapter(
        "a", {p: LowRankDelta(torch.randn(4, 2), torch.randn(2, 4)) for p in ("first", "second")}
    )
    network = Network(dict(model.named_modules()), lambda rows: model(torch.stack(list(rows))))
    tasks = [Task("a", [Sample(torch.randn(9, 4))], {0: 1.0})]
    with torch.inference_mode():
        inside = merge(network, [adapter], tasks).adapter
    outside = merge(network, [adapter], tasks).adapter
    for path, delta in outside.deltas.items():
        assert torch.equal(inside.deltas[path].up, delta.up), path


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
def test_a_task_whose_tokens_do_not_count_in_a_stream_has_no_say_there(engine):
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    own = toy.own_tasks(net, adapters)
    silent = [
        Sample(sample.teacher, token_weights={"image": torch.zeros(4)}) for sample in net.samples(2)
    ]
    only_text = Task("words", silent, {0: 1.0})
    found = toy.merge_toy(net, adapters, [*own, only_text], engine=engine)
    without = toy.merge_toy(net, adapters, own, engine=engine)
    image = "self_attention.q"
    text = "cross_attention.k"
    assert torch.equal(found.adapter.deltas[image].dense(), without.adapter.deltas[image].dense())
    assert (found.adapter.deltas[text].dense() - without.adapter.deltas[text].dense()).norm() > 1e-6
    counted = {layer.path: [entry.task for entry in layer.tasks] for layer in found.report.layers}
    assert "words" not in counted[image] and "words" in counted[text]


def test_patches_of_a_convolution_are_bounded_and_the_answer_stays_close():
    net, adapters, tasks = toy.pair("convolution", 8)
    every = toy.merge_toy(net, adapters, tasks)
    some = toy.merge_toy(net, adapters, tasks, patches=16 * 8)
    tokens = {layer.path: layer.tasks[0].tokens for layer in some.report.layers}
    assert tokens == {"inlet": 8 * 16, "spatial": 8 * 8, "shrink": 8 * 4, "outlet": 8 * 4}
    assert toy.largest_error(toy.dense(some.adapter), toy.dense(every.adapter)) > 1e-9
    assert [delta.rank for delta in some.adapter.deltas.values()] == [
        delta.rank for delta in every.adapter.deltas.values()
    ]


def test_ranks_and_sizes_that_cannot_be_are_refused():
    net, adapters, tasks = toy.pair("stack")
    with pytest.raises(
        ConfigError, match=r"rank names 'typo', which no adapter changes; the layers are down1"
    ):
        toy.merge_toy(net, adapters, tasks, rank={"typo": 1})
    with pytest.raises(
        ConfigError, match=r"size is 10; 5 layers of rank 1 take \d+ weights already"
    ):
        toy.merge_toy(net, adapters, tasks, size=10)


# --- statistics keep their precision under autocast ---


def in_one_layer(forward=None, **settings):
    """Merge two adapters of one wide layer whose inputs have a mean and outliers."""
    network, adapters, tasks = wide_layer(torch.float32, tokens=300)
    layer = network.modules["0"]
    forward = forward or (lambda layer, x: layer(x))
    network = replace(network, forward=lambda rows: forward(layer, torch.stack(list(rows))))
    return merge(network, adapters, tasks, replace(DELTA, **settings))


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
@pytest.mark.parametrize("tokens_per_row", [None, 5])  # sums, and kept rows
def test_autocast_changes_no_digit_of_a_delta_target(engine, tokens_per_row):
    def forward(layer, x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    settings = {"engine": engine, "tokens_per_row": tokens_per_row, "alpha": 1e-2}
    plain = in_one_layer(**settings)
    inside = in_one_layer(forward, **settings)
    with torch.autocast("cpu", torch.float16):
        around = in_one_layer(**settings)
        assert torch.is_autocast_enabled("cpu")
    for cast in (inside, around):
        assert torch.equal(cast.adapter.deltas["0"].dense(), plain.adapter.deltas["0"].dense())
        assert cast.report.layers == plain.report.layers


def test_base_weights_are_read_as_the_model_reads_them_under_autocast():
    def forward(layer, x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x.bfloat16())

    cast = in_one_layer(forward, balance="full", alpha=1e-2)
    plain = in_one_layer(lambda layer, x: layer(x.bfloat16().float()), balance="full", alpha=1e-2)
    a, b = (result.adapter.deltas["0"].dense() for result in (cast, plain))
    assert ((a - b).norm() / b.norm()).item() < 1e-2


# --- and where another pack has allowed rounded products ---


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


def _newer_switch():
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the older switch alone")
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.fixture
def put_back():
    yield
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "switch",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        _newer_switch,
    ],
)
def test_rounded_products_that_are_allowed_are_not_for_ours(put_back, switch):
    """They are put back at once: the model's own products run in what its user has chosen."""
    switch()
    before = _allowed()
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
    assert {*seen, _allowed()} == {before} != {"highest"}


# --- layers that read one tensor, each in its own way ---


def two_layers(first, second, channels=3):
    """Merge two adapters of a network in which both layers read its input, and of each layer
    alone.
    """
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"first": first, "second": second})
    model = model.double().requires_grad_(False)
    adapters = []
    for name in "ab":
        deltas = {}
        for path, layer in model.items():
            d_out, d_in = layer.weight.flatten(1).shape
            deltas[path] = LowRankDelta(
                torch.randn(d_out, 2).double(), torch.randn(2, d_in).double()
            )
        adapters.append(Adapter(name, deltas))
    pictures = torch.randn(6, channels, 9, 9).double().cumsum(-1)
    tasks = [
        Task(name, [Sample(x) for x in pictures[k::2]], {k: 1.0}) for k, name in enumerate("ab")
    ]

    def forward(rows):
        x = torch.stack(list(rows))
        return [list(parts) for parts in zip(*(layer(x) for layer in model.values()), strict=True)]

    network = Network(dict(model.items()), forward)
    config = toy.exact()
    together = merge(network, adapters, tasks, config)
    alone = [
        merge(network, [one.select(path.__eq__) for one in adapters], tasks, config)
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


# --- what a model does with a tensor after a layer has read it ---


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "sweep", "target": "delta", "unit_gain": 1.0},
        {"engine": "iterate", "target": "delta", "unit_gain": 1.0},
        {"method": "ssr"},
    ],
    ids=lambda settings: settings.get("method", settings.get("engine")),
)
def test_residuals_added_in_place_change_nothing(settings):
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(16, 16) for name in ("one", "two")})
    layers = layers.double().requires_grad_(False)

    def apart(rows):
        x = torch.stack(list(rows))
        for layer in layers.values():
            x = x + layer(x).tanh()
        return x

    def in_place(rows):
        x = torch.stack(list(rows))
        for layer in layers.values():
            x += layer(x).tanh()
        return x

    adapters = [
        Adapter(
            name,
            {
                path: LowRankDelta(torch.randn(16, 2).double(), torch.randn(2, 16).double() / 4)
                for path in layers
            },
        )
        for name in "ab"
    ]
    # fewer tokens than the layer is wide, so that rows are kept
    tasks = [Task(n, [Sample(torch.randn(5, 16).double())], {k: 1.0}) for k, n in enumerate("ab")]
    found, expected = (
        merge(
            Network(dict(layers.items()), forward),
            adapters,
            tasks,
            MergeConfig(output_dtype=torch.float64, alpha=1e-2, **settings),
        ).adapter
        for forward in (in_place, apart)
    )
    for path in layers:
        torch.testing.assert_close(
            found.deltas[path].dense(), expected.deltas[path].dense(), rtol=1e-9, atol=1e-9
        )


# --- adapters that cancel ---


def cancelling_pair(dtype, scale=1.0):
    """Return adapters of which the second undoes the first, in other factors."""
    network, adapters, tasks = wide_layer(dtype, tokens=300, outliers=3.0)
    first = adapters[0].deltas["0"]
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(4)
    opposite = LowRankDelta(
        -scale * first.up @ mixing, torch.linalg.inv(mixing.double()).float() @ first.down / scale
    )
    return network, [adapters[0], Adapter("undoes", {"0": opposite})], tasks


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e4), (torch.float64, 1.0)])
def test_a_mix_that_cancels_is_a_task_that_teaches_nothing(dtype, scale):
    network, adapters, tasks = cancelling_pair(dtype, scale)
    own = Task("own", tasks[0].samples, {0: 1.0})
    both, nothing = (
        merge(network, adapters, [own, Task("both", tasks[1].samples, mix)], DELTA)
        for mix in ({0: 1.0, 1: 1.0}, {})
    )
    for found, expected in zip(
        both.report.layers[0].tasks, nothing.report.layers[0].tasks, strict=True
    ):
        assert found.weight == pytest.approx(expected.weight, rel=1e-5)
    entry = both.report.layers[0].tasks[1]
    assert entry.energy == 0.0
    assert entry.gain is None
    assert entry.residual <= 1e3


def test_an_adapter_of_tiny_factors_in_a_mix_is_no_rounding():
    """Factors of one delta may be of any scale, in opposite ways in two files."""
    network, adapters, tasks = wide_layer(torch.float64, tokens=300, outliers=3.0)
    skewed = [
        Adapter(one.name, {"0": LowRankDelta(one.deltas["0"].up * by, one.deltas["0"].down / by)})
        for one, by in zip(adapters, (1e5, 1e-5), strict=True)
    ]
    mixed = Task("both", tasks[0].samples, {0: 1.0, 1: 1.0})
    lambdas = [
        merge(network, pair, [mixed, tasks[1]], DELTA).report.layers[0].tasks[0].weight
        for pair in (adapters, skewed)
    ]
    assert lambdas[1] == pytest.approx(lambdas[0], rel=1e-4)
