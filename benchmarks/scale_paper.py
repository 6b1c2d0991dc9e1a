"""How large merges scale over GPUs, on paper: counted work over the rates of cards.

What is counted: rows from the product's own plans, the FLOP of a row from the real model on torch's
meta device, bytes from the sums that the product adds up, the FLOP of a solve from its algebra. What
is assumed stands below, with its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from iteris_core import LowRankDelta, MergeConfig
from iteris_core.adapters import stack
from iteris_core.algebra.layer import LayerProblem, TaskAtLayer
from iteris_core.algebra.solve import solve_layer
from iteris_core.algebra.statistics import BLOCK, Sums, TaskStatistics, add_up_moments
from iteris_core.diffusion.cost import cost_of
from iteris_core.layers import token_count, token_layout
from iteris_core.processes import Processes
from iteris_core.report.figures import figures_of

from . import memory
from .speed_measure import table

GPUS = (1, 2, 4, 8, 16, 64)
RANK = 16  # of each LoRA; assumed, what trainers propose
IN_A_MACHINE = 8  # GPUs; assumed, that of a DGX
# Shares of the data sheets' rates that are reached; all assumed.
OF_HALF = 0.4  # forward passes
OF_SINGLE = 0.6  # products of rows, float32 without TF32
OF_DOUBLE = 0.6  # products of the solve
OF_FACTOR = 0.1  # Cholesky, triangular solves, QR, SVD
OF_LINK = 0.8  # all_reduce
# Seconds that Python and the driver take to start an operation; assumed. Small operations of a solve
# take 4 to 5.5 us on the CPU of benchmarks/RESULTS.md, without a driver.
LAUNCH = 8e-6
OVERSAMPLING, POWER_STEPS = 16, 4  # as in iteris_core/algebra/truncate.py


@dataclass(frozen=True)
class Card:
    """Rates of a card by its data sheet, in FLOP and bytes a second.

    Args:
        name: Its name.
        source: Where the rates are from.
        half: Products in half precision.
        single: Products in float32.
        double: Products in float64.
        link: Between the cards of a machine, one way.
        network: Between machines, one way, of all cards together.
    """

    name: str
    source: str
    half: float
    single: float
    double: float
    link: float
    network: float

    def bandwidth(self, gpus: int) -> float:
        """Return the bytes a second of a ring over so many cards."""
        slowest = self.link if gpus <= IN_A_MACHINE else min(self.link, self.network)
        return OF_LINK * slowest


H100 = Card(
    "H100 SXM",
    "NVIDIA's data sheet of the H100, dense; NVLink; eight InfiniBand ports of 400 Gb/s a machine, as in a DGX H100",
    half=989e12,
    single=67e12,
    double=67e12,
    link=450e9,
    network=400e9,
)
RTX_4090 = Card(
    "RTX 4090",
    "NVIDIA's white paper of Ada, dense with float32 sums; PCIe 4.0 x16; one port of 100 Gb/s a machine, assumed",
    half=165.2e12,
    single=82.6e12,
    double=1.29e12,
    link=31.5e9,
    network=12.5e9,
)


@dataclass(frozen=True)
class Layer:
    """A layer that LoRAs change.

    Args:
        path: Its path.
        d_out: Width of its outputs.
        d_in: Width of its inputs.
        tokens: Tokens of a row.
        is_first: Whether no layer before it read the same tensor.
    """

    path: str
    d_out: int
    d_in: int
    tokens: int
    is_first: bool


@dataclass(frozen=True)
class Work:
    """The rows of a merge.

    Args:
        runs: Rows of each sampling run.
        samples: Samples of the sweep, a teacher and a student row each.
        check_runs: Rows of each sampling run of the check.
        compared: Rows of the check that are compared.
        tasks: Tasks of the merge.
    """

    runs: Sequence[int]
    samples: int
    check_runs: Sequence[int]
    compared: int
    tasks: int

    def drawn(self, gpus: int) -> float:
        """Return the rows without sums (sampling and check) of the busiest of so many processes."""
        rows = sum(self.of_runs(runs, gpus) for runs in (self.runs, self.check_runs))
        compared = min(self.compared, 2 * busiest(math.ceil(self.compared / 2), gpus))
        return rows + compared

    @staticmethod
    def of_runs(runs: Sequence[int], gpus: int) -> float:
        """Return the rows of the busiest of so many processes; runs have about as many each."""
        return sum(runs) * busiest(len(runs), gpus) / len(runs)


def busiest(items: int, gpus: int) -> int:
    """Return the most of these items that one of so many processes has: whole calls are shared."""
    calls = math.ceil(items / memory.MOST_SAMPLES)
    return min(items, math.ceil(calls / gpus) * memory.MOST_SAMPLES)


def work_of(family: str, resolution: int, loras: int) -> Work:
    """Return the rows of a merge with default settings, of the product's own plans."""
    plans, check_plans, calibration = memory.plans_of(family, resolution, loras)
    guided = calibration.is_guided
    rows, check_rows = (
        [run.rows(guided=guided) for plan in made for run in plan.drawn_in()]
        for made in (plans, check_plans)
    )
    cost = cost_of(plans, check_plans, guided=guided, changes_denoiser=True)
    return Work(
        rows,
        sum(plan.sample_count() for plan in plans),
        check_rows,
        cost.check - sum(check_rows),
        len(plans),
    )


