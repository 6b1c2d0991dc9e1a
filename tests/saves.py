"""What kills and rivals do to writers, with real ones.

    python tests/saves.py kills             # 30 kills of each writer, at moments over a whole save
    python tests/saves.py savers            # 20 times two processes that save one name at once

Prints a line a writer; ends with 1 if anything was lost, half written or left behind.
`tests/core/test_writing.py` strikes between any two steps instead, which is quicker and misses none;
this asks the system itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

import torch  # noqa: E402
from file_steps import together  # noqa: E402

from iteris_core import Adapter, LowRankDelta  # noqa: E402
from iteris_core.cli.terminal import quiet_libraries  # noqa: E402
from iteris_core.files import peft, writing  # noqa: E402

Save = Callable[[Path, float, bool], object]
OLD, NEW = 1.0, 2.0
WIDTH = 3_000_000  # numbers of a file, so that a save takes long enough to be killed


def save_file(place: Path, value: float, overwrite: bool) -> None:
    writing.write_tensors({"a": torch.full((WIDTH,), value)}, place, {}, overwrite=overwrite)


def save_folder(place: Path, value: float, overwrite: bool) -> None:
    delta = LowRankDelta(torch.full((WIDTH, 1), value), torch.ones(1, 2))
    peft.save(Adapter("x", {"q": delta}), place, "base", None, overwrite=overwrite)


def save_text(place: Path, value: float, overwrite: bool) -> None:
    writing.write_text(f"{value}" * WIDTH, place, overwrite=overwrite)


WRITERS: dict[str, Save] = {
    "LoRA file": save_file,
    "PEFT folder": save_folder,
    "report": save_text,
}


def content(place: Path) -> object:
    """Return all that can be seen of a place."""
    if not place.is_dir():
        return place.read_bytes() if place.exists() else None
    return {path.name: path.read_bytes() for path in place.iterdir()}


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def contents(folder: Path, save: Save) -> tuple[object, object]:
    """Return what the old and the new look like."""
    found = []
    for value in (OLD, NEW):
        save(folder / "place", value, True)
        found.append(content(folder / "place"))
    clear(folder)
    return found[0], found[1]


def start(work: Callable[[], object]) -> int:
    """Return a child, at the moment in which it begins to work."""
    ready, begins = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(begins, b"x")
            work()
            status = 0
        finally:
            os._exit(status)
    os.read(ready, 1)
    os.close(ready)
    os.close(begins)
    return child


def kills(folder: Path, save: Save, moments: int) -> dict[str, int]:
    """Kill a writer at moments over a whole save, and return how often what was found.

    Those killed are the runs that had not ended. The old or the new was there, or neither and the
    next save put the old one back; the rest is bad. Something hidden was left, also after a save a day
    later.
    """
    old, new = contents(folder, save)
    place = folder / "place"
    seconds = statistics.median(timed(save, place) for _ in range(5))
    found = dict.fromkeys(("killed", "old", "new", "put back", "bad", "left", "left then"), 0)
    for moment in range(moments):
        clear(folder)
        save(place, OLD, False)
        child = start(lambda: save(place, NEW, True))
        time.sleep(seconds * (moment + 0.5) / moments)
        os.kill(child, signal.SIGKILL)
        found["killed"] += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        there = content(place)
        found["left"] += bool(hidden(folder))
        for name in hidden(folder):
            os.utime(folder / name, (time.time() - 25 * 3600,) * 2)
        writing.write_text("next", folder / "next")
        found["left then"] += bool(hidden(folder))
        later = content(place)
        what = "old" if there == old else "new" if there == new else "bad"
        found["put back" if there is None and later == old else what] += 1
    return found


def timed(save: Save, place: Path) -> float:
    child = start(lambda: save(place, NEW, True))
    began = time.monotonic()
    os.waitpid(child, 0)
    return time.monotonic() - began


def savers(folder: Path, save: Save, rounds: int) -> dict[str, int]:
    """Let two processes save one name at once, with overwriting and without, and return how often
    what was found.
    """
    both = list(contents(folder, save))
    place = folder / "place"
    found = dict.fromkeys(("both saved", "failed", "bad", "left"), 0)
    for number in range(2 * rounds):
        clear(folder)
        overwrite = number < rounds

        def work(value: float, overwrite: bool = overwrite) -> None:
            writing.under_free_name(
                place, lambda path, may: save(path, value, may), overwrite=overwrite
            )

        statuses = together(lambda: work(OLD), lambda: work(NEW))
        found["failed"] += sum(map(bool, statuses))
        found["both saved"] += not any(statuses)
        names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
        whole = [content(folder / name) for name in names]
        good = whole[0] in both if overwrite else whole in (both, both[::-1])
        found["bad"] += not (good and len(names) == 2 - overwrite)
        found["left"] += bool(hidden(folder))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("kills", "savers"))
    parser.add_argument("--times", type=int, help="kills (30) or rounds (20) of each writer")
    given = parser.parse_args(arguments)
    measure, times = {"kills": (kills, 30), "savers": (savers, 20)}[given.action]
    torch.set_num_threads(1)
    quiet_libraries()
    bad = 0
    for name, save in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), save, given.times or times)
        print(
            f"{name}: {', '.join(f'{what} {count}' for what, count in found.items())}", flush=True
        )
        bad += sum(found.get(what, 0) for what in ("bad", "left then", "failed"))
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
