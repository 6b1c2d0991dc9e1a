"""Products in half precision with float32 sums: here a CPU plays a device that has them."""

import logging
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network, Sample, Task, devices, merge
from iteris_core.algebra.products import (
    TOKENS_PER_PRODUCT,
    add_product,
    add_square,
    mirror,
)
from iteris_core.devices import Workplace

CPU = torch.device("cpu")
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def half_product(a, b):
        assert a.dtype == b.dtype
        seen.append(a.dtype)
        return (a.double() @ b.double()).float()  # whatever the processor's order of summation is

    monkeypatch.setattr(devices, "half_product", half_product)
    devices.multiplies_halves.cache_clear()
    yield seen
    devices.multiplies_halves.cache_clear()


def rows_of(dtype, width, tokens=TOKENS_PER_PRODUCT + 100, size=1.0):
    """Rows with outlier channels, as a transformer's have."""
    scale = torch.logspace(0, -3, width) * size
    scale[:2] = 100 * size
    return ((torch.randn(tokens, width) + 0.2) * scale).to(dtype)


def off(found, a, b):
    """How far a sum is from float64, relative to the norms of its factors."""
    a, b = a.double(), b.double()
    return ((found - a.T @ b).norm() / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("dtype", "rounded"), [(torch.float16, 3e-4), (torch.bfloat16, 3e-3)])
def test_sums_are_as_exact_as_the_rows_numbers(dtype, rounded, size, calls):
    x = rows_of(dtype, 40)
    change = 0.1 * rows_of(torch.float32, 40, size=size)
    cases = {"both in half": (x, x), "one": (x, change), "the other": (change, x)}
    cases["neither"] = (change, change)
    for name, (a, b) in cases.items():
        calls.clear()
        total = torch.zeros(40, 40, dtype=torch.float64)
        add_product(total, a, b)
        assert off(total, a, b) < (2e-7 if a.dtype == b.dtype else rounded), name
        assert bool(calls) == (name != "neither"), name
    square = torch.zeros(40, 40, dtype=torch.float64)
    add_square(square, x)
    assert off(mirror(square), x, x) < 2e-7


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(bad, calls):
    x = rows_of(torch.bfloat16, 4)
    change = x.float()
    change[3, 1] = bad
    total = torch.zeros(4, 4, dtype=torch.float64)
    add_product(total, x, change)
    assert not torch.isfinite(total[:, 1]).any()
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    add_product(nothing, x, 0 * x.float())
    assert not nothing.any()


def merged(dtype, derives, monkeypatch):
    """Merge two LoRAs on a layer whose sums follow from its input or do not."""
    torch.manual_seed(5)
    monkeypatch.setattr("iteris_core.engines.layer_sums._MORE_PER_TOKEN", 0 if derives else 1e9)
    monkeypatch.setattr("iteris_core.engines.layer_sums._PRODUCTS", 0)
    layer = torch.nn.Linear(48, 48).to(dtype).requires_grad_(False)
    deltas = [LowRankDelta(torch.randn(48, 4), torch.randn(4, 48) / 30) for _ in "xy"]
    adapters = [Adapter(n, {"0": delta}) for n, delta in zip("xy", deltas, strict=True)]
    rows = [rows_of(torch.float16, 48, 400, 0.1) for _ in range(4)]
    samples = [Sample(x.to(dtype), (0.9 * x).to(dtype)) for x in rows]
    tasks = [Task(n, samples[k::2], {k: 1.0}) for k, n in enumerate("xy")]
    network = Network({"0": layer}, lambda inputs: layer(torch.stack(list(inputs))))
    return merge(network, adapters, tasks, MergeConfig()).adapter.deltas["0"].dense()


@pytest.mark.parametrize("derives", [False, True])
@pytest.mark.parametrize(("dtype", "rounded"), [(torch.float16, 3e-4), (torch.bfloat16, 3e-3)])
def test_a_merge_is_nearly_the_same_as_with_products_of_float32(
    dtype, rounded, derives, calls, monkeypatch
):
    halves = merged(dtype, derives, monkeypatch)
    assert set(calls) == {dtype}
    with monkeypatch.context() as others:
        others.setattr("iteris_core.devices.multiplies_halves", lambda *args: False)
        exact = merged(dtype, derives, others)
    assert ((halves - exact).norm() / exact.norm()).item() < rounded


