"""The rivals against naive float64 references, written from their formulas on dense deltas, and
against PEFT.
"""

import dataclasses
import inspect
import sys
import warnings
from typing import get_args, get_type_hints

import pytest
import torch
import toy

from iteris_core import BaselineOptions, ConfigError, LowRankDelta
from iteris_core.config import Engine, Method
from iteris_core.engines.registry import ENGINES
from iteris_core.rivals import METHODS
from iteris_core.rivals.compress_then_merge import shared_subspaces
from iteris_core.rivals.core_space import core_space
from iteris_core.rivals.dare import dare_linear, dare_ties, dropped_and_rescaled, magnitude_prune
from iteris_core.rivals.knots import in_knots_space
from iteris_core.rivals.layer import Layer
from iteris_core.rivals.ties import ties, trimmed
from iteris_core.rivals.tsv_m import tsv_m


@pytest.fixture(scope="module")
def net():
    """A network with cross-attention, three adapters, one of which does not change every layer, and
    a preserve task.
    """
    return toy.three_adapters()


def merged(net, method, rank="sum", **options):
    model, adapters, tasks = net
    return toy.merge_toy(
        model, adapters, tasks, method=method, rank=rank, baseline=BaselineOptions(**options)
    )


def shapes_of(net):
    model = net[0]
    return {path: tuple(model.model.get_submodule(path).weight.shape) for path in model.targets}


def dense_deltas(net):
    """Return path -> (N, d_out, d_in), zeros where an adapter changes nothing."""
    model, adapters, _ = net
    each = [toy.mixed(adapters, {k: 1.0}, shapes_of(net)) for k in range(len(adapters))]
    return {path: torch.stack([deltas[path] for deltas in each]) for path in model.targets}


def layers(net):
    """Return each layer as a rule sees it, without statistics."""
    model, adapters, _ = net
    for path in model.targets:
        deltas = {
            k: adapter.deltas[path] for k, adapter in enumerate(adapters) if path in adapter.deltas
        }
        yield Layer(path, False, deltas, len(adapters), ())


def check(net, method, expected, tolerance=1e-10, rank="sum", **options):
    """Compare a method with a naive function of (N, d_out, d_in) and the ranks of a layer's
    adapters.
    """
    found = toy.dense(merged(net, method, rank, **options).adapter)
    reference = {path: expected(deltas) for path, deltas in dense_deltas(net).items()}
    assert toy.largest_error(found, reference) < tolerance


def test_every_name_in_the_settings_is_a_method_and_the_other_way_round():
    assert ["iteris", *METHODS] == list(get_args(Method))


def test_every_engine_in_the_settings_is_one_and_the_other_way_round():
    assert list(ENGINES) == list(get_args(Engine))


def test_the_options_of_the_rules_are_those_of_the_settings():
    fields = {item.name: item.default for item in dataclasses.fields(BaselineOptions)}
    hints = get_type_hints(BaselineOptions)
    taken = {"scale"}
    for method in METHODS.values():
        taken.update(method.options)
        rule_hints = get_type_hints(method.rule)
        for name in method.options[1:]:
            assert inspect.signature(method.rule).parameters[name].default == fields[name]
            assert rule_hints[name] == hints[name]
    assert taken == set(fields)


def test_a_papers_number_is_where_its_rule_is_written():
    for name, method in METHODS.items():
        assert method.title
        if method.arxiv:
            assert method.arxiv in sys.modules[method.rule.__module__].__doc__, name


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ties", {"seed": 3}, "seed is no option of ties; ties takes scale, density and sign"),
        ("sum", {"density": 0.2}, "density is no option of sum; sum takes scale"),
        (
            "regmean",
            {"projection": None},
            "projection is no option of regmean; regmean takes scale and off_diagonal",
        ),
        (
            "iteris",
            {"scale": 2.0},
            "scale is no option of iteris; iteris takes none of the rivals' options",
        ),
    ],
)
def test_an_option_that_a_method_does_not_take_is_refused(net, method, options, message):
    with pytest.raises(ConfigError) as caught:
        merged(net, method, **options)
    assert str(caught.value) == message


# --- sums ---


