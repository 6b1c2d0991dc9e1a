"""Where measured tables are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def write_parts(
    section: str, order: Iterable[str], texts: Mapping[str, str], path: Path = RESULTS
) -> None:
    """Put parts between the markers of a section; its other parts, and what stands around them,
    stay.

    Args:
        section: Name of the section; it is added at the end if the file has none of that name.
        order: Names of all parts that it can have, in order.
        texts: Name of a part -> its text, in Markdown.
        path: The file; made if missing.
    """
    begin, end, head = (f"<!-- {section}:{mark}" for mark in ("begin -->", "end -->", "part "))
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin not in old:
        old = old.rstrip() + f"\n\n{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    inside, _, after = rest.partition(end)
    parts = (piece.partition(" -->") for piece in inside.split(head)[1:])
    known = {name: body.strip() for name, _, body in parts} | dict(texts)
    inside = "\n\n".join(f"{head}{name} -->\n{known[name]}" for name in order if name in known)
    path.write_text(f"{before}{begin}\n{inside}\n{end}{after}", encoding="utf-8")
