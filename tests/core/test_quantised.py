"""Layers of quantised bases; the classes have the parts of those that `check_layers.py` tests."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from iteris_core import (
    Adapter,
    AdapterError,
    ConfigError,
    LowRankDelta,
    MergeConfig,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.layers import is_linear, is_quantised, weight_shape


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class Plain(nn.Module):
    """A layer that is not a nn.Linear, as ComfyUI's mixed-precision Linear."""

    def __init__(self, weight: Tensor, **others: Tensor):
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.weight = frozen(weight)
        self.bias = frozen(torch.zeros(4))
        for name, other in others.items():
            self.register_parameter(name, frozen(other))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


class Packed(nn.Linear):
    """A layer whose weight is packed in a column of bytes, as bitsandbytes' Linear4bit."""

    def __init__(self):
        super().__init__(6, 4)
        self.codes = torch.randint(-8, 8, (4, 6))
        self.weight = frozen((self.codes + 8).reshape(-1, 1).to(torch.uint8)[::2].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) / 8, self.bias)


class Disguised(Tensor):
    """A class of tensors of its own, which may show another dtype than the one that it keeps."""

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor)


class Fused(nn.Module):
    """The parts of Nunchaku's SVDQW4A4Linear."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.qweight = frozen(torch.zeros(4, 3, dtype=torch.int8))
        self.smooth_factor = frozen(torch.ones(6))


class Wrapper(nn.Module):
    """The parts of PEFT's layers: the weight is that of the layer within."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.base_layer = nn.Linear(6, 4)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight


FP8 = torch.float8_e4m3fn
MATRIX = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
QUANTISED = {
    "fp8": lambda: Plain(MATRIX.to(FP8)),
    "scaled fp8": lambda: Plain(MATRIX.to(FP8), input_scale=torch.ones(())),
    "packed": Packed,
    "another dtype than it shows": lambda: Plain(MATRIX.as_subclass(Disguised)),
}
LOOKALIKES = {
    "fused": Fused,
    "scaled inputs": lambda: Plain(MATRIX, pre_quant_scale=torch.ones(6)),
    "experts": lambda: Plain(torch.zeros(3, 4, 6)),
    "a wrapper": Wrapper,
}


def test_a_layer_of_a_quantised_base_is_a_target_layer():
    for make in QUANTISED.values():
        layer = make()
        assert is_linear(layer)
        assert weight_shape(layer) == (4, 6)
        assert is_quantised(layer)
    for layer in (nn.Linear(6, 4).bfloat16(), nn.Conv2d(6, 4, 3).half(), Plain(MATRIX)):
        assert not is_quantised(layer)


@pytest.mark.parametrize("make", LOOKALIKES.values(), ids=LOOKALIKES)
def test_a_layer_that_is_only_similar_is_refused_by_name(make):
    layer = make()
    assert not is_linear(layer)
    said = f"is a {type(layer).__name__} of {__name__}, which is not a plain .* Load the model in"
    with pytest.raises(AdapterError, match=said):
        weight_shape(layer)


def merged_alone(layer: nn.Module, **settings):
    torch.manual_seed(1)
    adapter = Adapter("a", {"q": LowRankDelta(torch.randn(4, 2), torch.randn(2, 6))})
    task = Task("a", [Sample(torch.randn(5, 6)) for _ in range(4)], {0: 1.0})
    forward = Mock(side_effect=lambda rows: layer(torch.stack(rows)))
    try:
        result = merge(Network({"q": layer}, forward), [adapter], [task], MergeConfig(**settings))
    except ConfigError:
        forward.assert_not_called()
        raise
    return adapter.deltas["q"].dense(), result.adapter.deltas["q"].dense()


READERS = {
    "balance is 'full'": {"balance": "full"},
    "ridge is 'paper'": {"ridge": "paper"},
    "alpha_cross is 0.01": {"alpha_cross": 1e-2},
    "balance is 'full', which needs": {"balance": "full", "method": "hyper_linear"},
}


@pytest.mark.parametrize("make", QUANTISED.values(), ids=QUANTISED)
def test_settings_that_read_the_base_weight_are_refused_before_any_row_runs(make):
    for message, settings in READERS.items():
        quantised = f"1 of 1 layers are quantised, such as 'q', a {type(make()).__name__} "
        with pytest.raises(ConfigError, match=rf"{message}.*; {quantised}"):
            merged_alone(make(), **settings)
        merged_alone(nn.Linear(6, 4), **settings)
