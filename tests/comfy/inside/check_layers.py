"""The host's own classes of quantised layers: hooks reach them, and a sweep merges on them."""

import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.weight_adapter
import pytest
import torch
from iteris_pack.nodes.host.deltas import HostDeltas
from iteris_pack.nodes.keys import HostKeys
from torch import Tensor, nn

from iteris_core import (
    Adapter,
    AdapterError,
    LowRankDelta,
    MergeConfig,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.files.families import Family
from iteris_core.files.model_keys import WeightPart
from iteris_core.layers import base_weight_and_bias, is_quantised
from iteris_core.rows.wearing import wearing

FP8 = torch.float8_e4m3fn
CPU = torch.device("cpu")
WIDTH = 32
# Rows and weights are float32 here, in which base, hooks and patches differ by rounding alone.
ROUNDING = 2e-5
# What fp8's three bits are to a delta that is a third of its weight: 0.13 to 0.14 was measured.
FP8_ROUNDING = 0.05
LAYERS = ("first", "second", "third")


class Net(nn.Module):
    def __init__(self, linear: type[nn.Module], dtype: torch.dtype):
        super().__init__()
        for name in LAYERS:
            setattr(self, name, linear(WIDTH, WIDTH, dtype=dtype, device=CPU))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{part}": torch.randn(shape, generator=generator) / WIDTH**0.5
        for name in LAYERS
        for part, shape in {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)}.items()
    }


def of_dtype(dtype: torch.dtype) -> Net:
    """Return layers that keep their weights in a dtype and cast them in each call."""
    net = Net(comfy.ops.manual_cast.Linear, dtype)
    net.load_state_dict({key: tensor.to(dtype) for key, tensor in weights().items()})
    return net


def scaled() -> dict[str, Tensor]:
    tensors = weights()
    for name in LAYERS:
        weight = tensors[f"{name}.weight"]
        scale = weight.abs().max() / torch.finfo(FP8).max
        tensors[f"{name}.weight"] = (weight / scale).to(FP8)
        tensors[f"{name}.scale"] = scale
    return tensors


def scaled_fp8() -> Net:
    net = Net(comfy.ops.scaled_fp8_ops(override_dtype=FP8).Linear, FP8)
    net.load_state_dict(
        {key.replace(".scale", ".scale_weight"): tensor for key, tensor in scaled().items()}
    )
    return net


def mixed_precision() -> Net:
    layout = {"format": "float8_e4m3fn"}
    layers = dict.fromkeys(LAYERS, layout)
    tensors = {key.replace(".scale", ".weight_scale"): tensor for key, tensor in scaled().items()}
    make = comfy.ops.mixed_precision_ops
    if "quant_config" in inspect.signature(make).parameters:  # newer: the file says it
        marker = torch.tensor(list(json.dumps(layout).encode()), dtype=torch.uint8)
        tensors |= {f"{name}.comfy_quant": marker for name in LAYERS}
    net = Net(make(layers, torch.float32, full_precision_mm=True).Linear, torch.float32)
    net.load_state_dict(tensors)
    return net


KINDS: dict[str, Callable[[], Net]] = {
    "16 bit": lambda: of_dtype(torch.float16),
    "fp8 storage": lambda: of_dtype(FP8),
    "mixed precision": mixed_precision,
}
if hasattr(comfy.ops, "scaled_fp8_ops"):  # newer ComfyUIs load such files as mixed precision
    KINDS["scaled fp8"] = scaled_fp8


def lora(seed: int, size: float = 0.3) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        name: LowRankDelta(
            size * torch.randn(WIDTH, 2, generator=generator) / WIDTH**0.5,
            torch.randn(2, WIDTH, generator=generator) / 2**0.5,
        )
        for name in LAYERS
    }
    return Adapter("lora", deltas)


def patcher_of(net: Net, adapter: Adapter) -> Any:
    net.model_lowvram, net.lowvram_patch_counter = False, 0
    net.model_loaded_weight_memory, net.current_weight_patches_uuid = 0, None
    patcher = comfy.model_patcher.ModelPatcher(net, CPU, CPU)
    patches = {
        f"{name}.weight": comfy.weight_adapter.LoRAAdapter(
            set(), (delta.up, delta.down, float(delta.rank), None, None, None)
        )
        for name, delta in adapter.deltas.items()
    }
    assert len(patcher.add_patches(patches)) == len(adapter.deltas)
    return patcher


