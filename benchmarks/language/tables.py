"""Tables of the language benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from ..results import Table, with_error
from .methods import ABLATIONS, DEFAULT, ITERATIONS, MAIN, PAPER, RIVALS, Way

Run = tuple[int, int]  # seed of the base model, seed of its LoRAs
Group = tuple[str, ...]  # tasks whose LoRAs are merged
Scores = Mapping[str, float]
Score = dict[
    str, float
]  # of a merge: its scores, and their mean, worst and share of the LoRAs' own


@dataclass(frozen=True)
class Records:
    """What was measured of a model.

    Args:
        names: Its tasks.
        alone: Run -> ``base`` or the task of a single LoRA -> scores.
        merges: Run and group -> key of a way -> scores; none where it was refused.
    """

    names: Sequence[str]
    alone: Mapping[Run, Mapping[str, Scores]]
    merges: Mapping[tuple[Run, Group], Mapping[str, Scores]]

    def summaries(self, way: Way, sizes: Iterable[int]) -> dict[tuple[Run, Group], Score]:
        """Return the scores of a way in groups of these sizes."""
        wanted = set(sizes)
        found = {}
        for (run, group), records in self.merges.items():
            scores = records.get(way.key)
            if len(group) in wanted and scores:
                own = [scores[name] for name in group]
                lone = [self.alone[run][name][name] for name in group]
                shares = [score / best for score, best in zip(own, lone, strict=True) if best]
                share = mean(shares or [float("nan")])
                found[run, group] = {**scores, "mean": mean(own), "worst": min(own), "share": share}
        return found

    def row(self, label: str, found: Iterable[Score]) -> list[str]:
        """Return a row of `HEAD` and a column for each task."""
        found = list(found)
        per_task = [[score[name] for score in found if name in score] for name in self.names]
        return [
            label,
            with_error([score["mean"] for score in found]),
            with_error([score["worst"] for score in found]),
            f"{mean(score['share'] for score in found):.3f}",
            f"{mean(score['base'] for score in found):.2f}",
            *(f"{mean(values):.2f}" if values else "" for values in per_task),
        ]

    def lone_rows(self) -> list[list[str]]:
        """Return rows of `HEAD` for the base model, and for each LoRA on its own task."""
        rows = []
        for label, wears in (
            ("base model", dict.fromkeys(self.names, "base")),
            ("each LoRA alone", {name: name for name in self.names}),
        ):
            found = []
            for scores in self.alone.values():
                own = {name: scores[wears[name]][name] for name in self.names}
                base = mean(scores[worn]["base"] for worn in wears.values())
                values = {"mean": mean(own.values()), "worst": min(own.values())}
                found.append({**own, **values, "share": float("nan"), "base": base})
            rows.append(self.row(label, found))
        return rows

    def difference(self, way: Way, other: Way, sizes: Iterable[int], key: str) -> list[float]:
        """Return a way minus another one, group by group and run by run."""
        ours, theirs = (self.summaries(each, sizes) for each in (way, other))
        return [ours[place][key] - theirs[place][key] for place in ours if place in theirs]


HEAD = ("method", "mean", "worst task", "share of LoRA", "base tasks")


def method_table(title: str, records: Records, size: int) -> Table:
    """Return the main table over groups of a size, best mean first."""
    found = {name: list(records.summaries(way, [size]).values()) for name, way in MAIN.items()}
    order = sorted(
        (name for name, scores in found.items() if scores),
        key=lambda name: -mean(score["mean"] for score in found[name]),
    )
    rows = [records.row(name, found[name]) for name in order]
    return Table(title, [*HEAD, *records.names], [*records.lone_rows(), *rows])


def rival_table(title: str, records: Records) -> Table:
    """Return the defaults minus the rivals, paired."""
    columns = [(sizes, key) for sizes in ((2,), (3, 4, 5)) for key in ("mean", "worst")]
    rows = []
    for name, way in RIVALS.items():
        found = (records.difference(DEFAULT, way, *column) for column in columns)
        rows.append(
            [f"IterIS - {name}", *(with_error(values) if values else "" for values in found)]
        )
    heads = ["pairs, mean", "pairs, worst", "3 and more, mean", "3 and more, worst"]
    return Table(title, ["difference", *heads], rows)


def ablation_table(title: str, records: Records) -> Table:
    """Return single changed settings, on the pairs where all were tried."""
    rows = []
    for name, way in ABLATIONS.items():
        found = records.summaries(way, [2])
        if way == DEFAULT:  # it was tried on all pairs
            tried = records.summaries(ABLATIONS["target delta"], [2])
            found = {place: score for place, score in found.items() if place in tried}
        change = records.difference(way, DEFAULT, [2], "mean")
        if found:
            label = f"{name} (default)" if way == DEFAULT else name
            row = records.row(label, found.values())
            rows.append([*row[:3], with_error(change) if any(change) else "", row[4]])
    heads = ["setting", "mean", "worst task", "change of the mean", "base tasks"]
    return Table(title, heads, rows)


def iteration_table(title: str, records: Records) -> Table:
    """Return scores after so many solves of Algorithm 1 (paper, table 7), and after one sweep."""
    found = {str(n): records.summaries(way, [2]) for n, way in ITERATIONS.items()}
    tried = found["1"]
    sweep = records.summaries(PAPER, [2])
    found["sweep"] = {place: score for place, score in sweep.items() if place in tried}
    found = {name: scores for name, scores in found.items() if scores}
    rows = [
        [
            key,
            *(f"{mean(score[key] for score in scores.values()):.3f}" for scores in found.values()),
        ]
        for key in ("mean", "worst", "base")
    ]
    return Table(title, ["solves", *found], rows)


def tables_of(world: str, records: Records) -> list[Table]:
    """Return all tables of a model."""
    name = world.upper()
    of = "; pairs of neighbours"
    sizes = sorted({len(group) for _, group in records.merges} - {2})
    return [
        method_table(f"{name}: pairs", records, 2),
        *(method_table(f"{name}: {size} LoRAs in one", records, size) for size in sizes),
        rival_table(f"{name}: difference to rivals, paired", records),
        iteration_table(
            f"{name}: the paper's Algorithm 1, solve by solve, and the sweep{of}", records
        ),
        ablation_table(f"{name}: one setting changed{of}", records),
    ]
