"""What a merge of two LoRAs would cost on cards that nothing here has run on: `python -m
benchmarks.cards` reckons, and writes results/cards.json.

Rows, samples, layers and their tokens are counted with the product's own records, on
models of the real shapes on torch's meta device. Rates are those of data sheets, times the share
that programs usually reach. All parts are added up, though a device hides some behind others. Text
encoders, which are small, and the decoding of pictures are left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iteris_core import MergeConfig, Network, Sample, Task
from iteris_core.algebra.products import _BLOCK_ON_GPU, TOKENS_PER_PRODUCT
from iteris_core.diffusion.cost import Cost, cost_of
from iteris_core.diffusion.samples import tasks_of
from iteris_core.engines.counted_tokens import tokens_read
from iteris_core.engines.layer_sums import can_derive
from iteris_core.engines.problem import Problem
from iteris_core.engines.shared_inputs import SharedInputs
from iteris_core.layers import token_count
from iteris_core.rows.wearing import layer_hooks

from .memory import CASES, HALF, PCIE, Case, Counted, count, samples_of
from .results import RESULTS, Table, command_of, write
from .starts import starts_of

LORAS = 2
RANK = 16  # of each
# Shares of a rate that are reached.
IN_FORWARD, IN_PRODUCTS, IN_FACTORS, IN_MEMORY = 0.4, 0.6, 0.1, 0.8
START = 8e-6  # seconds to start an operation
IN_HOOKS = 25  # operations of a layer's hooks in each call, besides those of `starts_of`
# A cut's products with the answer, and their columns besides its rank.
PRODUCTS_OF_CUT, PROBES = 9, 16
DOUBLE = 8  # bytes


@dataclass(frozen=True)
class Card:
    """A card's memory, and its operations and bytes a second; half precision sums in float32."""

    name: str
    gib: int
    half: float
    single: float
    double: float
    memory: float

    @property
    def is_for_games(self) -> bool:
        """Whether systems are factorised in float32, and large sums kept in it."""
        return self.double < self.single / 2

    @property
    def sum_bytes(self) -> int:
        return 4 if self.is_for_games else DOUBLE


# NVIDIA's white papers of Ada and GA10x, and its data sheet of the H100, dense.
CARDS = (
    Card("RTX 4090", 24, 165.2e12, 82.6e12, 1.29e12, 1008e9),
    Card("RTX 3060", 12, 25.5e12, 12.7e12, 0.2e12, 360e9),
    Card("H100 SXM", 80, 989e12, 67e12, 67e12, 3350e9),
)


@dataclass(frozen=True)
class Layer:
    """A layer that LoRAs change.

    Args:
        of_row: Tokens of a row.
        tokens: Tokens of all samples that are read.
        reads: Number of its input.
        is_first: Whether it is the first that reads it.
        derives: Whether its sums follow from those of its input.
    """

    d_out: int
    d_in: int
    of_row: int
    tokens: int
    reads: int
    is_first: bool
    derives: bool


@dataclass(frozen=True)
class Reckoned:
    """What was counted of a merge.

    Args:
        memory: What its model and its rows hold.
        row: Operations of a row's forward pass.
    """

    case: Case
    memory: Counted
    cost: Cost
    row: float
    layers: Sequence[Layer]


