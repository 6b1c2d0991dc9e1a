"""Tables of the language benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from .language_methods import (
    DEFAULT,
    ITERATIONS,
    PAPER,
    PRESERVE,
    SCALES,
    TARGETS,
    ablations,
    best_scale_ways,
    main_ways,
    scale_name,
    title,
)
from .results import Table

# that the sweep is compared with, merge by merge
RIVALS = (
    "average",
    "sum",
    "task_arithmetic",
    "hyper_linear",
    "ties",
    "regmean",
    "regmean_pp",
    "mix_of_show",
    "ssr",
)
# whose figures are told for each base model
BY_BASE = (
    "IterIS",
    "IterIS, the paper's objective",
    "IterIS + preserve",
    "regmean_pp",
    "mix_of_show",
    "regmean",
    "average",
)

Run = tuple[int, int]  # seed of the base model, seed of its LoRAs
Records = Mapping[tuple[Run, tuple[str, ...]], Mapping[str, Any]]
Content = tuple[list[str], list[list[str]]]  # heads and rows of a table
Score = dict[str, float]  # mean, worst, share, base, and the tasks by name


def summary(record: Mapping[str, Any], group: Sequence[str], alone: Mapping[str, Any]) -> Score:
    """Return one merge's mean and worst score over its tasks, its share of the LoRAs' own scores,
    and the base tasks' score.
    """
    scores = record["scores"]
    own = [scores[name] for name in group]
    lone = [alone[name]["scores"][name] for name in group]
    shares = [score / best for score, best in zip(own, lone, strict=True) if best]
    return {**scores, "mean": mean(own), "worst": min(own), "share": mean(shares or [float("nan")])}


def summaries(
    records: Records, way: str, sizes: Iterable[int]
) -> dict[tuple[Run, tuple[str, ...]], Score]:
    """Return (run, group) -> summary of a way, of groups of these sizes."""
    wanted = set(sizes)
    return {
        (run, group): summary(record[way], group, records[run, ("alone",)])
        for (run, group), record in records.items()
        if group != ("alone",) and len(group) in wanted and "scores" in record.get(way, {})
    }


def spread(values: Sequence[float]) -> str:
    """Return a mean with its standard error over groups and runs."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):.3f} ± {error:.3f}"


def _row(name: str, found: Iterable[Score], names: Sequence[str]) -> list[str]:
    found = list(found)
    per_task = [[score[task] for score in found if task in score] for task in names]
    cells = [f"{mean(values):.2f}" if values else "" for values in per_task]
    worst, share, base = ([score[key] for score in found] for key in ("worst", "share", "base"))
    return [
        name,
        spread([score["mean"] for score in found]),
        spread(worst),
        f"{mean(share):.3f}",
        *cells,
        f"{mean(base):.2f}",
    ]


def _alone(records: Records, names: Sequence[str]) -> list[list[str]]:
    lone = [record for (_, group), record in records.items() if group == ("alone",)]
    rows = []
    for label, own in (
        ("base model", [[record["base"]["scores"][name] for name in names] for record in lone]),
        ("each LoRA alone", [[record[name]["scores"][name] for name in names] for record in lone]),
    ):
        cells = [f"{mean(values):.2f}" for values in zip(*own, strict=True)]
        kept = [
            record[name]["scores"]["base"]
            for record in lone
            for name in (names if label[0] == "e" else ["base"])
        ]
        rows.append(
            [
                label,
                f"{mean(map(mean, own)):.3f}",
                f"{mean(map(min, own)):.3f}",
                "",
                *cells,
                f"{mean(kept):.2f}",
            ]
        )
    return rows


def method_table(records: Records, names: Sequence[str], sizes: Sequence[int]) -> Content:
    """Return the main table over groups of these sizes, best mean first."""
    ways = main_ways()
    found = {way: list(summaries(records, way, sizes).values()) for way in ways}
    rows = ranked({title(way, ways): scores for way, scores in found.items()}, names)
    head = ["method", "mean", "worst task", "share of LoRA", *names, "base tasks"]
    return (head, [*_alone(records, names), *rows])


