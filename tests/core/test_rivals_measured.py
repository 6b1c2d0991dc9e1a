"""Rivals that regress on measured inputs, searches for scales, cuts, and what `merge` returns for
every method.
"""

import dataclasses
import math

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
from iteris_core.diffusion.calibration import Calibration
from iteris_core.engines.problem import Problem
from iteris_core.report.fidelity import Comparison, fidelity
from iteris_core.report.records import Note
from iteris_core.rivals import METHODS
from iteris_core.rivals.output_error import OutputError
from iteris_core.rivals.search import best_coefficients, best_scale

TEXT = ("cross_attention.k", "cross_attention.v")
SEARCHING = ("task_arithmetic", "hyper_linear")


@pytest.fixture(scope="module")
def net():
    """A network with cross-attention, three adapters, one of which does not change every layer, and
    a preserve task.
    """
    return toy.three_adapters()


def merged(net, method, **settings):
    model, adapters, tasks = net
    options = {
        name: settings.pop(name)
        for name in list(settings)
        if name in BaselineOptions.__dataclass_fields__
    }
    return toy.merge_toy(
        model, adapters, tasks, method=method, baseline=BaselineOptions(**options), **settings
    )


def measured(net, students=None):
    """Return path -> one (X, dW_g, weight) per task; X of the teachers, or of a student that wears
    dense deltas.
    """
    model, adapters, tasks = net
    shapes = {path: tuple(model.model.get_submodule(path).weight.shape) for path in model.targets}
    found = {path: [] for path in model.targets}
    for task in tasks:
        own = toy.mixed(adapters, task.mix, shapes)
        rows = [sample.teacher for sample in task.samples]
        inputs = toy.layer_inputs(
            toy.patched(model.model, own if students is None else students), rows, model.targets
        )
        for path in model.targets:
            found[path].append(
                (toy.weighted(inputs[path], task.samples, path), own[path], task.weight)
            )
    return found


# --- regressions ---


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
    found = toy.dense(merged(net, "regmean", off_diagonal=b).adapter)
    expected = {path: naive_regmean(tasks, b) for path, tasks in measured(net).items()}
    assert toy.largest_error(found, expected) < 1e-9


def test_regmean_pp_is_regmean_on_the_inputs_that_its_own_answer_leads_to(net):
    found = toy.dense(merged(net, "regmean_pp").adapter)
    students, teachers = (
        {path: naive_regmean(tasks, 0.9) for path, tasks in measured(net, worn).items()}
        for worn in (found, None)
    )
    assert toy.largest_error(found, students) < 1e-9
    assert toy.largest_error(found, teachers) > 1e-2


def test_ssr(net):
    model, adapters, tasks = net
    found = toy.dense(merged(net, "ssr").adapter)
    inputs = measured(net)
    for path in model.targets:
        present = [k for k, adapter in enumerate(adapters) if path in adapter.deltas]
        down = torch.cat([adapters[k].deltas[path].down for k in present])
        up = torch.cat([adapters[k].deltas[path].up for k in present], dim=1)
        gram = 1e-4 * torch.eye(len(down)).double()
        routed = []
        tokens = sum(len(inputs[path][k][0]) for k in present)
        start = 0
        for k in present:
            z = down @ (tasks[k].weight ** 0.5 * inputs[path][k][0]).T
            stop = start + adapters[k].deltas[path].rank
            gram = gram + z @ z.T / tokens
            routed.append(z[start:stop] @ z.T / tokens)
            start = stop
        torch.testing.assert_close(
            found[path],
            up @ torch.cat(routed) @ torch.linalg.inv(gram) @ down,
            rtol=1e-6,
            atol=1e-8,
        )


def test_ssr_passes_a_lone_adapter_through(net):
    model, adapters, _ = net
    pair = [adapters[0], adapters[2]]
    found = toy.dense(merged((model, pair, toy.own_tasks(model, pair)), "ssr").adapter)
    for path in model.targets[7:]:
        torch.testing.assert_close(found[path], adapters[0].deltas[path].dense())


def least_norm(tasks):
    x = torch.cat([weight**0.5 * x for x, _, weight in tasks])
    y = torch.cat([weight**0.5 * x @ delta.T for x, delta, weight in tasks])
    return torch.linalg.lstsq(x, y, driver="gelsd").solution.T


