"""Every kind of adapter file, against its definition written out densely."""

import pytest
import torch
import toy

from iteris_core import AdapterError
from iteris_core.files import kohya
from iteris_core.files.adapter_kinds import delta_of, own_dense_delta, peft_dora
from iteris_core.files.families import FAMILIES
from iteris_core.files.model_keys import ModelKeys
from iteris_core.files.roles import WrongShape

SHAPES = {"conv": (6, 4 * 9), "linear": (6, 5)}
BASES = {"lora_unet_conv": "conv", "lora_unet_linear": "linear", "lora_unet_norm": "norm"}


SIZES = {"linear.bias": 6, "norm.weight": 4, "norm.bias": 4}
KEYS = ModelKeys(FAMILIES["SD1.5"], BASES, {}, SHAPES, vector_sizes=SIZES)


def parse(tensors, **options):
    return kohya.parse("file", tensors, KEYS, **options)


@pytest.mark.slow  # it imports lycoris
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("LoConModule", {}), ("LoConModule", {"use_tucker": True})),
        *(("LohaModule", {}), ("LokrModule", {})),
        ("LokrModule", {"factor": 2, "decompose_both": True}),
        ("LokrModule", {"factor": 2, "use_tucker": True}),
    ],
)
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_what_lycoris_trains_is_read_as_lycoris_runs_it(kind, options, name):
    """On layers so large that a LoKr has factors."""
    layer = torch.nn.Linear(8, 12) if name == "linear" else torch.nn.Conv2d(8, 12, 3)
    run = torch.nn.functional.linear if name == "linear" else torch.nn.functional.conv2d
    shape = layer.weight.shape
    x = torch.randn(2, 8, 8, 8)
    before = layer(x)
    lycoris = pytest.importorskip("lycoris.modules")
    trained = getattr(lycoris, kind)("x", layer, lora_dim=2, alpha=3, **options)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_()
    tensors = {f"lora_unet_x.{k}": v.detach() for k, v in trained.state_dict().items()}
    size = tuple(layer.weight.flatten(1).shape)
    keys = ModelKeys(FAMILIES["SD1.5"], {"lora_unet_x": "x"}, {}, {"x": size})
    made = own_dense_delta({}.__getitem__)
    delta = kohya.parse("file", tensors, keys, dense_delta=made).deltas["x"].dense()
    trained.apply_to()
    expected = layer(x) - before
    torch.testing.assert_close(run(x, delta.reshape(shape)), expected, rtol=1e-3, atol=1e-3)


def test_a_full_difference_a_bias_and_norms():
    tensors = {
        "lora_unet_linear.diff": torch.randn(6, 5),
        "lora_unet_linear.diff_b": torch.randn(6),
        "lora_unet_norm.w_norm": torch.randn(4),
        "lora_unet_norm.b_norm": torch.randn(9),
    }
    adapter = parse(tensors)
    torch.testing.assert_close(
        adapter.deltas["linear"].dense(), tensors["lora_unet_linear.diff"], rtol=1e-4, atol=1e-5
    )
    assert torch.equal(adapter.vectors["linear.bias"], tensors["lora_unet_linear.diff_b"])
    assert set(adapter.vectors) == {"linear.bias", "norm.weight"}
    assert adapter.unmatched == ("lora_unet_norm.b_norm",)  # nine numbers for a norm of four
    # a difference of one dimension is a norm's
    tensors = {"lora_unet_norm.diff": torch.randn(4), "lora_unet_norm.diff_b": torch.randn(4)}
    adapter = parse(tensors)
    assert not adapter.deltas
    assert torch.equal(adapter.vectors["norm.weight"], tensors["lora_unet_norm.diff"])
    assert torch.equal(adapter.vectors["norm.bias"], tensors["lora_unet_norm.diff_b"])
    key = "lora_unet_linear.diff_b"
    assert parse({**tensors, key: torch.ones(5)}).unmatched == (key,)


def peft_dora_layer(layer, rank, **options):
    """Return the tensors of a trained-looking DoRA of PEFT's own, and the weight it merges them into."""
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


