"""Every kind of adapter file, against its definition written out densely."""

import pytest
import torch

from iteris_core import AdapterError
from iteris_core.formats import kohya

SHAPES = {"conv": (6, 4 * 9), "linear": (6, 5)}
BASES = {"lora_unet_conv": "conv", "lora_unet_linear": "linear", "lora_unet_norm": "norm"}


def parse(tensors, **options):
    return kohya.parse("file", tensors, BASES, SHAPES, **options)


def test_a_locon_convolution():
    up, down = torch.randn(6, 3, 1, 1), torch.randn(3, 4, 3, 3)
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.5)}
    delta = parse({f"lora_unet_conv.{k}": v for k, v in tensors.items()}).deltas["conv"]
    expected = torch.einsum("or,rchw->ochw", up[:, :, 0, 0], down) * 0.5
    torch.testing.assert_close(delta.dense().reshape(6, 4, 3, 3), expected)


def test_a_tucker_core():
    up, mid, down = torch.randn(6, 3, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(3, 4, 1, 1)
    tensors = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    delta = parse({f"lora_unet_conv.{k}": v for k, v in tensors.items()}).deltas["conv"]
    expected = torch.einsum("om,mrhw,rc->ochw", up[..., 0, 0], mid, down[..., 0, 0])
    torch.testing.assert_close(delta.dense().reshape(6, 4, 3, 3), expected)
    assert delta.rank == 3


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_loha_is_exact(rank):
    w1_a, w1_b, w2_a, w2_b = torch.randn(6, rank), torch.randn(rank, 5), torch.randn(6, rank), torch.randn(rank, 5)
    tensors = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b, "alpha": torch.tensor(2.0)}
    delta = parse({f"lora_unet_linear.{k}": v for k, v in tensors.items()}).deltas["linear"]
    torch.testing.assert_close(delta.dense(), (w1_a @ w1_b) * (w2_a @ w2_b) * 2.0 / rank, rtol=1e-4, atol=1e-4)
    assert delta.rank <= min(rank * rank, 5)


def test_a_full_difference_a_bias_and_a_norm():
    tensors = {
        "lora_unet_linear.diff": torch.randn(6, 5),
        "lora_unet_linear.diff_b": torch.randn(6),
        "lora_unet_norm.w_norm": torch.randn(4),
        "lora_unet_norm.b_norm": torch.randn(9),
    }
    adapter = parse(tensors, vector_sizes={"linear.bias": 6, "norm.weight": 4, "norm.bias": 4})
    torch.testing.assert_close(adapter.deltas["linear"].dense(), tensors["lora_unet_linear.diff"], rtol=1e-4, atol=1e-5)
    assert torch.equal(adapter.vectors["linear.bias"], tensors["lora_unet_linear.diff_b"])
    assert set(adapter.vectors) == {"linear.bias", "norm.weight"}
    assert "lora_unet_norm.b_norm" in adapter.unmatched  # nine numbers for a norm of four


def test_kinds_of_the_host_get_their_delta_from_it():
    weight = torch.randn(6, 2) @ torch.randn(2, 5)
    tensors = {"lora_unet_linear.lokr_w1": torch.randn(2, 1), "lora_unet_linear.lokr_w2": torch.randn(3, 5)}
    delta = parse(tensors, dense_delta=lambda path: weight).deltas["linear"]
    torch.testing.assert_close(delta.dense(), weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="'lora_unet_linear' is a LoKr, which cannot be read here"):
        parse(tensors)


def test_an_oversized_delta_is_written_whole_on_request():
    adapter = parse({"lora_unet_linear.diff": torch.randn(6, 5)})
    factors = kohya.to_tensors(adapter, {"linear": "lora_unet_linear"})
    whole = kohya.to_tensors(adapter, {"linear": "lora_unet_linear"}, whole=True)
    assert set(whole) == {"lora_unet_linear.diff"} and "lora_unet_linear.lora_up.weight" in factors
    torch.testing.assert_close(
        parse(whole).deltas["linear"].dense(), parse(factors).deltas["linear"].dense(), rtol=1e-4, atol=1e-4
    )


def test_biases_are_merged_by_their_mean_where_an_adapter_without_one_counts_as_zero(toy):
    net = toy.build("one layer")
    adapters = [net.adapter("a"), net.adapter("b")]
    adapters[0] = type(adapters[0])("a", adapters[0].deltas, vectors={"layer.bias": torch.ones(4)})
    merged = toy.merge_toy(net, adapters, toy.own_tasks(net, adapters)).adapter
    assert torch.equal(merged.vectors["layer.bias"], torch.full((4,), 0.5))