@pytest.mark.parametrize(
    ("method", "coefficients"),
    [
        ("average", [1 / 3] * 3),
        ("sum", [1.0] * 3),
        ("weighted", [0.25, 0.5, 0.25]),
        ("svd", [1.0] * 3),
    ],
)
def test_linear_methods_lose_nothing(net, method, coefficients):
    weights = torch.tensor(coefficients, dtype=torch.float64)
    check(net, method, lambda deltas: torch.einsum("n,noi->oi", weights, deltas), 1e-12)
    assert all(layer.cut == 0 for layer in merged(net, method).report.layers)


def test_svd_cuts_the_sum_by_its_weights(net):
    def reference(deltas):
        u, values, vh = torch.linalg.svd(deltas.sum(0))
        return u[:, :2] * values[:2] @ vh[:2]

    check(net, "svd", reference, rank=2)


# --- TIES, DARE, pruning ---


def naive_trim(delta, density):
    entries = delta.flatten().tolist()
    largest = sorted(range(len(entries)), key=lambda i: -abs(entries[i]))[
        : max(1, int(density * len(entries)))
    ]
    kept = [entry if i in largest else 0.0 for i, entry in enumerate(entries)]
    return torch.tensor(kept, dtype=torch.float64).reshape(delta.shape)


def test_trimming_keeps_one_entry_at_least():
    assert torch.equal(
        trimmed(torch.tensor([[[1.0]], [[-2.0]]]), 0.5), torch.tensor([[[1.0]], [[-2.0]]])
    )


def naive_elect(deltas, sign="total"):
    out = []
    for entries in zip(*(delta.flatten().tolist() for delta in deltas), strict=True):
        votes = sum(entries) if sign == "total" else sum((e > 0) - (e < 0) for e in entries)
        agree = [e for e in entries if (e > 0 if votes >= 0 else e < 0)]
        out.append(sum(agree) / max(1, len(agree)))
    return torch.tensor(out, dtype=torch.float64).reshape(deltas[0].shape)


def naive_ties(deltas, density, sign="total"):
    return naive_elect([naive_trim(delta, density) for delta in deltas], sign)


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(net, density, sign):
    check(
        net, "ties", lambda d: naive_ties(d, density, sign), rank="full", density=density, sign=sign
    )


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_magnitude_prune(net, density):
    reference = lambda deltas: sum(naive_trim(delta, density) for delta in deltas) / len(deltas)  # noqa: E731
    check(net, "magnitude_prune", reference, rank="full", density=density)


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_ties_dare_and_pruning_are_pefts(net, sign):
    peft = pytest.importorskip("peft.utils.merge_utils")
    for layer in layers(net):
        deltas = list(layer.dense())
        ones = torch.ones(len(layer.deltas)).double()
        shares = ones / layer.adapters
        thinned = list(dropped_and_rescaled(layer, 0.4, 0))
        torch.testing.assert_close(
            ties(layer, density=0.4, sign=sign), peft.ties(deltas, ones, 0.4, sign)
        )
        torch.testing.assert_close(
            magnitude_prune(layer, density=0.4), peft.magnitude_prune(deltas, shares, 0.4)
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PEFT warns that a density of 1 prunes nothing: DARE's masks are ours
            torch.testing.assert_close(
                dare_ties(layer, density=0.4, sign=sign), peft.dare_ties(thinned, ones, 1.0, sign)
            )
            torch.testing.assert_close(
                dare_linear(layer, density=0.4), peft.dare_linear(thinned, shares, 1.0)
            )


def test_dare_drops_at_random_and_makes_up_for_it(net):
    first = next(layers(net))
    thinned = dropped_and_rescaled(first, 0.25, 3)
    deltas = first.dense()
    kept = thinned != 0
    torch.testing.assert_close(thinned[kept], 4 * deltas[kept])
    assert not torch.equal(kept[0], kept[1])
    seeds = [dropped_and_rescaled(first, 0.25, seed) for seed in range(2000)]
    torch.testing.assert_close(
        torch.stack(seeds).mean(0), deltas, rtol=0, atol=0.2 * deltas.abs().max().item()
    )


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_the_same_for_the_same_seed_and_another_for_another(net, method):
    once, again, other = (toy.dense(merged(net, method, seed=seed).adapter) for seed in (7, 7, 8))
    assert all(torch.equal(once[path], again[path]) for path in once)
    assert toy.largest_error(once, other) > 0.1


# --- methods of subspaces ---


def naive_space(deltas):
    """Return U, S, and the V_k (N, R, d_in) of KnOTS."""
    u, values, vh = torch.linalg.svd(torch.cat(list(deltas), dim=1), full_matrices=False)
    used = values > 1e-9 * values[0]
    return u[:, used], values[used], torch.stack(vh[used].chunk(len(deltas), dim=1))


def test_knots(net):
    def reference(deltas):
        u, values, parts = naive_space(deltas)
        return u * values @ naive_ties(parts, 0.5)

    check(net, "knots", reference)


def test_knots_with_the_mean_is_the_mean(net):
    for layer in layers(net):
        found = in_knots_space(layer, lambda parts: parts.mean(0)).dense()
        torch.testing.assert_close(found, layer.dense().mean(0))


def test_core_space_ties(net):
    model, adapters, _ = net
    found = toy.dense(merged(net, "core_space_ties").adapter)
    for path in model.targets:
        deltas = [adapter.deltas[path] for adapter in adapters if path in adapter.deltas]
        left = torch.linalg.svd(
            torch.cat([delta.up for delta in deltas], dim=1), full_matrices=False
        )[0]
        right = torch.linalg.svd(torch.cat([delta.down for delta in deltas]), full_matrices=False)[
            2
        ]
        cores = torch.stack([left.T @ delta.dense() @ right.T for delta in deltas])
        torch.testing.assert_close(found[path], left @ naive_ties(cores, 0.5) @ right)


def zero_at(net, path):
    """Return a layer of two adapters, of which the second does nothing, but is there."""
    _, adapters, _ = net
    shape = shapes_of(net)[path]
    nothing = LowRankDelta(torch.zeros(shape[0], 2).double(), torch.ones(2, shape[1]).double())
    return Layer(path, False, {0: adapters[0].deltas[path], 1: nothing}, 2, ())


def first_singular_vectors(matrix, count):
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :count]