def reckoned(case: Case) -> Reckoned:
    """Count a merge on torch's meta device."""
    samples, calibration = samples_of(case.family, case.resolution, LORAS)
    cost = cost_of(samples, guided=calibration.is_guided, changes_denoiser=True)
    memory = count(case)
    model = case.make(case.resolution)
    modules = dict(model.module.named_modules())
    targets = {path: modules[path] for path in model.paths}
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def at_layer(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append((path, module, x))
        return y

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter, layer_hooks(targets, at_layer):
        model.module(**model.inputs(1), return_dict=False)
    problem = Problem(
        Network(modules, lambda rows: None),
        [],
        [Task(of_task[0].task, [Sample(None)] * len(of_task), {}) for of_task in tasks_of(samples)],
        MergeConfig(),
    )
    return Reckoned(case, memory, cost, counter.get_total_flops(), _layers(problem, seen))


def _layers(problem: Problem, seen: Sequence[tuple[str, nn.Module, Tensor]]) -> list[Layer]:
    readers: dict[int, list[str]] = defaultdict(list)  # input -> its layers
    for path, _, x in seen:
        readers[id(x)].append(path)
    shapes = {path: module.weight.flatten(1).shape for path, module, _ in seen}
    widths = {
        path: sum(shapes[p][0] for p in group) for group in readers.values() for path in group
    }
    inputs = SharedInputs(widths)
    return [
        Layer(
            *shapes[path],
            token_count(module, x),
            problem.samples * tokens_read(module, token_count(module, x), problem),
            id(x),
            path == readers[id(x)][0],
            can_derive(problem, path, module, x, inputs),
        )
        for path, module, x in seen
    ]


@dataclass
class Work:
    """Operations of a kind, or bytes that are read and written."""

    half: float = 0.0
    single: float = 0.0
    double: float = 0.0
    factors: float = 0.0
    bytes: float = 0.0

    def seconds(self, card: Card) -> float:
        factors = card.single if card.is_for_games else card.double
        return (
            self.half / (card.half * IN_PRODUCTS)
            + self.single / (card.single * IN_PRODUCTS)
            + self.double / (card.double * IN_PRODUCTS)
            + self.factors / (factors * IN_FACTORS)
            + self.bytes / (card.memory * IN_MEMORY)
        )


def sums_of(layer: Layer, card: Card) -> Work:
    """Return the work on a layer's sums, whose rows are in half precision."""
    work = Work(bytes=14 * layer.tokens * layer.d_in)  # copies and differences of rows
    d_in, of_column = layer.d_in, 2 * layer.tokens * layer.d_in
    sums = 0
    if layer.is_first:
        squares = 2 if layer.derives else 1
        work.half += squares * of_column * d_in * share_of_square(d_in)
        sums += d_in * d_in
        if layer.derives:
            work.half += of_column * d_in
            sums += 2 * d_in * d_in
    if not layer.derives:
        work.bytes += 32 * layer.tokens * layer.d_out  # the drift is made, copied and rounded
        work.half += 2 * of_column * layer.d_out  # the drift, and its sum
        sums += d_in * layer.d_out
    work.bytes += sums * math.ceil(layer.tokens / TOKENS_PER_PRODUCT) * (2 * card.sum_bytes + 4)
    return work


def share_of_square(width: int) -> float:
    """Return the share of a symmetric product that is computed, block by block."""
    starts = range(0, width, _BLOCK_ON_GPU)
    return sum(min(_BLOCK_ON_GPU, width - i) * (width - i) for i in starts) / width**2


def wear_of(layer: Layer) -> Work:
    """Return the work on the LoRA that a row wears: inputs are read again, outputs changed."""
    return Work(bytes=layer.of_row * HALF * (layer.d_in + 2 * layer.d_out))


def solve_of(layer: Layer, card: Card, tasks: int) -> Work:
    """Return the work on a layer's solve and figures."""
    d_in, d_out = layer.d_in, layer.d_out
    rank = LORAS * RANK
    columns = rank + (LORAS + 1) * RANK + d_out  # of the right sides
    large = d_in * d_in * columns + PRODUCTS_OF_CUT * 2 * d_in * d_out * (rank + PROBES)
    large += 2 * tasks * rank * d_in * d_out  # figures
    if layer.derives:
        large += 4 * d_in * d_in * d_out
    read = 2 * tasks * card.sum_bytes + 4 * DOUBLE
    work = Work(factors=d_in**3 / 3, bytes=read * d_in * (d_in + d_out))
    if card.is_for_games:
        work.single = large
        work.double = 2 * d_in * d_in * (rank + PROBES) + 2 * rank * d_in * columns
    else:
        work.double = large
    return work


def starts_in(layer: Layer) -> float:
    """Return the seconds that starts of operations take in a layer's solve and figures."""
    return START * starts_of(LORAS, derives=layer.derives).total()


def seconds_on(merge: Reckoned, card: Card, devices: int = 1) -> list[float]:
    """Return what the parts of a merge take on cards that share the rows; each solves all."""
    cost = merge.cost
    layers = merge.layers
    factorisation = "float32" if card.is_for_games else "float64"
    room = merge.memory.room(card.gib, LORAS, factorisation)
    calls = math.ceil(cost.samples / room.samples_per_chunk / devices)
    row = merge.row / (card.half * IN_FORWARD)
    copied = 0 if devices > 1 else merge.memory.copied_in(room, LORAS, factorisation)
    rows = [
        row * cost.sampling,
        row * cost.sweep,
        cost.rows * sum(wear_of(layer).seconds(card) for layer in layers),
        sum(sums_of(layer, card).seconds(card) for layer in layers),
    ]
    return [
        *(part / devices for part in rows),
        sum(solve_of(layer, card, cost.tasks).seconds(card) for layer in layers),
        sum(starts_in(layer) + START * IN_HOOKS * calls for layer in layers),
        copied / PCIE,
    ]


def saved_by_two(merge: Reckoned, card: Card) -> float:
    """Return the seconds that two devices would save by sharing out layers that read one input."""
    groups: dict[int, list[float]] = defaultdict(list)
    for i, layer in enumerate(merge.layers):
        group = layer.reads if layer.derives else -i
        groups[group].append(
            starts_in(layer) + solve_of(layer, card, merge.cost.tasks).seconds(card)
        )
    return sum(min(sum(part[::2]), sum(part[1::2])) for part in groups.values())


def line(merge: Reckoned, card: Card) -> list[object]:
    """Return a row of the table: what a merge takes on a card, and on two."""
    picture = merge.cost.rows_of_a_picture * merge.row / (card.half * IN_FORWARD)
    seconds = seconds_on(merge, card)
    of_two = sum(seconds_on(merge, card, 2))
    missing = merge.memory.room(card.gib, LORAS).missing
    return [
        f"{merge.case.name}, {merge.case.resolution}",
        f"{card.name}, {card.gib} GiB",
        f"{picture:.1f}",
        *(f"{part:.1f}" for part in seconds),
        "no" if missing else f"{sum(seconds) / picture:.1f}",
        f"{of_two / picture:.1f}",
        f"{(of_two - saved_by_two(merge, card)) / picture:.1f}",
    ]


def main() -> None:
    torch.set_num_threads(1)
    merges = [reckoned(case) for case in CASES]
    heads = ["model", "card", "a picture, s", "rows drawn", "rows of the sweep", "LoRAs on rows"]
    heads += ["sums", "solve", "starts", "copies", "in pictures", "on two cards"]
    heads += ["on two that share out layers"]
    table = Table(
        f"on paper: a merge of {LORAS} LoRAs of rank {RANK}, seconds; reached are "
        f"{IN_FORWARD:.0%} of half precision in forward passes, {IN_PRODUCTS:.0%} in products, "
        f"{IN_FACTORS:.0%} in factorisations, {IN_MEMORY:.0%} of the memory's rate (assumed); an "
        f"operation starts in {START * 1e6:.0f} us (assumed); no: a part of the model waits",
        heads,
        [line(merge, card) for merge in merges for card in CARDS],
    )
    print(table)
    write([table], RESULTS / "cards.json", command_of("cards"), f"counted, {date.today()}")


if __name__ == "__main__":
    main()
