"""Every kind of adapter file, against its definition written out densely."""

import pytest
import torch
import toy

from iteris_core import AdapterError
from iteris_core.files import kohya
from iteris_core.files.kinds import peft_dora

SHAPES = {"conv": (6, 4 * 9), "linear": (6, 5)}
BASES = {"lora_unet_conv": "conv", "lora_unet_linear": "linear", "lora_unet_norm": "norm"}


def parse(tensors, **options):
    return kohya.parse("file", tensors, BASES, SHAPES, **options)


def test_a_locon_convolution():
    up = torch.randn(6, 3, 1, 1)
    down = torch.randn(3, 4, 3, 3)
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.5)}
    delta = parse({f"lora_unet_conv.{k}": v for k, v in tensors.items()}).deltas["conv"]
    expected = torch.einsum("or,rchw->ochw", up[:, :, 0, 0], down) * 0.5
    torch.testing.assert_close(delta.dense().reshape(6, 4, 3, 3), expected)


def test_a_tucker_core():
    up = torch.randn(6, 3, 1, 1)
    mid = torch.randn(3, 3, 3, 3)
    down = torch.randn(3, 4, 1, 1)
    tensors = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    delta = parse({f"lora_unet_conv.{k}": v for k, v in tensors.items()}).deltas["conv"]
    expected = torch.einsum("om,mrhw,rc->ochw", up[..., 0, 0], mid, down[..., 0, 0])
    torch.testing.assert_close(delta.dense().reshape(6, 4, 3, 3), expected)
    assert delta.rank == 3


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_loha_is_exact(rank):
    w1_a = torch.randn(6, rank)
    w1_b = torch.randn(rank, 5)
    w2_a = torch.randn(6, rank)
    w2_b = torch.randn(rank, 5)
    tensors = {
        "hada_w1_a": w1_a,
        "hada_w1_b": w1_b,
        "hada_w2_a": w2_a,
        "hada_w2_b": w2_b,
        "alpha": torch.tensor(2.0),
    }
    delta = parse({f"lora_unet_linear.{k}": v for k, v in tensors.items()}).deltas["linear"]
    torch.testing.assert_close(
        delta.dense(), (w1_a @ w1_b) * (w2_a @ w2_b) * 2.0 / rank, rtol=1e-4, atol=1e-4
    )
    assert delta.rank <= min(rank * rank, 5)


def test_a_full_difference_a_bias_and_a_norm():
    tensors = {
        "lora_unet_linear.diff": torch.randn(6, 5),
        "lora_unet_linear.diff_b": torch.randn(6),
        "lora_unet_norm.w_norm": torch.randn(4),
        "lora_unet_norm.b_norm": torch.randn(9),
    }
    adapter = parse(tensors, vector_sizes={"linear.bias": 6, "norm.weight": 4, "norm.bias": 4})
    torch.testing.assert_close(
        adapter.deltas["linear"].dense(), tensors["lora_unet_linear.diff"], rtol=1e-4, atol=1e-5
    )
    assert torch.equal(adapter.vectors["linear.bias"], tensors["lora_unet_linear.diff_b"])
    assert set(adapter.vectors) == {"linear.bias", "norm.weight"}
    assert "lora_unet_norm.b_norm" in adapter.unmatched  # nine numbers for a norm of four


def test_kinds_of_the_host_get_their_delta_from_it():
    weight = torch.randn(6, 2) @ torch.randn(2, 5)
    tensors = {
        "lora_unet_linear.lokr_w1": torch.randn(2, 1),
        "lora_unet_linear.lokr_w2": torch.randn(3, 5),
    }
    asked = []
    delta = parse(
        tensors, dense_delta=lambda path, group: asked.append((path, sorted(group))) or weight
    ).deltas["linear"]
    assert asked == [("linear", ["lokr_w1", "lokr_w2"])]
    torch.testing.assert_close(delta.dense(), weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        AdapterError, match="'lora_unet_linear' is a LoKr, which cannot be read here"
    ):
        parse(tensors)


def peft_dora_layer(layer, rank, **options):
    """Return a trained-looking DoRA of PEFT's own: its state dict's tensors, and the weight that
    PEFT merges it into.
    """
    peft = pytest.importorskip("peft")

    model = peft.get_peft_model(
        torch.nn.Sequential(layer),
        peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], use_dora=True),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    tensors = {key: tensor.clone() for key, tensor in peft.get_peft_model_state_dict(model).items()}
    return tensors, model.merge_and_unload()[0].weight.detach()


@pytest.mark.parametrize("ending", ["", ".weight", ".default.weight"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_dora_of_peft_is_read_as_peft_merges_it(kind, ending):
    layer = torch.nn.Linear(5, 6) if kind == "linear" else torch.nn.Conv2d(4, 6, 3)
    weight = layer.weight.detach().clone()
    tensors, merged = peft_dora_layer(layer, 2)
    renamed = {
        key.replace("base_model.model.0.", f"lora_unet_{kind}."): tensor
        for key, tensor in tensors.items()
    }
    (old,) = [key for key in renamed if "magnitude" in key]
    renamed[f"lora_unet_{kind}.lora_magnitude_vector{ending}"] = renamed.pop(old)
    make = lambda path, group: peft_dora("file", path, group, weight)  # noqa: E731
    adapter = parse(renamed, dense_delta=make)
    assert adapter.unmatched == ()
    plain = (
        parse({key: tensor for key, tensor in renamed.items() if "magnitude" not in key})
        .deltas[kind]
        .dense()
    )
    expected = (merged - weight).flatten(1)
    torch.testing.assert_close(adapter.deltas[kind].dense(), expected, rtol=1e-3, atol=1e-4)
    assert (plain - expected).norm() > 0.1 * expected.norm()
    with pytest.raises(
        AdapterError, match=f"'lora_unet_{kind}' is a DoRA, which cannot be read here"
    ):
        parse(renamed)


def test_a_dora_with_too_few_magnitudes_is_refused():
    group = {"up": torch.ones(6, 2), "down": torch.ones(2, 5), "magnitude": torch.ones(4)}
    with pytest.raises(
        AdapterError, match="'base' has 4 magnitudes, but this model's weight there has 6 outputs"
    ):
        peft_dora("file", "base", group, torch.ones(6, 5))


def test_an_oversized_delta_is_written_whole_on_request():
    adapter = parse({"lora_unet_linear.diff": torch.randn(6, 5)})
    factors = kohya.to_tensors(adapter, {"linear": "lora_unet_linear"})
    whole = kohya.to_tensors(adapter, {"linear": "lora_unet_linear"}, whole=True)
    assert set(whole) == {"lora_unet_linear.diff"} and "lora_unet_linear.lora_up.weight" in factors
    torch.testing.assert_close(
        parse(whole).deltas["linear"].dense(),
        parse(factors).deltas["linear"].dense(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_biases_are_merged_by_their_mean_where_an_adapter_without_one_counts_as_zero():
    net = toy.build("one layer")
    adapters = [net.adapter("a"), net.adapter("b")]
    adapters[0] = type(adapters[0])("a", adapters[0].deltas, vectors={"layer.bias": torch.ones(4)})
    merged = toy.merge_toy(net, adapters, toy.own_tasks(net, adapters)).adapter
    assert torch.equal(merged.vectors["layer.bias"], torch.full((4,), 0.5))
