"""What was measured: tables in `results/`, each with the command that makes it again."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, median, stdev

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under a title, by which a file knows the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        lines = [list(map(str, line)) for line in [self.columns, *self.rows]]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        told = ("  ".join(map(str.ljust, line, widths)) for line in lines)
        return "\n".join([self.title, *told])


def write(tables: Sequence[Table], path: Path, command: str, made_on: str) -> None:
    """Put tables into a file of results; each takes the place of the one with its title."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tables": []}
    known = {entry["title"]: entry for entry in found["tables"]}
    for table in tables:
        known[table.title] = {
            "title": table.title,
            "made again by": command,
            "made on": made_on,
            "columns": table.columns,
            "rows": table.rows,
        }
    head = {name: value for name, value in found.items() if name != "tables"}
    parts = [f"{_text(name)}: {_text(value)}," for name, value in head.items()]
    entries = ",\n".join(_entry(entry) for entry in known.values())
    text = "\n".join(["{", *parts, f'"tables": [\n{entries}\n]', "}\n"])
    path.write_text(text, encoding="utf-8")


def _entry(entry: dict[str, object]) -> str:
    rows = entry["rows"]
    assert isinstance(rows, Sequence)
    fields = [f"{_text(name)}: {_text(value)}" for name, value in entry.items() if name != "rows"]
    lines = ",\n".join(f"  {_text(row)}" for row in rows)
    return "{" + ",\n ".join([*fields, f'"rows": [\n{lines}\n ]']) + "}"


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def command_of(name: str, arguments: Sequence[str] | None = None) -> str:
    """Return the command that runs a benchmark again."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", "-m", f"benchmarks.{name}", *given])


def _git(*command: str) -> str:
    git = ["git", "-C", str(RESULTS.parent), *command]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def machine(device: str = "cpu") -> str:
    """Return the machine, the versions, the date and the commit of a measurement."""
    commit = _git("describe", "--always", "--abbrev=7")
    if _git("status", "--porcelain", "--", ":/", f":!{RESULTS.name}"):  # results change each other
        commit += "-dirty"
    memory = psutil.virtual_memory().total / 2**30
    where = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return (
        f"{_cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB{where}; torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}; {date.today().isoformat()}, commit {commit or 'unknown'}"
    )


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    name = fields.get("model name", platform.processor())
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return a median with the lowest and the highest value."""
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def with_error(values: Sequence[float]) -> str:
    """Return a mean with its standard error."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):.3f} ± {error:.3f}"