def ranked(found: Mapping[str, Sequence[Score]], names: Sequence[str]) -> list[list[str]]:
    """Return a row per way that has scores, best mean first."""
    order = sorted(
        (name for name in found if found[name]),
        key=lambda name: -mean(score["mean"] for score in found[name]),
    )
    return [_row(name, found[name], names) for name in order]


def scale_table(records: Records, names: Sequence[str]) -> Content:
    """Return the rivals at their best scale, and as they are, on the same pairs."""
    ways = best_scale_ways()
    plain = {way.config.method for way in ways.values()}
    found = {
        way: same_pairs(records, way)
        for way in [*ways, *(name for name in main_ways() if name in plain)]
    }
    rows = ranked({**found, title(DEFAULT, main_ways()): same_pairs(records, DEFAULT)}, names)
    return (["method", "mean", "worst task", "base tasks"], [[*row[:3], row[-1]] for row in rows])


def difference(
    records: Records, way: str, rival: str, sizes: Sequence[int], key: str
) -> list[float]:
    """Return way minus rival, group by group and run by run."""
    ours = summaries(records, way, sizes)
    theirs = summaries(records, rival, sizes)
    return [ours[place][key] - theirs[place][key] for place in ours if place in theirs]


def rival_table(records: Records) -> Content:
    """Return the library's defaults minus the rivals, paired."""
    rows = []
    for rival in RIVALS:
        row = [f"{DEFAULT} - {rival}"]
        for sizes in ((2,), (3, 4, 5)):
            for key in ("mean", "worst"):
                values = difference(records, DEFAULT, rival, sizes, key)
                row.append(spread(values) if values else "")
        rows.append(row)
    return (
        ["difference", "pairs, mean", "pairs, worst", "3 and more, mean", "3 and more, worst"],
        rows,
    )


def ablation_table(records: Records, names: Sequence[str]) -> Content:
    """Return the table of single changed settings, on the pairs where all were tried."""
    rows = []
    ways = ablations()
    for name in ways:
        found = summaries(records, f"ablation: {name}", [2])
        change = difference(records, f"ablation: {name}", DEFAULT, [2], "mean")
        if found:
            row = _row(title(name, ways), found.values(), names)
            rows.append([*row[:3], spread(change) if any(change) else "", row[-1]])
    return (["setting", "mean", "worst task", "change of the mean", "base tasks"], rows)


def weight_table(records: Records, target: str) -> Content:
    """Return, for each scale of the tasks and bound of unit gain, the mean and the base tasks'
    score at each weight of the preserve task, and what weight 1 costs, paired.
    """
    head = ["balance", "unit gain"]
    for preserve in PRESERVE:
        label = f"preserve {preserve:g}" if preserve else "no preserve"
        head += [f"{label}: mean", "base tasks"]
    rows = []
    for balance, gain in SCALES:
        ways = [scale_name(target, balance, gain, preserve) for preserve in PRESERVE]
        found = [summaries(records, way, [2]).values() for way in ways]
        if all(found):
            cells = [
                text
                for scores in found
                for text in (
                    f"{mean(score['mean'] for score in scores):.3f}",
                    f"{mean(score['base'] for score in scores):.2f}",
                )
            ]
            cost = spread(difference(records, ways[-1], ways[0], [2], "mean"))
            rows.append([balance, f"{gain:g}", *cells, cost])
    return ([*head, "preserve 1 - none"], rows)


def base_table(records: Records) -> Content:
    """Return the mean over pairs and the base tasks' score for each base model by itself."""
    bases = sorted({base for (base, _), _ in records})
    ways = main_ways()
    rows = [["each LoRA alone", *(f"{_mean_alone(records, base):.3f}" for base in bases)]]
    for way in BY_BASE:
        cells = []
        for base in bases:
            of_base = {place: record for place, record in records.items() if place[0][0] == base}
            scores = summaries(of_base, way, [2]).values()
            own = spread([score["mean"] for score in scores])
            cells.append(f"{own}; {mean(score['base'] for score in scores):.2f}")
        rows.append([title(way, ways), *cells])
    return (["method", *(f"base {base}" for base in bases)], rows)


