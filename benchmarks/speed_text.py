"""The tables of the speed benchmark with their explanations."""

from __future__ import annotations

from .speed_measure import KINDS, table

RATIO = """\
A sweep over the forward pass of its own rows: random weights of the real shape, float32, two LoRAs, target {}.
The forward pass runs the same teacher and student rows in the same chunks through the base model, in the same process, in turns
with the sweep. Median (lowest-highest); the ratio of CPU time suffers least from other jobs on the machine, the aim is about
the clock. Where other jobs run, two threads wait for each other in every small product and factorisation (LU of width 512:
72 ms with two, 8 ms with one): measure with `--threads 1` there."""
SHARES = """\
Where a sweep's time goes, from a profile of one run: *LoRA on rows* are the low-rank products and additions that teacher and
student rows wear, *statistics* the Gram matrices, *solve* factorising and solving in float64, *report* the residuals."""
NAIVE = """\
`benchmarks/naive.py`: stored inputs of all layers, deltas added into the weights, dense float64 solves, {} iterations, once.
The same objective on both sides. Memory is the peak above the loaded model, each run in a process of its own. The distance is
the largest relative one over the layers' merged deltas. It ends at what float32 activations and products leave, about 1e-4: in
float64 both agree to 1e-9 (`tests/core/test_benchmarks.py`). Aims: 10 times faster, a tenth of the memory.

What can be reached: ten solves take one pass of the teachers and nine of the students, the sweep one of each. So forward passes alone make the
sweep 5 times faster, and no more; the rest comes from solving each layer once instead of ten times. The more of the time is forward passes,
as with many samples or large pictures, the nearer the factor comes to 5. Ten would need some
twenty iterations. Memory is what rows hold in the middle of the network and one layer's sums, against the inputs of all layers, which is a
third to a fifth in these small models; larger ones were not measured, since Algorithm 1 does not fit here."""
GROWTH = """\
Four transformer layers, LoRAs on all weights, 64 tokens a sample, one task per adapter; 16 samples per adapter, 2 adapters,
rank 16, width 512, of which one is varied. One run each, in a process of its own."""


def ratio_text(name: str, target: str, results: list[list[str]], shares: list[list[str]]) -> str:
    """Return the tables of ratios and of where the time goes."""
    head = [name, "size", "forward, s", "sweep, s", "ratio", "of CPU time", "aim", ""]
    text = f"### Speed: {name}\n\n{RATIO.format(target)}\n\n{table(head, results)}"
    return (
        f"{text}\n\n{SHARES}\n\n{table(['Share of the sweep', *KINDS], shares)}" if shares else text
    )


def naive_text(rows: list[list[str]], iterations: int) -> str:
    """Return the table against Algorithm 1."""
    head = [
        "Work",
        "Algorithm 1, s",
        "sweep, s",
        "faster",
        "Algorithm 1, MiB",
        "sweep, MiB",
        "memory",
        "distance",
    ]
    return f"### Speed: against the paper's procedure\n\n{NAIVE.format(iterations)}\n\n{table(head, rows)}"


def growth_text(grown: dict[str, list[tuple[int, float, int]]]) -> str:
    """Return the table of growth, and the picture."""
    rows = [
        [f"{name} {value}", f"{seconds:.2f}", f"{size / 2**20:.0f}"]
        for name, points in grown.items()
        for value, seconds, size in points
    ]
    picture = "![Time and memory against samples, adapters, rank and width](speed.png)"
    return f"### Speed: growth\n\n{GROWTH}\n\n{table(['Varied', 'sweep, s', 'peak memory, MiB'], rows)}\n\n{picture}"