def difference(found: Tensor, expected: Tensor, base: Tensor) -> float:
    return ((found - expected).norm() / (expected - base).norm()).item()


def own_error(net: Net, adapter: Adapter, **settings: Any) -> float:
    generator = torch.Generator().manual_seed(7)
    samples = [Sample(torch.randn(6, WIDTH, generator=generator)) for _ in range(12)]
    network = Network(dict(net.named_modules()), lambda rows: net(torch.stack(rows)))
    task = Task("own", samples, {0: 1.0})
    result = merge(network, [adapter], [task], MergeConfig(**settings))
    assert list(result.adapter.deltas) == list(LAYERS)
    return max(
        ((delta.dense() - adapter.deltas[name].dense()).norm() / delta.dense().norm()).item()
        for name, delta in result.adapter.deltas.items()
    )


SCALE = torch.full((WIDTH, 1), 1.5)
NOTHING = Adapter("nothing", {})


def dora_of(net: Net, carried: Adapter = NOTHING) -> Tensor:
    """Return the dense delta of a DoRA at the first layer of a net that carries an adapter."""
    keys = HostKeys.of(Family("any"), dict(net.named_modules()), {}, {})
    patcher = patcher_of(net, carried)
    if carried.deltas:
        patcher.load(CPU, full_load=True)
    # its paths have no prefix, so to the host they are a text encoder's
    deltas = HostDeltas(None, SimpleNamespace(patcher=patcher), keys, lambda path: 1.0)
    plain = lora(1).deltas["first"]
    return deltas(
        WeightPart("first", 0, WIDTH), {"up": plain.up, "down": plain.down, "dora_scale": SCALE}
    )


def dora_error(net: Net, carried: Adapter = NOTHING) -> float:
    weight = base_weight_and_bias(net.first, CPU, torch.float32)[0]
    for delta in carried.deltas.values():
        weight = weight + delta.dense()
    moved = weight + lora(1).deltas["first"].dense()
    expected = moved * SCALE / weight.norm(dim=1, keepdim=True) - weight
    return ((dora_of(net, carried) - expected).norm() / expected.norm()).item()


class Packed(comfy.ops.manual_cast.Linear):
    """A layer whose weight only its own code can read, as those of ComfyUI-GGUF."""

    def __init__(self, *sizes: int, **more: Any):
        super().__init__(*sizes, **more)
        self.weight = nn.Parameter(torch.zeros(WIDTH, 5, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize("name", KINDS)
def test_hooks_reach_every_kind_of_layer_and_a_sweep_merges_on_it(name):
    """Also on offloaded layers that carry another LoRA, which the host patches in each call."""
    is_quantised_kind = name != "16 bit"
    net = KINDS[name]()
    assert [is_quantised(net.get_submodule(layer)) for layer in LAYERS] == [is_quantised_kind] * 3
    assert isinstance(net.first, nn.Linear) != (name == "mixed precision")
    x = torch.randn(3, 6, WIDTH, generator=torch.Generator().manual_seed(3))
    base = net(x)
    first, second = lora(1), lora(2)
    assert own_error(net, first) < ROUNDING
    with wearing(dict(net.named_modules()), [first], [{0: 1.0}] * len(x)):
        worn = net(x)
    patcher = patcher_of(net, first)
    patcher.load(CPU, lowvram_model_memory=1)
    assert [len(net.get_submodule(layer).weight_function) for layer in LAYERS] == [1, 1, 1]
    if name in ("16 bit", "fp8 storage"):  # where the host does not round
        assert difference(net(x), worn, base) < ROUNDING
    assert own_error(net, second) < ROUNDING
    patcher.unpatch_model()
    assert torch.equal(net(x), base)
    patcher = patcher_of(KINDS[name](), first)
    patcher.load(CPU, full_load=True)
    if is_quantised_kind:
        assert difference(patcher.model(x), worn, base) > FP8_ROUNDING


@pytest.mark.parametrize("carried", [NOTHING, Adapter("one", {"first": lora(2).deltas["first"]})])
@pytest.mark.parametrize("name", KINDS)
def test_a_dora_is_read_with_the_weight_that_the_layer_multiplies_by(name, carried):
    """Also where the host has patched it in place."""
    assert dora_error(KINDS[name](), carried) < ROUNDING


def test_a_dora_is_refused_where_only_the_layer_can_read_its_weight():
    with pytest.raises(AdapterError, match=r"which a Packed of .* keeps in a packed form"):
        dora_of(Net(Packed, torch.float32))
