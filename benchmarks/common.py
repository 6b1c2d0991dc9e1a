"""What several benchmarks do: work in processes, and adapters worn in a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from rich.console import Console
from torch import Tensor, nn

console = Console(stderr=True)


def in_parallel(work: Callable[..., str], arguments: Sequence[tuple[Any, ...]], jobs: int) -> None:
    """Do all work in processes of their own, and say what is done."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, *given) for given in arguments]
        for done, future in enumerate(as_completed(futures), 1):
            console.print(f"[{done}/{len(arguments)}] {future.result()}", markup=False)


def teller(name: str, every: int = 100) -> Callable[[int, int, float], None]:
    """Return a listener of a training (step, steps, loss) that prints some of the steps."""

    def tell(step: int, steps: int, loss: float) -> None:
        if step % every == 0 or step == steps:
            console.print(f"{name}: {step}/{steps}, loss {loss:.4f}")

    return tell


@contextmanager
def in_weights(modules: Mapping[str, nn.Module], deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """Add deltas to the weights of modules, and put the very same weights back afterwards."""
    before = {path: modules[path].weight.data for path in deltas}
    try:
        for path, weight in before.items():
            modules[path].weight.data = weight + deltas[path].to(weight).view_as(weight)
        yield
    finally:
        for path, weight in before.items():
            modules[path].weight.data = weight