def test_mix_of_show_is_least_squares_of_least_norm(net):
    found = toy.dense(merged(net, "mix_of_show").adapter)
    expected = {path: least_norm(tasks) for path, tasks in measured(net).items()}
    assert toy.largest_error(found, expected) < 1e-6
    one = (
        net[0],
        net[1][:1],
        [dataclasses.replace(net[2][0], samples=net[2][0].samples[:1])],
    )  # 4 and 3 tokens: not of full rank
    found = toy.dense(merged(one, "mix_of_show").adapter)
    assert (
        toy.largest_error(found, {path: least_norm(tasks) for path, tasks in measured(one).items()})
        < 1e-6
    )


def test_mix_of_shows_descent_approaches_the_closed_form(net):
    closed, descent = (
        merged(net, "mix_of_show", solver=solver, rank="full")
        for solver in ("closed_form", "lbfgs")
    )
    assert toy.largest_error(toy.dense(descent.adapter), toy.dense(closed.adapter)) < 1e-4
    exact = toy.dense(closed.adapter)
    assert not any(
        torch.equal(delta, exact[path]) for path, delta in toy.dense(descent.adapter).items()
    )


def text_net(preserve=True):
    """Return a network, two adapters, and tasks with so few text tokens that all of them can be
    constraints.
    """
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
        torch.testing.assert_close(
            deltas[path], v @ torch.linalg.inv(d.T @ k) @ d.T, rtol=1e-6, atol=1e-8
        )
    for path in set(net[0].targets) - set(TEXT):
        torch.testing.assert_close(
            deltas[path], sum(adapter.deltas[path].dense() for adapter in net[1]) / 2
        )
    text = "custom_diffusion: solved at 2 layers that read text, averaged at 7 others"
    assert found.report.notes == (Note("method", text),)
    assert found.report.method == "custom_diffusion"


def test_custom_diffusion_without_a_token_to_constrain_is_an_error():
    model, adapters, tasks = text_net()
    blind = [Sample(model.make_row(), token_weights={"text": torch.zeros(3)})]
    tasks = [*(dataclasses.replace(task, samples=blind) for task in tasks[:2]), tasks[2]]
    with pytest.raises(
        SolveError,
        match=r"^layer 'cross_attention.k': no task whose teacher wears something here has tokens",
    ):
        merged((model, adapters, tasks), "custom_diffusion")


# --- what holds for all of them ---


def one_layer(seed, count=3):
    torch.manual_seed(seed)
    model = toy.build("one layer", seed)
    adapters = [model.adapter(f"{k}", rank=1 + k % 2) for k in range(count)]
    return model, adapters, toy.own_tasks(model, adapters, samples=2)


@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
@pytest.mark.parametrize(
    "method", sorted(set(METHODS) - {"np_lora", "dare_linear", "dare_ties", *SEARCHING})
)
def test_the_order_of_the_adapters_does_not_matter(method, seed, order):
    model, adapters, tasks = one_layer(seed)
    moved = [dataclasses.replace(tasks[k], mix={i: 1.0}) for i, k in enumerate(order)]
    one = merged((model, adapters, tasks), method, rank="full")
    other = merged((model, [adapters[k] for k in order], moved), method, rank="full")
    torch.testing.assert_close(
        one.adapter.deltas["layer"].dense(),
        other.adapter.deltas["layer"].dense(),
        rtol=1e-6,
        atol=1e-8,
    )


@given(seed=st.integers(0, 1000), factor=st.sampled_from([-1.0, 0.5, 3.0]))
@pytest.mark.parametrize(
    "method",
    sorted(set(METHODS) - {"ace", *SEARCHING}),  # ACE's ridge is absolute
)
def test_twice_the_adapters_give_twice_the_merge(method, seed, factor):
    model, adapters, tasks = one_layer(seed)
    one = merged((model, adapters, tasks), method, rank="full")
    other = merged(
        (model, [adapter.scaled(factor) for adapter in adapters], tasks), method, rank="full"
    )
    expected = factor * one.adapter.deltas["layer"].dense()
    torch.testing.assert_close(
        other.adapter.deltas["layer"].dense(), expected, rtol=1e-6, atol=1e-8
    )