def reached(model: nn.Module, paths: Sequence[str], run: Callable[[], object]) -> list[Layer]:
    """Return the layers of a model in the order in which a row reaches them.

    Args:
        model: The model.
        paths: Paths of the layers.
        run: Lets the row run through the model.
    """
    layers = []
    seen: dict[tuple[Hashable, ...], Tensor] = {}  # while they are kept, no other has their id

    def reach(path: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        key = id(x), token_layout(module)
        d_out, d_in = module.weight.flatten(1).shape
        layers.append(Layer(path, d_out, d_in, token_count(module, x), key not in seen))
        seen[key] = x

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(partial(reach, path)) for path in paths
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return layers


def layers_of(model: memory.Model) -> tuple[list[Layer], float]:
    """Return the layers of a model, and the FLOP of a row."""
    read = model.inputs(1)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        layers = reached(model.module, model.paths, lambda: model.module(**read, return_dict=False))
    return layers, float(counter.get_total_flops())


class _Counting(Processes):
    """Processes that only count the bytes that are added up."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.added = 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        self.added += sum(8 * tensor.numel() for tensor in tensors)  # packed as float64


def added_bytes(layer: Layer, mixes: Sequence[int]) -> int:
    """Return the bytes that a process adds up with the others at a layer.

    Args:
        layer: The layer.
        mixes: Rank of what each task's teacher wears.
    """
    meta = torch.device("meta")
    moments = [Sums(layer.d_in, meta) for _ in mixes]
    statistics = [
        TaskStatistics(part, rank, drift_width=layer.d_out)
        for part, rank in zip(moments, mixes, strict=True)
    ]
    counting = _Counting()
    totals = [total for part in statistics for total in part.totals()]
    add_up_moments(moments if layer.is_first else [], totals, counting, counts=True)
    return counting.added


def spared_bytes(layer: Layer, tasks: int) -> int:
    """Return the bytes of the mirrored halves of a layer's Gram matrices."""
    return 8 * tasks * layer.d_in * (layer.d_in - 1) // 2 if layer.is_first else 0


def product(a: int, b: int, c: int) -> float:
    """Return the FLOP of (a, b) times (b, c)."""
    return 2.0 * a * b * c


def cholesky(n: int) -> float:
    return n**3 / 3


def triangular(n: int, columns: int) -> float:
    return float(n) ** 2 * columns


def qr(rows: int, columns: int) -> float:
    """With its thin Q (Golub and Van Loan, Matrix Computations, section 5.2)."""
    return 4.0 * rows * columns**2 - 4 / 3 * columns**3


def svd(rows: int, columns: int) -> float:
    """With both thin sides (the same, figure 8.6.1)."""
    long, short = max(rows, columns), min(rows, columns)
    return 6.0 * long * short**2 + 20.0 * short**3


@dataclass(frozen=True)
class Flop:
    """FLOP of a layer's solve, in products and in factorisations."""

    products: float
    factorisations: float


def solve_flop(layer: Layer, loras: int, tasks: int, rank: int) -> Flop:
    """Return the FLOP of a layer's solve with default settings, its figures in the report included.

    Args:
        layer: The layer.
        loras: LoRAs, each with a task of its own.
        tasks: All tasks; teachers of the others wear nothing.
        rank: Rank of each LoRA.
    """
    n, m, both = layer.d_in, layer.d_out, loras * rank
    kept = min(both, n, m)
    factorisations = cholesky(n)
    # the right sides, what each LoRA is taught, and the way back of what is kept
    factorisations += triangular(n, both) + triangular(n, m)
    factorisations += loras * triangular(n, rank) + triangular(n, kept)
    products = _gain(n, m, loras, rank) + product(n, both, m)  # of the whole answer
    probes = kept + OVERSAMPLING
    if probes > min(n, m) // 3:
        factorisations += svd(n, m)
    else:
        products += (2 + 2 * POWER_STEPS) * product(n, m, probes) + product(n, probes, probes)
        factorisations += (1 + POWER_STEPS) * qr(n, probes) + POWER_STEPS * qr(m, probes)
        factorisations += svd(probes, m)
    # the same in the basis that is kept, into which thin sides, drift and what is taught are brought
    products += 2 * product(kept, n, both) + 2 * product(kept, n, m)
    products += loras * product(kept, n, rank)
    products += _gain(kept, m, loras, rank) + product(kept, both, m)
    # figures, of each task, of the merged delta and all LoRAs together
    ranks = kept + both
    of_task = product(ranks, m, ranks) + product(ranks, n, n) + product(ranks, n, ranks)
    of_task += product(ranks, n, m)
    of_own = product(ranks, m, rank) + product(ranks, n, rank)
    return Flop(products + tasks * of_task + loras * of_own, factorisations)


def _gain(n: int, m: int, loras: int, rank: int) -> float:
    """Return the FLOP of the gains of an answer of (n, m)."""
    pairs = product(rank, n, rank) + product(rank, m, rank)
    return loras**2 * pairs + loras * product(m, n, rank)


def row_sums_flop(layer: Layer, rank: int) -> float:
    """Return the FLOP of the sums of a sample at a layer."""
    t, n, m = layer.tokens, layer.d_in, layer.d_out
    blocks = sum(product(min(BLOCK, n - i), t, n - i) for i in range(0, n, BLOCK))
    others = product(n, t, m) + product(n, t, rank) + product(rank, t, rank) + product(t, rank, m)
    return blocks * layer.is_first + others


def worn_flop(layer: Layer, loras: int, rank: int) -> float:
    """Return the FLOP of what a sample's teacher and student wear at a layer."""
    return (1 + loras) * product(layer.tokens, rank, layer.d_in + layer.d_out)


def small_layer(layer: Layer, loras: int, rank: int) -> LayerProblem:
    """Return a random layer to solve: a task for each LoRA, and one that keeps the base model."""
    chance = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance, dtype=torch.float64)

    n, m = layer.d_in, layer.d_out
    deltas = {k: LowRankDelta(random(m, rank), random(rank, n) / n) for k in range(loras)}
    tasks = []
    for k in [*deltas, None]:
        worn = None if k is None else stack({k: deltas[k]})
        inputs = Sums(n, torch.device("cpu"))
        statistics = TaskStatistics(inputs, 0 if k is None else rank, drift_width=m)
        x = random(layer.tokens, n)
        codes = x[:, :0] if worn is None else x @ worn.delta.down.T
        inputs.add(x, x)
        statistics.add(x, codes, drift=0.1 * random(layer.tokens, m))
        add_up_moments([inputs], statistics.totals(), Processes(), counts=True)  # sums are made
        mix = {} if k is None else {k: 1.0}
        tasks.append(TaskAtLayer(f"task {k}", mix, 1.0, statistics, worn))
    return LayerProblem(deltas, tasks, MergeConfig())