@pytest.mark.parametrize(
    ("kind", "ending"), [("linear", ""), ("linear", ".default.weight"), ("conv", ".weight")]
)
def test_a_dora_of_peft_is_read_as_peft_merges_it(kind, ending):
    layer = torch.nn.Linear(5, 6) if kind == "linear" else torch.nn.Conv2d(4, 6, 3)
    weight = layer.weight.detach().clone()
    tensors, merged = peft_dora_layer(layer, 2)
    start = f"lora_unet_{kind}."
    renamed = {key.replace("base_model.model.0.", start): t for key, t in tensors.items()}
    (old,) = [key for key in renamed if "magnitude" in key]
    renamed[f"lora_unet_{kind}.lora_magnitude_vector{ending}"] = renamed.pop(old)
    adapter = parse(renamed, dense_delta=own_dense_delta({kind: weight}.__getitem__))
    assert adapter.unmatched == ()
    without = {key: tensor for key, tensor in renamed.items() if "magnitude" not in key}
    plain = parse(without).deltas[kind].dense()
    expected = (merged - weight).flatten(1)
    torch.testing.assert_close(adapter.deltas[kind].dense(), expected, rtol=1e-3, atol=1e-4)
    assert (plain - expected).norm() > 0.1 * expected.norm()
    said = f"'lora_unet_{kind}' is a DoRA, which cannot be read here"
    with pytest.raises(AdapterError, match=said):
        parse(renamed)


def test_a_dora_with_too_few_magnitudes_is_refused():
    group = {"up": torch.ones(6, 2), "down": torch.ones(2, 5), "magnitude": torch.ones(4)}
    said = "has 4 magnitudes, but this model's weight there has 6 outputs"
    with pytest.raises(WrongShape, match=said):
        peft_dora(group, torch.ones(6, 5))
    with pytest.raises(AdapterError, match="is a DoRA, whose delta depends on the base model"):
        peft_dora(group, None)


def test_what_makes_a_dense_delta_says_where_it_went_wrong_once():
    """Whoever makes it raises the predicate alone; the reader of the file puts the place before it."""
    tensors = {"lora_unet_linear.oft_blocks": torch.ones(1, 2, 2)}
    part = {"lora_unet_linear.lokr_w1": torch.ones(2, 1)}

    def fail(part, tensors):
        raise AdapterError("cannot be applied")

    for make, message in (
        (fail, "cannot be applied"),
        (
            lambda part, tensors: torch.ones(5, 6),
            r"has an OFT of \(5, 6\), but .* use a LoRA for SD1.5",
        ),
        (own_dense_delta(fail), "is an OFT, which only ComfyUI's own code applies"),
    ):
        with pytest.raises(AdapterError, match=f"^file: 'lora_unet_linear' {message}"):
            parse(tensors, dense_delta=make)
    with pytest.raises(AdapterError, match="' has no lokr_w2_a and no lokr_w2_b factor"):
        parse(part)


@pytest.mark.parametrize("core", [False, True])
def test_a_lokr_has_the_factors_of_its_matrices(core):
    """Which are small, where the delta is large."""
    w1, a, b = torch.randn(3, 5), torch.randn(4, 2), torch.randn(2, 6)
    tensors = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(4.0)}
    w2 = a @ b
    if core:
        tensors |= {"lokr_t2": torch.randn(2, 2, 3, 3), "lokr_w2_a": a.T}
        w2 = torch.einsum("ijkl,jr,pi->prkl", tensors["lokr_t2"], b, a).flatten(1).contiguous()
    delta = delta_of(tensors, (12, 30 * (9 if core else 1)))
    torch.testing.assert_close(delta.dense(), 2 * torch.kron(w1, w2), rtol=1e-4, atol=1e-4)
    assert delta.rank == 3 * 2


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_lokr_of_whole_matrices_is_read(size):
    w1, w2 = torch.randn(4, 4), size * torch.randn(80, 80)
    delta = delta_of({"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1.0)}, (320, 320))
    torch.testing.assert_close(delta.dense(), torch.kron(w1, w2), rtol=1e-3, atol=1e-3)


def test_biases_are_merged_by_their_mean_where_an_adapter_without_one_counts_as_zero():
    net = toy.build("one layer")
    adapters = [net.adapter("a"), net.adapter("b")]
    adapters[0] = type(adapters[0])("a", adapters[0].deltas, vectors={"layer.bias": torch.ones(4)})
    merged = toy.merge_toy(net, adapters, toy.own_tasks(net, adapters)).adapter
    assert torch.equal(merged.vectors["layer.bias"], torch.full((4,), 0.5))
