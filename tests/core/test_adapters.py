"""The arithmetic of low-rank deltas, against dense matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import Adapter, AdapterError, ConfigError, LowRankDelta
from iteris_core.adapters import check_adapters, sha256_of_tensors, stack


def random_delta(rank):
    return LowRankDelta(torch.randn(5, rank).double(), torch.randn(rank, 7).double())


@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_stack_says_where_each_delta_is(ranks):
    deltas = {k: random_delta(rank) for k, rank in enumerate(ranks, 3)}
    stacked = stack(deltas).to(dtype=torch.float32)
    assert list(stacked.slices) == list(deltas)
    for k, delta in deltas.items():
        place = stacked.slices[k]
        assert torch.equal(stacked.delta.up[:, place], delta.up.float())
        assert torch.equal(stacked.delta.down[place], delta.down.float())


def test_balanced_factors_have_equal_norms_and_the_same_product_and_no_nan_for_an_unused_rank():
    delta = random_delta(4)
    delta.up[:, 0] = 0
    delta.down[1] = 0
    lopsided = LowRankDelta(delta.up * 1e6, delta.down * 1e-6)
    balanced = lopsided.balanced()
    torch.testing.assert_close(balanced.dense(), delta.dense())
    torch.testing.assert_close(balanced.up.norm(dim=0)[2:], balanced.down.norm(dim=1)[2:])


@pytest.mark.parametrize("shape", [(300, 300), (260, 700), (700, 260)])
def test_a_dense_delta_of_full_rank_is_kept_as_it_is_and_one_of_low_rank_as_factors(shape):
    torch.manual_seed(0)
    full = torch.randn(shape)
    found = LowRankDelta.from_dense(full)
    assert found.rank == min(shape) and torch.equal(found.dense(), full)
    low = torch.randn(shape[0], 20) @ torch.randn(20, shape[1])
    found = LowRankDelta.from_dense(low)
    assert found.rank == 20
    torch.testing.assert_close(found.dense(), low, rtol=1e-4, atol=1e-4)


def test_strength_0_leaves_no_deltas():
    adapter = Adapter("a", {"layer": random_delta(2)}, ("key",), {"ss_tag": "x"})
    assert adapter.scaled(0.0).deltas == {}
    assert adapter.scaled(0.0).unmatched == ("key",)
    torch.testing.assert_close(
        adapter.scaled(-0.5).deltas["layer"].dense(), -0.5 * adapter.deltas["layer"].dense()
    )


def test_split_gives_every_delta_and_vector_to_one_of_two_parts():
    vectors = {"te.x.bias": torch.ones(5), "unet.x.bias": torch.zeros(5)}
    deltas = {"te.x": random_delta(1), "unet.x": random_delta(2), "te.y": random_delta(3)}
    adapter = Adapter("a", deltas, ("key",), {"ss_tag": "x"}, vectors)
    text, rest = adapter.split(lambda path: path.startswith("te"))
    assert (list(text.deltas), list(text.vectors)) == (["te.x", "te.y"], ["te.x.bias"])
    assert (list(rest.deltas), list(rest.vectors)) == (["unet.x"], ["unet.x.bias"])
    for part in (text, rest):
        assert (part.name, part.unmatched, part.metadata) == ("a", ("key",), {"ss_tag": "x"})
    joined = text.joined_with(rest)
    assert joined.deltas == deltas
    assert joined.vectors == vectors


def test_a_strength_that_is_no_number_is_refused():
    for strength in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ConfigError, match=r"the strength of 'a' is -?(nan|inf); it must be a"):
            Adapter("a", {"x": random_delta(1)}).scaled(strength)


@pytest.mark.parametrize("side", ["up", "down", "vector"])
def test_an_adapter_that_holds_no_numbers_is_refused_by_name_and_layer(side):
    for value in (float("nan"), float("inf")):
        adapter = Adapter("b", {"x": random_delta(2)}, vectors={"x.bias": torch.zeros(5)})
        check_adapters([adapter])
        tensors = {"vector": adapter.vectors["x.bias"]}
        tensors |= {"up": adapter.deltas["x"].up, "down": adapter.deltas["x"].down}
        tensors[side].view(-1)[1] = value
        place = "x.bias" if side == "vector" else "x"
        with pytest.raises(AdapterError, match=f"adapter 'b' holds NaN, .* of '{place}': its tr"):
            check_adapters([Adapter("a", {"x": random_delta(1)}), adapter])


def test_an_adapter_whose_tensors_are_not_loaded_is_refused():
    with torch.device("meta"):
        delta = LowRankDelta(torch.zeros(5, 1), torch.zeros(1, 7))
    with pytest.raises(AdapterError, match="no numbers at all in its change of 'x'"):
        check_adapters([Adapter("a", {"x": delta})])


def test_changes_of_one_bias_in_two_shapes_are_refused():
    one, other = (
        Adapter(name, {}, vectors={"x.bias": torch.zeros(shape)})
        for name, shape in (("a", (5,)), ("b", (5, 1)))
    )
    said = r"'b' changes 'x.bias' by numbers of shape \(5, 1\), and adapter 'a' by \(5,\)"
    with pytest.raises(AdapterError, match=said):
        check_adapters([one, other])


def test_two_adapters_of_one_name_are_refused():
    """A report would show one of them alone."""
    with pytest.raises(AdapterError, match="two adapters are called 'a'"):
        check_adapters([Adapter("a", {"x": random_delta(1)}), Adapter("a", {"x": random_delta(2)})])


def test_large_numbers_are_numbers_though_their_sum_overflows():
    delta = LowRankDelta(torch.full((5, 2), 3e38), torch.full((2, 7), 60000.0).half())
    check_adapters([Adapter("a", {"x": delta})])


def test_the_hash_of_tensors_tells_values_names_types_and_shapes_apart():
    tensors = {"a": torch.ones(3, 2), "b\ud800": torch.zeros(0), "c": torch.tensor(1.5).bfloat16()}
    one = sha256_of_tensors(tensors)
    assert one == sha256_of_tensors(dict(reversed(tensors.items())))
    assert one == sha256_of_tensors(tensors | {"a": torch.ones(2, 3).T})
    for changed in (torch.ones(2, 3), torch.ones(3, 2).half(), -torch.ones(3, 2)):
        assert sha256_of_tensors(tensors | {"a": changed}) != one
    assert sha256_of_tensors({"x": torch.ones(1)}) != sha256_of_tensors({"y": torch.ones(1)})