@given(seed=st.integers(0, 1000))
@pytest.mark.parametrize(
    "method", sorted(set(METHODS) - {"iso_c", "task_arithmetic", "hyper_linear"})
)
def test_one_adapter_is_merged_into_itself(method, seed):
    model, adapters, tasks = one_layer(seed, count=1)
    options = {"density": 1.0} if "density" in METHODS[method].options else {}
    found = merged((model, adapters, tasks), method, **options)
    rtol = 1e-3 if method == "ssr" else 1e-6  # its ridge is absolute
    torch.testing.assert_close(
        found.adapter.deltas["layer"].dense(),
        adapters[0].deltas["layer"].dense(),
        rtol=rtol,
        atol=1e-6,
    )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_students_wear_what_was_merged_and_the_report_tells_how_they_fare(net, method):
    model, adapters, tasks = net
    result = merged(net, method)
    students = toy.patched(model.model, toy.dense(result.adapter))
    shapes = {path: tuple(delta.shape) for path, delta in toy.dense(result.adapter).items()}
    for task, rows in zip(tasks, result.outputs, strict=True):
        teacher = toy.patched(model.model, toy.mixed(adapters, task.mix, shapes))
        for sample, (as_teacher, as_student) in zip(task.samples, rows, strict=True):
            torch.testing.assert_close(as_student, toy.run(students, [sample.teacher])[0])
            torch.testing.assert_close(as_teacher, toy.run(teacher, [sample.teacher])[0])
    worn = toy.dense(result.adapter) if METHODS[method].inputs == "student" else None
    theirs = measured(net)
    ours = measured(net, worn)
    for layer in result.report.layers:
        assert layer.rank <= sum(
            adapter.deltas[layer.path].rank for adapter in adapters if layer.path in adapter.deltas
        )
        together = sum(
            adapter.deltas[layer.path].dense()
            for adapter in adapters
            if layer.path in adapter.deltas
        )
        for entry, (x, own, _), (x_student, _, _) in zip(
            layer.tasks, theirs[layer.path], ours[layer.path], strict=True
        ):
            left = x @ own.T - x_student @ result.adapter.deltas[layer.path].dense().T
            reference = x @ own.T if entry.wears else x_student @ together.T
            assert entry.residual == pytest.approx(
                (left.norm() / reference.norm()).item(), rel=1e-5, abs=1e-6
            )
    assert result.report.changes == ()
    assert toy.hook_count(model.model) == 0


@pytest.mark.parametrize("method", ["average", "regmean"])
def test_the_target_is_what_residuals_are_measured_against_and_nothing_else(net, method):
    delta, full = (merged(net, method, target=target) for target in ("delta", "full_output"))
    assert toy.largest_error(toy.dense(delta.adapter), toy.dense(full.adapter)) == 0
    before, after = (
        [entry.residual for layer in result.report.layers for entry in layer.tasks if entry.wears]
        for result in (delta, full)
    )
    nothing_drifts = METHODS[method].inputs == "teacher"  # X~ = X
    assert (before == pytest.approx(after, rel=1e-9)) == nothing_drifts


@pytest.mark.parametrize("method", ["average", "regmean", "task_arithmetic", "custom_diffusion"])
def test_a_whole_stable_diffusion_model(host, method):
    loras = [host.lora("both"), host.lora("unet only", ("unet",), ["<y> dog"])]
    calibration = Calibration(
        trajectories=2,
        timesteps=2,
        sampling_steps=4,
        resolution=64,
        preserve_captions=("a street",),
    )
    result, _ = host.merge(loras, calibration, dataclasses.replace(host.EXACT, method=method))
    paths = dict.fromkeys(path for lora in loras for path in lora.adapter.deltas)
    assert list(result.adapter.deltas) == list(paths)
    # the text encoder and the UNet are merged one after the other; each part has its own scale and
    # its own note
    notes = [note.text for note in result.report.notes if note.kind == "method"]
    assert len(notes) == {"task_arithmetic": 2, "custom_diffusion": 2}.get(method, 0)
    if method == "custom_diffusion":
        assert "solved at 0 layers that read text, averaged at 3 others" in notes[0]
        assert "solved at 2 layers that read text, averaged at 3 others" in notes[1]
    if method == "average":
        for path in paths:
            parts = [
                lora.adapter.deltas[path].dense() for lora in loras if path in lora.adapter.deltas
            ]
            adapters = (
                2 if path.startswith("unet.") else 1
            )  # an adapter without a part is no adapter of that part
            torch.testing.assert_close(result.adapter.deltas[path].dense(), sum(parts) / adapters)


# --- ranks ---


