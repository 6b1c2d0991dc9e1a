"""The rivals against naive float64 references on dense deltas, and against PEFT; their searches."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import (
    Adapter,
    BaselineOptions,
    CalibrationError,
    ConfigError,
    LowRankDelta,
    MergeConfig,
    Sample,
    SolveError,
    Task,
    merge,
)
from iteris_core.config import DATA_FREE, Method
from iteris_core.engines.problem import Problem
from iteris_core.memory import Room
from iteris_core.report.records import Note
from iteris_core.rivals.layer import Layer
from iteris_core.rivals.methods import METHODS
from iteris_core.rivals.search import OutputError, best_scale

TEXT = ("cross_attention.k", "cross_attention.v")
SEARCHING = ("task_arithmetic", "hyper_linear")


@pytest.fixture(scope="module")
def net():
    """Three adapters, one of which does not change every layer, and a preserve task."""
    return toy.three_adapters()


def merged(net, method, **settings):
    options = {
        name: settings.pop(name)
        for name in list(settings)
        if name in BaselineOptions.__dataclass_fields__
    }
    return toy.merge_toy(*net, method=method, baseline=BaselineOptions(**options), **settings)


def dense(net, method, **settings):
    return toy.dense(merged(net, method, **settings).adapter)


def shapes_of(model):
    module = model.model.get_submodule
    return {path: tuple(module(path).weight.flatten(1).shape) for path in model.targets}


def check(net, method, expected, tolerance=1e-10, **settings):
    """Compare a method with a naive function of a layer's (N, d_out, d_in)."""
    model, adapters, _ = net
    each = [toy.mixed(adapters, {k: 1.0}, shapes_of(model)) for k in range(len(adapters))]
    reference = {
        path: expected(torch.stack([deltas[path] for deltas in each])) for path in model.targets
    }
    assert toy.largest_error(dense(net, method, **settings), reference) < tolerance


def layers(net):
    model, adapters, _ = net
    for path in model.targets:
        deltas = {k: a.deltas[path] for k, a in enumerate(adapters) if path in a.deltas}
        yield Layer(deltas, (), False, len(adapters))


def measured(net, students=None):
    """Return path -> (X, dW_g, weight) per task; X of the teachers, or of a student with deltas."""
    model, adapters, tasks = net
    found = {path: [] for path in model.targets}
    for task in tasks:
        own = toy.mixed(adapters, task.mix, shapes_of(model))
        rows = [sample.teacher for sample in task.samples]
        wearer = toy.patched(model.model, own if students is None else students)
        inputs = toy.layer_inputs(wearer, rows, model.targets)
        for path in model.targets:
            x = toy.weighted(inputs[path], task.samples, path)
            found[path].append((x, own[path], task.weight))
    return found


def test_the_settings_name_every_method_and_engine():
    assert ["iteris", *METHODS] == list(get_args(Method))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sum", {"density": 0.2}, "density is not an option of sum; sum takes scale"),
        ("regmean", {"projection": None}, "regmean takes scale and off_diagonal"),
        ("iteris", {"scale": 2.0}, "iteris takes none of the rivals' options"),
    ],
)
def test_an_option_that_would_not_be_looked_at_is_refused(net, method, options, message):
    with pytest.raises(ConfigError, match=message):
        merged(net, method, **options)


@pytest.mark.parametrize(
    ("method", "coefficients"),
    [("average", [1 / 3] * 3), ("sum", [1.0] * 3), ("weighted", [0.25, 0.5, 0.25])],
)
def test_linear_methods_are_pefts_and_lose_nothing(net, method, coefficients):
    peft = pytest.importorskip("peft.utils.merge_utils")
    weights = torch.tensor(coefficients, dtype=torch.float64)
    check(net, method, lambda deltas: peft.task_arithmetic(list(deltas), weights), 1e-12)
    assert all(layer.cut == 0 for layer in merged(net, method).report.layers)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_is_pefts(net, density):
    peft = pytest.importorskip("peft.utils.merge_utils")
    for layer in layers(net):
        deltas = list(layer.dense())
        expected = peft.ties(deltas, torch.ones(len(deltas)).double(), density, "total")
        torch.testing.assert_close(METHODS["ties"].rule(layer, density=density), expected)