def naive_compress_then_merge(deltas, rank, density=0.5):
    """Compress-then-Merge on whole weights, without a core space, of those that are not zero."""
    deltas = [delta for delta in deltas if delta.any()]
    even = [delta / delta.norm() for delta in deltas]
    of_outputs = min(rank, int(torch.linalg.matrix_rank(torch.cat(even, dim=1))))
    of_inputs = min(rank, int(torch.linalg.matrix_rank(torch.cat(even))))
    right = first_singular_vectors(torch.cat([delta.T for delta in even], dim=1), of_inputs)
    errors = []
    while len(errors) < 3 or abs(errors[-1] - errors[-2]) >= 1e-6:
        left = first_singular_vectors(
            torch.cat([delta @ right for delta in even], dim=1), of_outputs
        )
        right = first_singular_vectors(
            torch.cat([delta.T @ left for delta in even], dim=1), of_inputs
        )
        kept = sum((left.T @ delta @ right).square().sum() for delta in even)
        errors.append((abs(len(even) - kept) / len(even)).sqrt().item())
    return left @ naive_ties([left.T @ delta @ right for delta in deltas], density) @ right.T


@pytest.mark.parametrize("density", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("rank", [1, 2, 3, 6])
def test_compress_then_merge(net, rank, density):
    reference = lambda deltas: naive_compress_then_merge(deltas, rank, density)  # noqa: E731
    check(net, "compress_then_merge", reference, 1e-7, rank=rank, density=density)
    for layer in merged(net, "compress_then_merge", rank, density=density).report.layers:
        assert layer.rank <= rank
        assert not layer.cut  # the rank is given by construction


def test_compress_then_merge_takes_the_largest_of_the_ranks_where_none_is_requested():
    model = toy.build("attention")
    adapters = [model.adapter("a", 1), model.adapter("b", 3)]
    found = merged((model, adapters, toy.own_tasks(model, adapters)), "compress_then_merge")
    for path, delta in found.adapter.deltas.items():
        each = [adapter.deltas[path].dense() for adapter in adapters]
        assert delta.rank == 3
        torch.testing.assert_close(
            delta.dense(), naive_compress_then_merge(each, 3), rtol=0, atol=1e-8
        )


def test_compress_then_merge_shares_a_size_out_and_then_keeps_to_it(net):
    model, adapters, tasks = net
    size = 400
    found = toy.merge_toy(model, adapters, tasks, method="compress_then_merge", size=size)
    deltas = found.adapter.deltas
    assert sum(delta.rank * sum(delta.shape) for delta in deltas.values()) <= size
    assert max(delta.rank for delta in deltas.values()) > 2  # more than any adapter has here
    naive = {
        path: naive_compress_then_merge(dense, deltas[path].rank)
        for path, dense in dense_deltas(net).items()
    }
    assert toy.largest_error(toy.dense(found.adapter), naive) < 1e-7


def test_shared_subspaces_keep_more_than_the_leading_ones_of_each_side(net):
    gains = []
    for layer in layers(net):
        cores = core_space(list(layer.deltas.values())).cores
        left, right = shared_subspaces(cores, 2)
        torch.testing.assert_close(left.T @ left, torch.eye(2).double())
        torch.testing.assert_close(right.T @ right, torch.eye(2).double())
        first_left = first_singular_vectors(torch.cat(list(cores), dim=1), 2)
        first_right = first_singular_vectors(torch.cat(list(cores.mT), dim=1), 2)
        gains.append(
            (left.T @ cores @ right).square().sum()
            - (first_left.T @ cores @ first_right).square().sum()
        )
    assert min(gains) > -1e-9
    assert max(gains) > 1e-3


def naive_ace(deltas):
    """The authors' ``ace_merging`` in their order of steps, on whole weights."""
    deltas = [delta for delta in deltas if delta.any()]
    if len(deltas) == 1:
        return deltas[0]
    width = deltas[0].shape[1]
    identity = torch.eye(width).double()
    energies = torch.tensor([(delta.T @ delta).trace() for delta in deltas])
    logs = [energy.log() for energy in energies]
    mean = sum(logs) / len(logs)
    variance = sum((log - mean) ** 2 for log in logs) / (len(logs) - 1)
    differ = variance / mean**2 > 0.3
    covariances, ridges, top = [], [], torch.zeros_like(deltas[0])
    for delta in deltas:
        centred = delta - delta.mean(0)
        covariance, ridge = centred.T @ centred, 0.01
        if differ:
            covariance, ridge = covariance / covariance.trace(), 0.01 / covariance.trace()
        covariances.append(covariance)
        ridges.append(ridge)
        top += centred @ (covariance + ridge * identity)
    all_of_them = sum(covariances) + sum(ridges) * identity
    prior = sum(covariances).mean(0) / (energies.mean() if differ else 1)
    solved = top @ torch.linalg.inv(all_of_them + prior[None])
    if not differ:
        return solved
    rest = sum(
        delta @ (covariance - all_of_them / len(deltas))
        for delta, covariance in zip(deltas, covariances, strict=True)
    )
    u, values, vh = torch.linalg.svd(solved + rest, full_matrices=False)
    count = max(1, int(0.3 * int((values > 1e-9).sum())))
    return solved + values[:count].mean() * u[:, :count] @ vh[:count]


def differ_in_size(deltas):
    logs = torch.stack([delta.norm().square().log() for delta in deltas if delta.any()])
    return len(logs) > 1 and bool(logs.var() / logs.mean() ** 2 > 0.3)


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("strengths", [(1.0, 1.0, 1.0), (0.02, 3.0, 0.4), (1e-3, 1e-3, 1e-3)])
def test_ace(strengths, rank):
    """Ranks of 4 are together more than the weights have dimensions."""
    model = toy.build("attention")
    adapters = [
        model.adapter(f"{k}", rank).scaled(strength) for k, strength in enumerate(strengths)
    ]
    net = (model, adapters, toy.own_tasks(model, adapters))
    both_kinds = {differ_in_size(deltas) for deltas in dense_deltas(net).values()}
    assert (strengths == (0.02, 3.0, 0.4)) <= (True in both_kinds)
    assert (strengths[0] == 1e-3) <= (both_kinds == {False})
    check(net, "ace", naive_ace, 1e-7, rank="full")  # the guards of 1e-12 are left out


def test_ace_on_layers_that_not_all_adapters_change(net):
    check(net, "ace", naive_ace, 1e-9)


def test_ace_of_weak_adapters_is_nearly_their_mean():
    """Its ridge is absolute, and the more it weighs, the less the covariances do."""
    model = toy.build("one layer")
    adapters = [model.adapter(f"{k}").scaled(1e-4) for k in range(2)]
    found = merged((model, adapters, toy.own_tasks(model, adapters)), "ace")
    centred = [delta - delta.mean(0) for delta in (a.deltas["layer"].dense() for a in adapters)]
    torch.testing.assert_close(
        found.adapter.deltas["layer"].dense(), sum(centred) / 2, rtol=1e-4, atol=1e-10
    )


@pytest.mark.parametrize("name", ["ace", "compress_then_merge"])
def test_an_adapter_that_is_there_and_does_nothing_changes_nothing(net, name):
    path = "cross_attention.k"
    with_nothing = zero_at(net, path)
    alone = dataclasses.replace(with_nothing, deltas={0: with_nothing.deltas[0]})
    rule = METHODS[name].rule
    torch.testing.assert_close(rule(with_nothing).dense(), rule(alone).dense())
    nothing = dataclasses.replace(with_nothing, deltas={1: with_nothing.deltas[1]})
    assert not rule(nothing).dense().any()


@pytest.mark.parametrize("name", ["ace", "compress_then_merge"])
def test_convolutions_are_merged_as_matrices(name):
    model = toy.build("convolution")
    adapters = [model.adapter(f"{k}") for k in range(2)]
    found = toy.dense(merged((model, adapters, toy.own_tasks(model, adapters)), name).adapter)
    for path in model.targets:
        each = [adapter.deltas[path].dense() for adapter in adapters]
        expected = naive_ace(each) if name == "ace" else naive_compress_then_merge(each, 2)
        torch.testing.assert_close(found[path], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c"])
def test_in_core_space_these_are_what_they_are_outside(net, name):
    rule = METHODS[name].rule
    for layer in layers(net):
        left = torch.linalg.svd(layer.together.up, full_matrices=False)[0]
        right = torch.linalg.svd(layer.together.down.T, full_matrices=False)[0]
        cores = {
            k: dataclasses.replace(d, up=left.T @ d.up, down=d.down @ right)
            for k, d in layer.deltas.items()
        }
        inside = rule(dataclasses.replace(layer, deltas=cores)).dense()
        torch.testing.assert_close(left @ inside @ right.T, rule(layer).dense())


def test_tsv_m(net):
    def orthonormal(columns):
        """Return ``M (M^T M)^(-1/2)``."""
        values, vectors = torch.linalg.eigh(columns.T @ columns)
        return columns @ vectors @ torch.diag(values.rsqrt()) @ vectors.T

    def reference(deltas):
        parts = [torch.linalg.svd(delta) for delta in deltas if delta.any()]
        ranks = [int((values > 1e-9).sum()) for _, values, _ in parts]
        u = orthonormal(
            torch.cat([u[:, :r] for (u, _, _), r in zip(parts, ranks, strict=True)], dim=1)
        )
        v = orthonormal(
            torch.cat([vh[:r].T for (_, _, vh), r in zip(parts, ranks, strict=True)], dim=1)
        )
        return (
            u
            @ torch.diag(torch.cat([s[:r] for (_, s, _), r in zip(parts, ranks, strict=True)]))
            @ v.T
        )

    check(net, "tsv_m", reference)


def test_tsv_m_keeps_a_fair_share_where_the_ranks_do_not_fit(net):
    model = net[0]
    path = "cross_attention.k"  # 6 x 5, for ranks 4 + 4
    deltas = {k: model.adapter(rank=4).deltas[path] for k in range(2)}
    found = tsv_m(Layer(path, True, deltas, 2, ()))
    kept = [torch.linalg.svdvals(delta.dense())[:2] for delta in deltas.values()]
    torch.testing.assert_close(
        torch.linalg.svdvals(found.dense())[:4], torch.cat(kept).sort(descending=True).values
    )
    assert found.rank == 4


def test_iso_c(net):
    def reference(deltas):
        u, values, vh = torch.linalg.svd(deltas.sum(0), full_matrices=False)
        used = values > 1e-9
        return values[used].mean() * u[:, used] @ vh[used]

    check(net, "iso_c", reference)


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0, None])
def test_np_lora(net, mu):
    def reference(deltas):
        style, *others = deltas
        directions = torch.linalg.svd(style)[2][:2].T  # its rank is 2
        share = 1.0 if mu is None else mu / (1 + mu)
        return style + sum(others) @ (
            torch.eye(style.shape[1]).double() - share * directions @ directions.T
        )

    check(net, "np_lora", reference, projection=mu)
