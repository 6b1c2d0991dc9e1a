"""How many operations a device is asked for in one layer's solve and figures: `python -m
benchmarks.starts` counts them without a GPU, and prints how many each line of the code starts.

Tensors on the CPU say that they are on another device, so that the code goes the ways that it goes
on a GPU with fast float64. Views start nothing.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import iteris_core
from iteris_core import Adapter, LowRankDelta, MergeConfig, Network, Sample, Task
from iteris_core.algebra.solve import solve_layer
from iteris_core.engines.measure import Measurement
from iteris_core.engines.problem import Problem
from iteris_core.engines.shared_inputs import SharedInputs
from iteris_core.rows.chunks import Block, Chunk

# The one device that torch knows in every build, and that holds nothing itself.
DEVICE = torch.device("lazy")
WIDTH, TOKENS, RANK = 640, 64, 4
SAMPLES = 8  # of a task
_FREE = ("aten.empty", "aten.new_empty", "aten.detach", "aten._unsafe_view", "aten.lift_fresh")
_CODE = Path(iteris_core.__file__).parent


class _There(Tensor):
    """A tensor of the CPU that says that it is on `DEVICE`."""

    @staticmethod
    def __new__(cls, held: Tensor) -> _There:
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `Starts`")


class Starts(TorchDispatchMode):
    """Runs operations of `DEVICE` on the CPU; `lines` has how many each line of code started."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        seen: dict[int, _There] = {}  # by what they hold

        def held(x: Any) -> Any:
            if not isinstance(x, _There):
                return x
            seen[id(x.held)] = x
            return x.held

        args, kwargs = tree_map(held, (args, dict(kwargs or {})))
        to = kwargs.get("device")
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*args, **kwargs)
        is_there = bool(seen) if to is None else torch.device(to).type == DEVICE.type
        returned = [part.alias_info for part in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if (is_there or seen) and not is_view and not str(func).startswith(_FREE):
            self._count()

        def there(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return seen[id(x)] if id(x) in seen else _There(x)

        return tree_map(there, found) if is_there else found

    def _count(self) -> None:
        frames = traceback.extract_stack()
        frame = next(f for f in reversed(frames) if _CODE in Path(f.filename).parents)
        place = Path(frame.filename).relative_to(_CODE)
        self.lines[f"{place}:{frame.lineno}  {frame.line}"] += 1


@cache
def starts_of(loras: int, *, derives: bool) -> Counter[str]:
    """Return the operations of the solve of a layer, see `Starts.lines`, with a task for each LoRA
    and a preserve task.

    Args:
        derives: Whether the layer's sums follow from its input, see `DerivedSums`.
    """
    chance = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    module = nn.Linear(WIDTH, WIDTH, bias=False)
    deltas = [LowRankDelta(random(WIDTH, RANK), random(RANK, WIDTH)) for _ in range(loras)]
    adapters = [Adapter(str(k), {"layer": delta}) for k, delta in enumerate(deltas)]
    samples = (Sample(None),) * SAMPLES
    mixes = [*({k: 1.0} for k in range(loras)), {}]
    tasks = [Task(str(g), samples, mix) for g, mix in enumerate(mixes)]
    network = Network({"layer": module}, lambda rows: None)
    problem = Problem(network, adapters, tasks, MergeConfig())
    inputs = SharedInputs({"layer": 100 * WIDTH if derives else 1})
    blocks = [
        Block(
            g,
            slice(2 * g * SAMPLES, (2 * g + 1) * SAMPLES),
            slice((2 * g + 1) * SAMPLES, (2 * g + 2) * SAMPLES),
            samples,
            tuple(range(SAMPLES)),
        )
        for g in range(len(tasks))
    ]
    rows = random(2 * len(tasks) * SAMPLES, TOKENS, WIDTH)
    x, y = _There(rows), _There(rows @ module.weight.detach().T)
    has_float64 = mock.patch("iteris_core.devices.statistics_device", lambda device: device)
    with has_float64, torch.no_grad(), Starts() as starts:
        layer = Measurement.open(problem, "layer", module, x, y, inputs)
        assert layer.is_derived == derives
        layer.add(Chunk(blocks), x, y)
        starts.lines.clear()
        layer.finish()
        layer.solve(solve_layer)
    return starts.lines


def main() -> None:
    for derives in (False, True):
        for loras in (2, 8):
            lines = starts_of(loras, derives=derives)
            follow = "that follow from the input" if derives else "of its own"
            print(f"\n{loras} LoRAs, sums {follow}: {lines.total()} operations\n")
            for line, count in sorted(lines.items()):
                print(f"{count:5} {line}")


if __name__ == "__main__":
    main()