def _mean_alone(records: Records, base: int) -> float:
    """Return the mean score of a base model's LoRAs on their own tasks."""
    return mean(
        score["scores"][name]
        for ((of, _), group), record in records.items()
        if of == base and group == ("alone",)
        for name, score in record.items()
        if name != "base"
    )


def iterations(records: Records) -> list[tuple[int, list[Score]]]:
    """Return (iteration, summaries), iteration 0 being the first solve, with X~ = X."""
    found = [
        (number, summaries(records, f"iteration {number}", [2])) for number in range(ITERATIONS)
    ]
    return [(number, list(scores.values())) for number, scores in found if scores]


def same_pairs(records: Records, way: str) -> list[Score]:
    """Return a way's summaries on the pairs where iterations were tried."""
    places = summaries(records, "iteration 0", [2])
    return [score for place, score in summaries(records, way, [2]).items() if place in places]


def iteration_table(records: Records) -> Content:
    """Return the scores after each iteration, as the paper's table 7 has them, and those of one
    sweep.
    """
    rows = [(str(number), scores) for number, scores in iterations(records)] + [
        ("sweep", same_pairs(records, PAPER))
    ]
    head = ["", *(name for name, _ in rows)]
    lines = [
        [key, *(f"{mean(score[key] for score in scores):.3f}" for _, scores in rows)]
        for key in ("mean", "worst", "base")
    ]
    return (head, lines)


def style_table(records: Records, names: Sequence[str]) -> Content:
    """Return, for captions, the share in the asked style and the share with the right content."""
    rows = []
    ways = main_ways()
    for way in ways:
        found = [(group, score) for (_, group), score in summaries(records, way, [2]).items()]
        if found:
            cells = [
                [score[f"{name} {part}"] for group, score in found for name in group]
                for part in ("style", "content")
            ]
            cells += [
                [score[f"base {part}"] for _, score in found] for part in ("style", "content")
            ]
            rows.append([title(way, ways), *(f"{mean(cell):.3f}" for cell in cells)])
    rows.sort(key=lambda row: -float(row[1]))
    return (
        ["method (pairs)", "asked style", "right content", "plain: no style", "plain: content"],
        rows,
    )


def tables_of(world: str, names: Sequence[str], records: Records) -> list[Table]:
    """Return all tables of a model."""
    name = world.upper()
    of = "; pairs of neighbours"
    tables = [Table(f"{name}: pairs", *method_table(records, names, [2]))]
    tables += [
        Table(f"{name}: {size} LoRAs in one", *method_table(records, names, [size]))
        for size in sorted({len(group) for _, group in records} - {1, 2})
    ]
    if world == "blip":
        tables.append(
            Table(f"{name}: style and content of captions, pairs", *style_table(records, names))
        )
    tables.append(Table(f"{name}: difference to rivals, paired", *rival_table(records)))
    if len({base for (base, _), _ in records}) > 1:
        tables.append(
            Table(f"{name}: pairs, each base by itself: mean; base tasks", *base_table(records))
        )
    if not iterations(records):
        return tables
    tables.append(
        Table(
            f"{name}: the paper's Algorithm 1, iteration by iteration, and the sweep{of}, the paper's objective",
            *iteration_table(records),
        )
    )
    if any(same_pairs(records, way) for way in best_scale_ways()):
        tables.append(
            Table(
                f"{name}: rivals with a free scale, as published and at their best scale{of}",
                *scale_table(records, names),
            )
        )
    tables.append(Table(f"{name}: one setting changed{of}", *ablation_table(records, names)))
    return [
        *tables,
        *(
            Table(
                f"{name}: balance, unit gain and preserve weight, target {target}",
                *weight_table(records, target),
            )
            for target in TARGETS
        ),
    ]