@pytest.mark.parametrize("method", ["sum", "ties", "iso_c", "regmean"])
def test_a_cut_to_a_lower_rank_is_made_by_its_effect(net, method):
    for layer in merged(net, method, rank=2).report.layers:
        assert layer.rank == 2
        assert layer.cut <= layer.plain_cut + 1e-9
    assert any(
        layer.cut < 0.99 * layer.plain_cut for layer in merged(net, method, rank=2).report.layers
    )


def test_an_answer_of_full_rank_is_cut_to_the_sum_of_the_ranks(net):
    model, adapters, tasks = net
    pair = model, [adapters[0], adapters[1]], tasks[:2]
    result = merged(pair, "ties")
    whole = merged(pair, "ties", rank="full")
    assert {layer.rank for layer in result.report.layers} == {3}
    assert all(0 < layer.cut < 1 for layer in result.report.layers)
    assert torch.linalg.matrix_rank(whole.adapter.deltas["self_attention.q"].dense()) > 3


@pytest.mark.parametrize("method", ["ties", "svd", "regmean"])
def test_a_total_size_and_kept_energy_work_for_every_method(net, method):
    result = merged(net, method, size=200)
    assert sum(delta.rank * sum(delta.shape) for delta in result.adapter.deltas.values()) <= 200
    ranks = [layer.rank for layer in merged(net, method, kept_energy=0.8).report.layers]
    assert max(ranks) < 5
    assert all(
        layer.cut**2 <= 0.2 + 1e-9 for layer in merged(net, method, kept_energy=0.8).report.layers
    )


# --- scales ---


