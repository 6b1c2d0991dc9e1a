"""Precision, few tokens, shared inputs: what must not change the answer does not."""

from dataclasses import replace

import pytest
import torch
import toy

from iteris_core import (
    Adapter,
    CalibrationError,
    ConfigError,
    LowRankDelta,
    MergeConfig,
    Network,
    Sample,
    SolveError,
    Task,
    merge,
)
from iteris_core.algebra.statistics import InputMoments, Sums

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
@pytest.mark.parametrize("alpha", [1e-3, 1e-5, 1e-7])
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


@pytest.mark.parametrize("tokens", [1, 3, 11])
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


def test_duplicate_tokens_change_nothing():
    network, adapters, tasks = wide_layer(torch.float64, tokens=20)
    doubled = [
        Task(t.name, [Sample(torch.cat([s.teacher, s.teacher])) for s in t.samples], t.mix)
        for t in tasks
    ]
    once, twice = (
        merge(network, adapters, group, replace(DELTA, output_dtype=torch.float64))
        for group in (tasks, doubled)
    )
    torch.testing.assert_close(
        once.adapter.deltas["0"].dense(), twice.adapter.deltas["0"].dense(), rtol=1e-7, atol=1e-9
    )


def test_few_tokens_without_a_ridge_are_an_error_with_advice():
    network, adapters, tasks = wide_layer(torch.float64, tokens=2)
    with pytest.raises(SolveError, match=r"layer '0'.*not positive definite.*set alpha to 1e-6"):
        merge(network, adapters, tasks, replace(DELTA, alpha=0.0))


@pytest.mark.parametrize("tokens", [2, 300])
def test_numbers_that_are_not_finite_name_layer_and_task(tokens):
    network, adapters, tasks = wide_layer(torch.float32, tokens)
    tasks[1].samples[0].teacher[0, 0] = float("nan")
    with pytest.raises(SolveError, match=r"layer '0': the inputs of task 'b' hold NaN"):
        merge(network, adapters, tasks, DELTA)


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


def test_some_tokens_of_each_row_come_close_to_all_of_them():
    network, adapters, tasks = wide_layer(torch.float64, tokens=400)
    every = merge(network, adapters, tasks, DELTA)
    some = merge(network, adapters, tasks, replace(DELTA, tokens_per_row=200))
    assert some.report.layers[0].tasks[0].tokens == 4 * 200
    cost = [
        objective(result.adapter.deltas["0"].dense().double(), tasks, adapters, 1e-4)
        for result in (every, some)
    ]
    assert cost[0] < cost[1] < 1.2 * cost[0]


def count_measured_inputs(monkeypatch):
    sizes = []
    original = InputMoments.add
    monkeypatch.setattr(
        InputMoments, "add", lambda self, *rows: (sizes.append(self.d_in), original(self, *rows))[1]
    )
    return sizes


@pytest.mark.parametrize("samples_per_chunk", [1, 100])
def test_layers_that_read_one_tensor_measure_it_once(monkeypatch, samples_per_chunk):
    net = toy.build("attention")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters, samples=2)
    sizes = count_measured_inputs(monkeypatch)
    toy.merge_toy(net, adapters, tasks, samples_per_chunk=samples_per_chunk)
    # self q,k,v | o | cross q | k,v | o | feed-forward: six inputs of nine layers
    assert len(sizes) == 6 * (4 if samples_per_chunk == 1 else 2)


def test_an_input_that_was_changed_in_place_is_measured_again(monkeypatch):
    class Doubling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4)
            self.second = torch.nn.Linear(4, 4)

        def forward(self, x):
            x = x + 0
            y = self.first(x)
            x.mul_(2)
            return y + self.second(x)

    model = Doubling().double().requires_grad_(False)
    sizes = count_measured_inputs(monkeypatch)
    adapter = Adapter(
        "a",
        {
            p: LowRankDelta(torch.randn(4, 2).double(), torch.randn(2, 4).double())
            for p in ("first", "second")
        },
    )
    network = Network(dict(model.named_modules()), lambda rows: model(torch.stack(list(rows))))
    merge(network, [adapter], [Task("a", [Sample(torch.randn(9, 4).double())], {0: 1.0})])
    assert len(sizes) == 2


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


def test_an_input_that_was_changed_in_place_in_inference_mode_is_an_error():
    """There torch keeps no count of in-place changes, so the merge must see the change itself."""

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
    with (
        torch.inference_mode(),
        pytest.raises(CalibrationError, match="'second' reads a tensor that was changed in place"),
    ):
        merge(network, [adapter], tasks)
    merge(network, [adapter], tasks)


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
    net = toy.build("convolution")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters, samples=8)
    every = toy.merge_toy(net, adapters, tasks)
    some = toy.merge_toy(net, adapters, tasks, patches=16 * 8)
    tokens = {layer.path: layer.tasks[0].tokens for layer in some.report.layers}
    assert tokens == {"inlet": 8 * 16, "spatial": 8 * 8, "shrink": 8 * 4, "outlet": 8 * 4}
    assert toy.largest_error(toy.dense(some.adapter), toy.dense(every.adapter)) > 1e-9
    assert [delta.rank for delta in some.adapter.deltas.values()] == [
        delta.rank for delta in every.adapter.deltas.values()
    ]


def test_ranks_and_sizes_that_cannot_be_are_refused():
    net = toy.build("stack")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters)
    with pytest.raises(
        ConfigError, match=r"rank names 'typo', which no adapter changes; the layers are down1"
    ):
        toy.merge_toy(net, adapters, tasks, rank={"typo": 1})
    with pytest.raises(
        ConfigError, match=r"size is 10; 5 layers of rank 1 take \d+ weights already"
    ):
        toy.merge_toy(net, adapters, tasks, size=10)
