"""Linear and Conv2d seen as one: a matrix that multiplies tokens."""

import pytest
import torch
from torch import nn

from iteris_core import AdapterError
from iteris_core.layers import (
    base_weight_and_bias,
    input_tokens,
    output_tokens,
    weight_shape,
)

LAYERS = {
    "linear": (nn.Linear(5, 3), (2, 4, 5)),
    "linear on vectors": (nn.Linear(5, 3), (2, 5)),
    "linear on grids": (nn.Linear(5, 3, bias=False), (2, 4, 6, 5)),
    "convolution": (nn.Conv2d(5, 3, 1), (2, 5, 4, 6)),
    "convolution without bias": (nn.Conv2d(5, 3, 1, bias=False), (2, 5, 4, 6)),
    "strided convolution": (nn.Conv2d(5, 3, 1, stride=(2, 3)), (2, 5, 5, 7)),
    "padded 1x1 convolution": (nn.Conv2d(5, 3, 1, padding=1), (2, 5, 4, 6)),
    "3x3 convolution": (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 6)),
    "valid convolution": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 4, 6)),
    "any convolution": (
        nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        (2, 2, 6, 8),
    ),
}


@pytest.fixture(params=LAYERS, ids=str)
def layer(request):
    module, shape = LAYERS[request.param]
    return module.double().requires_grad_(False), torch.randn(shape).double()


def test_the_weight_times_the_input_tokens_is_the_output(layer):
    module, x = layer
    tokens = input_tokens(module, x)
    weight = module.weight.flatten(1)
    bias = 0 if module.bias is None else module.bias
    y = module(x)
    assert tokens.shape[0] == x.shape[0]
    assert tokens.shape[2] == weight_shape(module)[1]
    torch.testing.assert_close(output_tokens(module, y), tokens @ weight.T + bias)


@pytest.mark.parametrize("at_once", [2, 4096])
def test_the_base_weight_is_measured_without_reading_it(layer, at_once, monkeypatch):
    module, x = layer
    calls = []
    monkeypatch.setattr("iteris_core.layers._PROBES", at_once)
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    measured, bias = base_weight_and_bias(module, x.device, x.dtype)
    handle.remove()
    torch.testing.assert_close(measured, module.weight.flatten(1))
    torch.testing.assert_close(
        bias, torch.zeros(len(measured)).to(measured) if module.bias is None else module.bias
    )
    assert calls == []


def test_other_modules_are_refused():
    for module, message in (
        (nn.Conv2d(4, 4, 1, groups=2), "is a Conv2d .*2 groups.*; only Linear and "),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "is a Conv2d "),
        (nn.LayerNorm(4), "is a LayerNorm"),
        (nn.Embedding(4, 4), "is a Embedding"),
        (nn.Conv1d(4, 4, 1), "is a Conv1d"),
    ):
        with pytest.raises(AdapterError, match=message):
            weight_shape(module)