BOWLS = {
    "parabola": lambda scale, best: (scale - best) ** 2,
    "steep": lambda scale, best: (
        (scale / best - 1) ** 2 + 0.3 * (scale / best) ** 4 - 1.2 * scale / best
    ),
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


def test_no_scale_at_all_is_an_error():
    with pytest.raises(
        CalibrationError, match=r"no scale from 0\.03125 to 1 gives a finite output"
    ):
        best_scale(lambda scale: math.inf)


@given(target=st.lists(st.floats(0.2, 2.0), min_size=1, max_size=5))
def test_best_coefficients_find_the_bottom_of_a_bowl(target):
    found = best_coefficients(
        lambda c: sum((a - b) ** 2 for a, b in zip(c, target, strict=True)), len(target)
    )
    assert found == pytest.approx(target, abs=0.05)


def test_coefficients_of_adapters_that_get_in_each_others_way():
    def error(c):
        return (c[0] + 0.5 * c[1] - 1) ** 2 + (c[1] + 0.5 * c[0] - 0.2) ** 2

    assert error(best_coefficients(error, 2)) < 0.05 * error([0.4, 0.4])


def error_of(model, adapters, tasks, chunk=8, **options):
    config = MergeConfig(samples_per_chunk=chunk)
    return OutputError(Problem(model.network(), adapters, tasks, config), **options)


@pytest.mark.parametrize("chunk", [1, 8])
def test_the_error_that_is_searched_is_fidelitys(net, chunk):
    model, adapters, tasks = net
    tasks = [*tasks, Task("of no weight", model.samples(2), {0: 1.0}, 0.0)]
    adapter = merged(net, "average").adapter
    searched = error_of(model, adapters, tasks, chunk)
    assert searched(adapter) == pytest.approx(
        output_error((model, adapters, tasks), adapter), rel=1e-9
    )
    calls = []
    many = [dataclasses.replace(tasks[0], samples=model.samples(100)), tasks[3]]
    error_of(model, adapters, many, progress=lambda: calls.append(0))
    assert len(calls) == 2 * (
        4 + 1
    )  # 32 of the 100 samples, 3 of the other task; a teacher and a reference each


def test_a_teacher_that_changes_nothing_is_no_measure_of_a_scale(net):
    model, adapters, tasks = net
    idle = Adapter("idle", {path: delta.scaled(0.0) for path, delta in adapters[0].deltas.items()})
    unseen = Task("unseen", model.samples(2), {3: 1.0})
    searched = error_of(model, [*adapters, idle], [*tasks, unseen])
    adapter = merged(net, "average").adapter
    assert searched(adapter) == pytest.approx(output_error(net, adapter), rel=1e-9)
    with pytest.raises(
        CalibrationError, match="no task's teacher changes what the network returns"
    ):
        error_of(model, [*adapters, idle], [unseen])


def output_error(net, adapter):
    """Return the mean of `fidelity`'s squared errors, with all samples of a task as one run."""
    model, adapters, tasks = net
    as_one = Comparison(
        lambda task, sample: tasks[task].samples[sample].teacher,
        runs=[[len(task.samples)] for task in tasks],
    )
    found = fidelity(model.network(), adapters, tasks, adapter, comparison=as_one)
    squares = [
        task.weight * entry.output_error**2 for task, entry in zip(tasks, found, strict=True)
    ]
    return sum(squares) / sum(task.weight for task in tasks)


def test_searched_scales_are_the_best_ones(net):
    scales = (0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0)
    by_hand = min(output_error(net, merged(net, "sum", scale=scale).adapter) for scale in scales)
    arithmetic = merged(net, "task_arithmetic")
    hyper = merged(net, "hyper_linear")
    assert output_error(net, arithmetic.adapter) <= 1.02 * by_hand
    assert output_error(net, hyper.adapter) < output_error(net, arithmetic.adapter)
    assert "task_arithmetic: scale 0." in arithmetic.report.notes[0].text
    assert "hyper_linear: coefficients 0." in hyper.report.notes[0].text


@pytest.mark.parametrize("method", ["average", "ties", "regmean", "regmean_pp", "knots"])
def test_every_method_can_have_its_best_scale(net, method):
    found = merged(net, method, scale="search")
    plain = merged(net, method)
    assert output_error(net, found.adapter) <= output_error(net, plain.adapter) * (1 + 1e-9)
    scale = float(found.report.notes[0].text.removeprefix(f"{method}: scale ").split(",")[0])
    assert output_error(net, merged(net, method, scale=scale).adapter) == pytest.approx(
        output_error(net, found.adapter), rel=0.01
    )


def test_a_scale_is_a_factor(net):
    one, half = (toy.dense(merged(net, "knots", scale=scale).adapter) for scale in (None, 0.5))
    assert toy.largest_error(half, {path: 0.5 * delta for path, delta in one.items()}) < 1e-12


# --- errors ---


def test_a_search_needs_an_output_that_is_finite(net):
    model, adapters, tasks = net
    broken = dataclasses.replace(
        tasks[1],
        samples=[Sample((torch.full((4, 6), math.inf).double(), torch.zeros(3, 5).double()))],
    )
    with pytest.raises(CalibrationError, match="task 'b': the network's output is not finite"):
        error_of(model, adapters, [tasks[0], broken])


def test_a_search_needs_the_output_of_the_network(net):
    model, adapters, tasks = net

    def forward(rows):
        toy.run(model.model, rows)

    network = model.network(forward)
    with pytest.raises(CalibrationError, match="returns no tensor"):
        merge(network, adapters, tasks, toy.exact(method="task_arithmetic"))


def test_weights_need_a_task_of_ones_own(net):
    model, adapters, _ = net
    both = [Task("both", model.samples(2), {0: 1.0, 1: 1.0, 2: 0.5})]
    with pytest.raises(
        ConfigError,
        match="'weighted' needs a task with a weight above 0 whose teacher wears one adapter alone",
    ):
        merged((model, adapters, both), "weighted")


@pytest.mark.parametrize("method", ["average", "regmean"])
def test_inputs_that_are_not_finite_are_an_error_whatever_the_method(method):
    model, adapters, tasks = one_layer(0)
    tasks[1].samples[0].teacher[0][3, 2] = math.nan
    with pytest.raises(
        SolveError, match=r"^layer 'layer': the inputs of task '1' hold NaN or infinite numbers"
    ):
        merged((model, adapters, tasks), method)


def test_regmean_says_what_makes_it_solvable():
    model = toy.build("one layer")
    adapter = Adapter(
        "a", {"layer": LowRankDelta(torch.ones(4, 1).double(), torch.ones(1, 6).double())}
    )
    task = Task("a", [Sample((torch.ones(20, 6).double(),))], {0: 1.0})
    with pytest.raises(
        SolveError, match="not positive definite; set off_diagonal below 1, or use more samples"
    ):
        merged((model, [adapter], [task]), "regmean", off_diagonal=1.0)
    found = merged((model, [adapter], [task]), "regmean", off_diagonal=0.5)
    torch.testing.assert_close(found.adapter.deltas["layer"].dense(), torch.ones(4, 6).double())