def solve(layer: LayerProblem) -> None:
    """Solve a layer, and make its figures, as a merge does."""
    solution = solve_layer(layer)
    names = {k: f"lora{k}" for k in layer.deltas}
    figures_of("layer", names, layer, solution, solution.delta.balanced())


class Operations(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(loras: int) -> int:
    """Return the operations of a layer's solve, which do not depend on its size."""
    layer = small_layer(Layer("layer", 120, 100, 200, is_first=True), loras, 2)
    with Operations() as counted:
        solve(layer)
    return counted.count


@dataclass(frozen=True)
class Seconds:
    """Seconds of a merge: rows without sums, the sweep's forward passes, its sums, adding up, and
    solves.
    """

    drawn: float
    sweep: float
    sums: float
    adding: float
    solve: float

    @property
    def whole(self) -> float:
        return self.drawn + self.sweep + self.sums + self.adding + self.solve


@dataclass(frozen=True)
class Case:
    """A merge on paper."""

    name: str
    family: str
    resolution: int
    loras: int
    make: Callable[[int], memory.Model]

    @cached_property
    def work(self) -> Work:
        return work_of(self.family, self.resolution, self.loras)

    @cached_property
    def model(self) -> tuple[list[Layer], float]:
        return layers_of(self.make(self.resolution))

    @cached_property
    def layer_bytes(self) -> list[int]:
        mixes = [RANK] * self.loras + [0] * (self.work.tasks - self.loras)
        return [added_bytes(layer, mixes) for layer in self.model[0]]

    @cached_property
    def operations(self) -> int:
        return operations(self.loras)

    def flop(self) -> tuple[float, float]:
        """Return the FLOP of a sample: of its forward passes, and of its sums."""
        layers, row = self.model
        worn = sum(worn_flop(layer, self.loras, RANK) for layer in layers)
        return 2 * row + worn, sum(row_sums_flop(layer, RANK) for layer in layers)

    def solves(self) -> list[Flop]:
        layers = self.model[0]
        return [solve_flop(layer, self.loras, self.work.tasks, RANK) for layer in layers]

    def seconds(self, card: Card, gpus: int) -> Seconds:
        """Return the seconds of the merge on so many cards."""
        samples = busiest(self.work.samples, gpus)
        forward, sums = self.flop()
        flop_of_row = self.model[1]
        return Seconds(
            self.work.drawn(gpus) * flop_of_row / (OF_HALF * card.half),
            samples * forward / (OF_HALF * card.half),
            samples * sums / (OF_SINGLE * card.single),
            sum(self.layer_bytes) * 2 * (gpus - 1) / gpus / card.bandwidth(gpus),
            sum(solve_seconds(flop, self.operations, card) for flop in self.solves()),
        )


def solve_seconds(flop: Flop, launched: int, card: Card) -> float:
    """Return the seconds of a layer's solve: of its work, or of starting it, if that takes longer."""
    work = flop.products / OF_DOUBLE + flop.factorisations / OF_FACTOR
    return max(work / card.double, launched * LAUNCH)


CASES = (
    (Case("Eight SDXL LoRAs at 768", "SDXL", 768, 8, memory.sdxl), (H100, RTX_4090)),
    (Case("Two Flux.1 LoRAs at 1024", "Flux.1", 1024, 2, memory.flux), (H100,)),
)

TEXT = """\
### Scaling: on paper

No card was used: counted work over assumed rates. Defaults of the node: calls of {call} samples, LoRAs of rank {rank} (assumed) on all layers
of attention and feed-forward, the diffusion model alone. Rows are those of the product's own plans, the busiest process's: whole calls are
shared. A row's FLOP are counted on torch's meta device. *Sums* are the
float32 products that add a sample to a layer's sums. *Added up* are the float64 sums that a process hands to `all_reduce`, by the code that
adds them up. The *solve* is the same in every process: Cholesky, triangular solves, randomised SVD, products, and the report's figures; its
*operations* are those that torch starts in a layer, counted in one of another size.

{counted}

Rates of the data sheets, and the shares of them that are assumed to be reached: {of_half:.0%} in forward passes, {of_single:.0%} in sums,
{of_double:.0%} in the solve's products, {of_factor:.0%} in its factorisations, {of_link:.0%} in adding up, a ring that sends
2 (N - 1) / N of the bytes. Starting an operation takes {launch:.0f} µs (assumed); a layer's solve takes its work or its starts, whichever is longer.
Machines hold {machine} cards. Memory is not looked at, nor what waits on the host ([table of cards](#memory-what-fits-on-which-card)).

{cards}

{cases}"""


def _cards(cards: Sequence[Card]) -> str:
    heads = ["card", "half, TFLOPS", "float32", "float64", "link, GB/s", "machines, GB/s", "source"]
    rows = []
    for card in cards:
        rates = (rate / 1e12 for rate in (card.half, card.single, card.double))
        links = (rate / 1e9 for rate in (card.link, card.network))
        rows.append([card.name, *(f"{rate:.4g}" for rate in (*rates, *links)), card.source])
    return table(heads, rows)


def _counted(cases: Sequence[Case]) -> str:
    heads = [
        "merge",
        "rows without sums",
        "samples of the sweep",
        "TFLOP a row",
        "sums of a sample",
    ]
    heads += ["layers", "added up, GB", "MB a layer", "of them mirrored", "solve, TFLOP"]
    heads += ["factorisations", "operations a layer"]
    rows = []
    for case in cases:
        layers, row = case.model
        added = sum(case.layer_bytes)
        spared = sum(spared_bytes(layer, case.work.tasks) for layer in layers)
        solves = case.solves()
        rows.append(
            [
                case.name,
                f"{case.work.drawn(1):.0f}",
                f"{case.work.samples}",
                f"{row / 1e12:.1f}",
                f"{case.flop()[1] / 1e12:.1f}",
                f"{len(layers)}",
                f"{added / 1e9:.0f}",
                f"{added / len(layers) / 1e6:.0f}",
                f"{spared / added:.0%}",
                f"{sum(flop.products for flop in solves) / 1e12:.0f}",
                f"{sum(flop.factorisations for flop in solves) / 1e12:.0f}",
                f"{case.operations}",
            ]
        )
    return table(heads, rows)


def _seconds(case: Case, card: Card) -> str:
    alone = case.seconds(card, 1)
    rows = []
    for gpus in GPUS:
        found = case.seconds(card, gpus)
        parts = (found.drawn, found.sweep, found.sums, found.adding, found.solve, found.whole)
        speed = alone.whole / found.whole
        rows.append([f"{gpus}", *(f"{part:.1f}" for part in parts), f"{speed:.1f} x"])
        rows[-1].append(f"{speed / gpus:.0%}")
    heads = ["GPUs", "rows without sums, s", "rows of the sweep", "sums", "adding up", "solve"]
    return table([*heads, "together", "faster", "of ideal"], rows)


def _why(case: Case, card: Card) -> str:
    """Return where a merge stops to scale, and why, in Markdown."""
    gpus = GPUS[-1]
    last = case.seconds(card, gpus)
    names = ("rows without sums", "rows of the sweep", "sums", "adding up", "the solve")
    parts = (last.drawn, last.sweep, last.sums, last.adding, last.solve)
    order = sorted(zip(parts, names, strict=True), reverse=True)
    shares = ", ".join(f"{name} {part / last.whole:.0%}" for part, name in order)
    solves = case.solves()
    started = len(solves) * case.operations * LAUNCH
    work = sum(solve_seconds(flop, 0, card) for flop in solves)
    calls = math.ceil(case.work.samples / memory.MOST_SAMPLES)
    return (
        f"Of {gpus} GPUs' time: {shares}. The sweep has {calls} calls of {memory.MOST_SAMPLES} "
        f"samples, so more than {calls} processes have nothing more to share. The solve's work "
        f"takes {work:.1f} s, starting its operations {started:.1f} s."
    )


NEXT = """\
It stops to scale where the solve, which every process repeats, is as long as the shared rows; on slow links adding up joins it. With many
LoRAs on a fast card the solve is not work but the starting of its operations, of which most make the report's figures; that time is assumed, so
measure it first. Whole Gram matrices are sent, though their halves would do. What would help next is figures of fewer, larger operations,
then smaller calls where processes are many, and halves of the Gram matrices over slow links."""


def text(cases: Sequence[tuple[Case, Sequence[Card]]] = CASES) -> str:
    """Return the tables in Markdown."""
    tables = [
        f"#### {case.name}, {card.name}\n\n{_seconds(case, card)}\n\n{_why(case, card)}"
        for case, cards in cases
        for card in cards
    ]
    return TEXT.format(
        call=memory.MOST_SAMPLES,
        rank=RANK,
        counted=_counted([case for case, _ in cases]),
        of_half=OF_HALF,
        of_single=OF_SINGLE,
        of_double=OF_DOUBLE,
        of_factor=OF_FACTOR,
        of_link=OF_LINK,
        launch=LAUNCH * 1e6,
        machine=IN_A_MACHINE,
        cards=_cards(list(dict.fromkeys(card for _, cards in cases for card in cards))),
        cases="\n\n".join([*tables, NEXT]),
    )