@pytest.mark.parametrize("mu", [0.5, None])
def test_np_lora(net, mu):
    def reference(deltas):
        style, *others = deltas
        directions = torch.linalg.svd(style)[2][:2].T  # its rank is 2
        share = 1.0 if mu is None else mu / (1 + mu)
        identity = torch.eye(style.shape[1]).double()
        return style + sum(others) @ (identity - share * directions @ directions.T)

    check(net, "np_lora", reference, projection=mu)


@pytest.mark.parametrize("method", DATA_FREE)
def test_files_alone_merge_as_they_do_in_a_model(net, method):
    """But for float32."""
    found = merged(net, method, measured=False)
    assert toy.largest_error(toy.dense(found.adapter), dense(net, method)) < 1e-5
    assert not found.report.is_measured and found.report.warnings == []


def test_what_needs_a_model_is_refused_where_files_alone_are_merged():
    for refused in (
        {"method": "iteris"},
        {"method": "ties"},
        {"rank": 4},
        {"kept_energy": 0.9},
        {"baseline": BaselineOptions(scale="search")},
    ):
        with pytest.raises(ConfigError, match=r"measured is off|without a search"):
            MergeConfig(measured=False, **{"method": "sum", **refused})


def naive_regmean(tasks, b):
    left = right = 0
    for x, delta, weight in tasks:
        gram = weight * x.T @ x / len(x)
        gram = torch.where(torch.eye(len(gram), dtype=torch.bool), gram, b * gram)
        left = left + gram
        right = right + gram @ delta.T
    return torch.linalg.solve(left, right).T


@pytest.mark.parametrize("b", [0.0, 0.9])
def test_regmean(net, b):
    found = dense(net, "regmean", off_diagonal=b)
    expected = {path: naive_regmean(tasks, b) for path, tasks in measured(net).items()}
    assert toy.largest_error(found, expected) < 1e-9


def test_regmean_pp_is_regmean_on_the_inputs_that_its_own_answer_leads_to(net):
    found = dense(net, "regmean_pp")
    students, teachers = (
        {path: naive_regmean(tasks, 0.9) for path, tasks in measured(net, worn).items()}
        for worn in (found, None)
    )
    assert toy.largest_error(found, students) < 1e-9
    assert toy.largest_error(found, teachers) > 1e-2


def least_norm(tasks):
    x = torch.cat([weight**0.5 * x for x, _, weight in tasks])
    y = torch.cat([weight**0.5 * x @ delta.T for x, delta, weight in tasks])
    return torch.linalg.lstsq(x, y, driver="gelsd").solution.T


def test_mix_of_show_is_least_squares_of_least_norm(net):
    model, adapters, tasks = net
    one = dataclasses.replace(tasks[0], samples=tasks[0].samples[:1])
    few = model, adapters[:1], [one]  # 4 and 3 tokens: not of full rank
    for inputs in (net, few):
        expected = {path: least_norm(tasks) for path, tasks in measured(inputs).items()}
        assert toy.largest_error(dense(inputs, "mix_of_show"), expected) < 1e-6


def text_net(preserve=True):
    """Return tasks with so few text tokens that all of them can be constraints."""
    model = toy.build("attention", seed=3)
    adapters = [model.adapter("a"), model.adapter("b")]
    two_of_three = {"text": torch.tensor([1.0, 1.0, 0.0])}
    own = [
        Task(adapter.name, [Sample(model.make_row(), token_weights=two_of_three)], {k: 1.0})
        for k, adapter in enumerate(adapters)
    ]
    return model, adapters, [*own, Task("preserve", model.samples(8), {})] if preserve else own


@pytest.mark.parametrize("preserve", [True, False])
def test_custom_diffusion_meets_its_constraints_as_published(preserve):
    net = text_net(preserve)
    found = merged(net, "custom_diffusion")
    deltas = toy.dense(found.adapter)
    inputs = measured(net)
    for path in TEXT:
        concepts = [(x[x.any(1)], delta) for x, delta, _ in inputs[path][:2]]
        k = torch.cat([x for x, _ in concepts]).T  # (d_in, 4)
        v = torch.cat([x @ delta.T for x, delta in concepts]).T
        torch.testing.assert_close(deltas[path] @ k, v, rtol=1e-6, atol=1e-8)
        captions = inputs[path][2][0] if preserve else torch.eye(5).double()
        metric = captions.T @ captions
        metric = metric + preserve * 1e-6 * metric.trace() / 5 * torch.eye(5).double()
        d = torch.linalg.solve(metric, k)
        expected = v @ torch.linalg.inv(d.T @ k) @ d.T
        torch.testing.assert_close(deltas[path], expected, rtol=1e-6, atol=1e-8)
    for path in set(net[0].targets) - set(TEXT):
        mean = sum(adapter.deltas[path].dense() for adapter in net[1]) / 2
        torch.testing.assert_close(deltas[path], mean)
    text = "custom_diffusion: solved at 2 layers that read text, averaged at 7 others"
    assert found.report.notes == (Note("method", text),)
    assert found.report.method == "custom_diffusion"