def merged_in_a_row(dtype, size=1.0):
    """Merge on three layers; factors of `size` and of its inverse make the same LoRAs."""
    torch.manual_seed(6)
    layers = [torch.nn.Linear(48, 48, bias=False).to(dtype) for _ in range(3)]
    net = torch.nn.Sequential(*layers).requires_grad_(False)

    def delta():
        return LowRankDelta(torch.randn(48, 4) / size, torch.randn(4, 48) / 60 * size)

    adapters = [Adapter(name, {str(i): delta() for i in range(3)}) for name in "xy"]
    rows = [rows_of(torch.float16, 48, 600, 0.1).to(dtype) for _ in range(6)]
    tasks = [Task(n, [Sample(x) for x in rows[k::2]], {k: 1.0}) for k, n in enumerate("xy")]
    network = Network(dict(net.named_modules()), lambda inputs: net(torch.stack(list(inputs))))
    return merge(network, adapters, tasks, MergeConfig()).adapter


@pytest.mark.parametrize("size", [1.0, 1e6])
@pytest.mark.parametrize("dtype", HALVES)
def test_rows_wear_loras_in_half_precision(dtype, size, monkeypatch):
    """At no more than the model's own rounding, whatever the sizes of a LoRA's factors."""
    wanted = merged_in_a_row(torch.float32)
    before = merged_in_a_row(dtype)
    place = Workplace.of

    def on_a_gpu(x):
        return replace(place(x), worn=x.dtype)

    monkeypatch.setattr(Workplace, "of", staticmethod(on_a_gpu))
    halves = merged_in_a_row(dtype, size)
    for path, delta in wanted.deltas.items():
        off, off_before = (
            (found.deltas[path].dense() - delta.dense()).norm() / delta.dense().norm()
            for found in (halves, before)
        )
        assert off < 1.3 * off_before + 1e-4, path


def test_a_device_without_them_goes_the_old_way_and_the_log_says_so_once(monkeypatch, caplog):
    def refuses(a, b):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nmore")

    rounds = {
        "not supported": refuses,
        "results": lambda a, b: (a @ b).float(),
        "sums": lambda a, b: sum(a[:, k, None] * b[k] for k in range(len(b))).float(),
    }
    cuda = torch.device("cuda")
    caplog.set_level(logging.INFO, "iteris")
    monkeypatch.setattr(torch.Tensor, "to", on_cpu(torch.Tensor.to))
    for name, half_product in rounds.items():
        monkeypatch.setattr(devices, "half_product", half_product)
        devices.multiplies_halves.cache_clear()
        caplog.clear()
        assert not any(devices.multiplies_halves(cuda, torch.float16) for _ in range(2)), name
        assert len(caplog.messages) == 1, name
        assert not devices.multiplies_halves(CPU, torch.bfloat16)
        assert not devices.multiplies_halves(cuda, torch.float32)
        assert len(caplog.messages) == 1, name
    devices.multiplies_halves.cache_clear()


def test_a_full_device_is_asked_again(calls, monkeypatch):
    full = torch.OutOfMemoryError("full"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
    for error in full:
        with monkeypatch.context() as while_full, pytest.raises(type(error)):
            while_full.setattr(devices, "half_product", Mock(side_effect=error))
            devices.multiplies_halves(CPU, torch.bfloat16)
    assert devices.multiplies_halves(CPU, torch.bfloat16)


def on_cpu(to):
    """``Tensor.to`` where a GPU's tensors are a CPU's."""

    def to_cpu(tensor, *args, **named):
        args = ["cpu" if arg == torch.device("cuda") else arg for arg in args]
        return to(tensor, *args, **named)

    return to_cpu


def test_sums_in_float16_that_are_allowed_are_not_for_ours():
    switches = torch.backends.cuda.matmul
    before = switches.allow_fp16_accumulation
    switches.allow_fp16_accumulation = True
    try:
        with devices.exact_products(CPU):
            assert not switches.allow_fp16_accumulation
        assert switches.allow_fp16_accumulation
    finally:
        switches.allow_fp16_accumulation = before
