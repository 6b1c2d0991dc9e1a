"""What the polish takes on a card: `python -m benchmarks.gradients` counts, and writes
results/memory.json.

The product's own gradient step runs through models of the real shapes on torch's meta device, and
the bytes of all tensors that live at once are added up, and its operations. The blocks that are run again are those of
diffusers; of SDXL, ComfyUI's are smaller. A block's weights are kept as a copy, too, as where
ComfyUI brings them to the card for each call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from iteris_core.diffusion.gradients import blocks_called, kept_as_copies, recomputed
from iteris_core.diffusion.polish import _Layer, _worn
from iteris_core.diffusion.whitening import _DIRECTIONS, Whitening

from .memory import CASES, Case, flash_attention, gb
from .results import RESULTS, Table, command_of, machine, write

LORAS = 2
RANK = 16  # of each
MOMENTS = 2  # that Adam keeps of each factor's number


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


@dataclass(frozen=True)
class Step:
    """A gradient step.

    Args:
        one: Bytes besides the model, with one row.
        further: Bytes that each further row adds.
        work: Operations of a row, relative to those of a forward call without gradients.
    """

    one: int
    further: int
    work: float


def count(case: Case) -> Step:
    """Count a step on torch's meta device, with a merge of two LoRAs."""
    model = case.make(case.resolution)
    modules = dict(model.module.named_modules())

    def of_rows(rows: int) -> tuple[int, int, float]:
        read = model.inputs(rows)
        run: Callable[[], Any] = lambda: model.module(**read, return_dict=False)  # noqa: E731
        with torch.device("meta"):
            forward, step = FlopCounterMode(display=False), FlopCounterMode(display=False)
            with torch.no_grad(), blocks_called(modules, model.paths) as blocks, forward:
                run()
            layers = {path: _layer(modules[path]) for path in model.paths}
            living = Living(model.module)
            with (
                _worn(modules, layers),
                recomputed(blocks, frozenset()),
                flash_attention(),
                kept_as_copies(frozenset()),
                step,
                living,
            ):
                errors = [answer.float().square().sum() for answer in tree_leaves(run())]
                torch.autograd.backward(torch.stack(errors).sum())
        kept = sum(factor.nbytes for layer in layers.values() for factor in (layer.up, layer.down))
        # the factors themselves and Adam's moments; their gradients were counted
        work = step.get_total_flops() / forward.get_total_flops()
        return living.most, (1 + MOMENTS) * kept, work

    (one, steady, work), (two, _, _) = of_rows(1), of_rows(2)
    return Step(one + steady, two - one, work)


def _layer(module: nn.Module) -> _Layer:
    d_out, d_in = module.weight.flatten(1).shape
    up = torch.empty(d_out, LORAS * RANK, requires_grad=True)
    down = torch.empty(LORAS * RANK, d_in, requires_grad=True)
    basis = torch.empty(d_in, min(_DIRECTIONS, d_in))
    return _Layer(up, down, Whitening(basis, basis[0], 1.0))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        step = count(case)
        rows.append(
            [case.name, f"{case.resolution}", gb(step.one), gb(step.further), round(step.work, 2)]
        )
    table = Table(
        f"what a step of the polish takes besides the model, {LORAS} LoRAs of rank {RANK}",
        ["model", "pixels", "with one row, GB", "each further row, GB", "work of a row"],
        rows,
    )
    print(table)
    write([table], RESULTS / "memory.json", command_of("gradients"), machine())


if __name__ == "__main__":
    main()