def one_layer(seed, count=3):
    torch.manual_seed(seed)
    model = toy.build("one layer", seed)
    adapters = [model.adapter(f"{k}", rank=1 + k % 2) for k in range(count)]
    return model, adapters, toy.own_tasks(model, adapters, samples=2)


def assert_close(found, expected, **tolerances):
    torch.testing.assert_close(found["layer"], expected["layer"], **tolerances)


@given(seed=st.integers(0, 1000))
@pytest.mark.parametrize("method", sorted(set(METHODS) - set(SEARCHING)))
def test_one_adapter_is_merged_into_itself(method, seed):
    net = one_layer(seed, count=1)
    options = {"density": 1.0} if method == "ties" else {}
    assert_close(dense(net, method, **options), toy.dense(net[1][0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["sum", "regmean"])
def test_a_cut_to_a_lower_rank_is_made_by_its_effect(net, method):
    cut = merged(net, method, rank=2).report.layers
    assert {layer.rank for layer in cut} == {2}
    assert all(0 < layer.cut < 1 for layer in cut)
    kept = merged(net, method, kept_energy=0.8).report.layers
    assert max(layer.rank for layer in kept) < 5
    assert all(layer.cut**2 <= 0.2 + 1e-9 for layer in kept)


def test_an_answer_of_full_rank_is_cut_to_the_sum_of_the_ranks(net):
    model, adapters, tasks = net
    pair = model, [adapters[0], adapters[1]], tasks[:2]
    result = merged(pair, "ties")
    assert {layer.rank for layer in result.report.layers} == {3}
    assert all(0 < layer.cut < 1 for layer in result.report.layers)
    assert torch.linalg.matrix_rank(dense(pair, "ties", rank="full")["self_attention.q"]) > 3


BOWLS = {
    "parabola": lambda scale, best: (scale - best) ** 2,
    "overflow": lambda scale, best: (scale - best) ** 2 if scale < 1.4 * best else math.inf,
}


@given(best=st.floats(0.05, 12.0), floor=st.floats(0.0, 1.0))
@pytest.mark.parametrize("bowl", sorted(BOWLS))
def test_best_scale_finds_the_bottom_of_a_bowl(bowl, best, floor):
    asked = []

    def error(scale):
        asked.append(scale)
        return floor + BOWLS[bowl](scale, best)

    assert best_scale(error) == pytest.approx(best, rel=0.15)
    assert len(asked) == len(set(asked)) <= 11


def error_of(model, adapters, tasks, chunk=8, **options):
    problem = Problem(model.network(), adapters, tasks, MergeConfig(), room=Room(chunk))
    return OutputError(problem, **options)


def output_error(net, adapter):
    """Return the mean over tasks of the squared error, relative to what the teacher does."""
    model, adapters, tasks = net
    found = toy.output_errors(model.network(), adapters, tasks, adapter)
    squares = [
        task.weight * (errors[:, 0].sum() / errors[:, 1].sum()).item()
        for task, errors in zip(tasks, found, strict=True)
    ]
    return sum(squares) / sum(task.weight for task in tasks)


def test_the_error_that_is_searched_is_that_of_the_outputs(net):
    model, adapters, tasks = net
    idle = Adapter("idle", {path: delta.scaled(0.0) for path, delta in adapters[0].deltas.items()})
    more = [
        *tasks,
        Task("of no weight", model.samples(2), {0: 1.0}, 0.0),
        Task("whose teacher changes nothing", model.samples(2), {3: 1.0}),
    ]
    adapter = merged(net, "average").adapter
    searched = error_of(model, [*adapters, idle], more, 1)
    assert searched(adapter) == pytest.approx(output_error(net, adapter), rel=1e-9)
    with pytest.raises(CalibrationError, match="no task's teacher changes what the network"):
        error_of(model, [*adapters, idle], more[-1:])


def test_searched_scales_are_the_best_ones(net):
    scales = (0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0)
    by_hand = min(output_error(net, merged(net, "sum", scale=scale).adapter) for scale in scales)
    arithmetic = merged(net, "task_arithmetic")
    hyper = merged(net, "hyper_linear")
    assert output_error(net, arithmetic.adapter) <= 1.02 * by_hand
    assert output_error(net, hyper.adapter) < output_error(net, arithmetic.adapter)
    assert "task_arithmetic: scale 0." in arithmetic.report.notes[0].text
    assert "hyper_linear: coefficients 0." in hyper.report.notes[0].text
    # every method can have its best scale; regmean++ by students that wear the scaled answer
    found = merged(net, "regmean_pp", scale="search")
    assert output_error(net, found.adapter) <= output_error(net, merged(net, "regmean_pp").adapter)
    scale = float(found.report.notes[0].text.removeprefix("regmean_pp: scale ").split(",")[0])
    by_hand = output_error(net, merged(net, "regmean_pp", scale=scale).adapter)
    assert by_hand == pytest.approx(output_error(net, found.adapter), rel=0.01)


def test_a_search_needs_an_output_that_is_a_finite_tensor(net):
    model, adapters, tasks = net
    endless = Sample((torch.full((4, 6), math.inf).double(), torch.zeros(3, 5).double()))
    broken = dataclasses.replace(tasks[1], samples=[endless])
    with pytest.raises(CalibrationError, match="task 'b': the network's output is not finite"):
        error_of(model, adapters, [tasks[0], broken])

    def forward(rows):
        toy.run(model.model, rows)

    with pytest.raises(CalibrationError, match="returns no tensor"):
        merge(model.network(forward), adapters, tasks, toy.exact(method="task_arithmetic"))
    with pytest.raises(CalibrationError, match=r"no scale from 0\.03125 to 1 gives a finite"):
        best_scale(lambda scale: math.inf)


def test_a_search_reads_what_text_encoders_return(net):
    """An entry is no tensor there, but holds some, and others than tensors."""
    model, adapters, tasks = net

    def forward(rows):
        outputs = toy.run(model.model, rows)
        half = outputs.shape[-1] // 2
        return [{"a": (row[..., :half], None), "b": Parts(row[..., half:])} for row in outputs]

    config = toy.exact(method="task_arithmetic")
    found = merge(model.network(forward), adapters, tasks, config).adapter
    expected = merged(net, "task_arithmetic").adapter
    for path, delta in expected.deltas.items():
        assert torch.allclose(found.deltas[path].dense(), delta.dense(), rtol=1e-3)


@dataclasses.dataclass
class Parts:
    tokens: torch.Tensor


def test_what_no_rule_can_be_made_of_is_named(net):
    model, adapters, tasks = net
    both = [Task("both", model.samples(2), {0: 1.0, 1: 1.0, 2: 0.5})]
    with pytest.raises(ConfigError, match="'weighted' needs a task with a weight above 0 whose"):
        merged((model, adapters, both), "weighted")
    blind = Sample(model.make_row(), token_weights={"text": torch.zeros(3)})
    nobody = [dataclasses.replace(task, samples=[blind]) for task in tasks[:3]]
    with pytest.raises(SolveError, match="no task whose teacher wears something here has tokens"):
        merged((model, adapters, [*nobody, tasks[3]]), "custom_diffusion")
    endless = Sample((torch.full((4, 6), math.nan).double(), torch.zeros(3, 5).double()))
    broken = [dataclasses.replace(tasks[0], samples=[endless]), *tasks[1:]]
    with pytest.raises(SolveError, match="the inputs of task 'a' hold NaN or infinite numbers"):
        merged((model, adapters, broken), "average")


def test_regmean_says_what_makes_it_solvable():
    model = toy.build("one layer")
    delta = LowRankDelta(torch.ones(4, 1).double(), torch.ones(1, 6).double())
    task = Task("a", [Sample((torch.ones(20, 6).double(),))], {0: 1.0})
    net = model, [Adapter("a", {"layer": delta})], [task]
    with pytest.raises(SolveError, match="set off_diagonal below 1, or use more samples"):
        merged(net, "regmean", off_diagonal=1.0)
    assert_close(dense(net, "regmean", off_diagonal=0.5), {"layer": torch.ones(4, 6).double()})
