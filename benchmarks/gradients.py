"""What the polish takes on a card: `python -m benchmarks.gradients` counts, and writes
results/memory.json.

The product's own gradient step runs through models of the real shapes on torch's meta device, and
the bytes of all tensors that live at once are added up. The blocks that are run again are those of
diffusers; of SDXL, ComfyUI's are a third as large.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from iteris_core.diffusion.gradients import blocks_called, kept_as_copies, recomputed
from iteris_core.diffusion.polish import _Layer, _Whitening, _worn

from .cards import LORAS, RANK
from .memory import CASES, HALF, Case, gb
from .results import RESULTS, Table, command_of, machine, write

MOMENTS = 2  # that Adam keeps of each factor's number
SINGLE = 4  # bytes
DIRECTIONS = 64  # of a whitening
ALL = frozenset({0})  # addresses on the meta device: nothing is kept as a copy


class Living(TorchDispatchMode):
    """Adds up the bytes of tensors that were made and are still there."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.known = {weight.untyped_storage()._cdata: 0 for weight in known.parameters()}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, number: int) -> None:
        self.now -= self.known.pop(number)


class FlashAttention(torch.autograd.Function):
    """Keeps what the kernels of a card keep for the backward pass: no products of tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, answer)
        return answer

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return FlashAttention.apply(query, key, value)


@dataclass(frozen=True)
class Step:
    """Bytes of a gradient step besides the model: with one row, and what each further one adds."""

    one: int
    further: int


def count(case: Case) -> Step:
    """Count a step on torch's meta device, with a merge of two LoRAs."""
    model = case.make(case.resolution)
    modules = dict(model.module.named_modules())

    def of_rows(rows: int) -> tuple[int, int]:
        read = model.inputs(rows)
        run: Callable[[], Any] = lambda: model.module(**read, return_dict=False)  # noqa: E731
        with torch.device("meta"):
            with torch.no_grad(), blocks_called(modules, model.paths) as blocks:
                run()
            layers = {path: _layer(modules[path]) for path in model.paths}
            living = Living(model.module)
            flash = mock.patch("torch.nn.functional.scaled_dot_product_attention", attention)
            with (
                _worn(modules, layers),
                recomputed(blocks, ALL),
                flash,
                kept_as_copies(ALL),
                living,
            ):
                errors = [answer.float().square().sum() for answer in tree_leaves(run())]
                torch.autograd.backward(torch.stack(errors).sum())
        kept = sum(factor.nbytes for layer in layers.values() for factor in (layer.up, layer.down))
        # the factors themselves and Adam's moments; their gradients were counted
        steady = (1 + MOMENTS) * kept
        if case.weight_bytes < HALF:  # weights that are read are cast, and kept for the gradient
            steady += HALF * max(sum(w.numel() for w in b.parameters()) for b in blocks)
        return living.most, steady

    (one, steady), (two, _) = of_rows(1), of_rows(2)
    return Step(one + steady, two - one)


def _layer(module: nn.Module) -> _Layer:
    d_out, d_in = module.weight.flatten(1).shape
    up = torch.empty(d_out, LORAS * RANK, requires_grad=True)
    down = torch.empty(LORAS * RANK, d_in, requires_grad=True)
    basis = torch.empty(d_in, min(DIRECTIONS, d_in))
    return _Layer(up, down, _Whitening(basis, basis[0], 1.0))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        print(f"{case.name} {case.resolution}", file=sys.stderr, flush=True)
        step = count(case)
        rows.append([case.name, f"{case.resolution}", gb(step.one), gb(step.further)])
    table = Table(
        f"what a step of the polish takes besides the model, {LORAS} LoRAs of rank {RANK}",
        ["model", "pixels", "with one row, GB", "each further row, GB"],
        rows,
    )
    print(table)
    write([table], RESULTS / "memory.json", command_of("gradients"), machine())


if __name__ == "__main__":
    main()
