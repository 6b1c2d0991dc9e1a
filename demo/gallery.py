"""What the demo shows: pictures by the base model, the stack and the merge, and what the
recogniser sees in them.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from iteris_core.files.writing import whole_file

from .client import ComfyClient, Json

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

PICTURES = 4  # of a column
DRAW = "draw "  # what the key of a node begins with whose output is a column
STEPS = 12
_TILE = 208
_GAP = 8
_LINE = 26
_PAPER = (255, 255, 255)
_INK = (30, 30, 36)
_QUIET = (130, 130, 138)
_GOOD = (22, 128, 60)


@dataclass(frozen=True)
class Column:
    """Pictures of one model.

    Args:
        name: What the model wears.
        pictures: The pictures.
        seen: What the recogniser sees in each of them, of what is wanted.
    """

    name: str
    pictures: Sequence[Image]
    seen: Sequence[Sequence[str]]

    def whole(self, wanted: Sequence[str]) -> int:
        """Return the number of pictures that show all that is wanted."""
        return sum(set(wanted) <= set(seen) for seen in self.seen)


def with_best(
    columns: Sequence[Column], names: Collection[str], wanted: Sequence[str]
) -> list[Column]:
    """Return the columns, and of those that have one of the names only the best one: it shows all
    that is wanted most often, or else most of it; of equal ones the first.
    """
    rivals = [column for column in columns if column.name in names]
    best = max(rivals, key=lambda column: (column.whole(wanted), sum(map(len, column.seen))))
    shown = replace(best, name=f"{best.name} (their best)")
    kept = [column for column in columns if column is best or column not in rivals]
    return [shown if column is best else column for column in kept]


def drawing_nodes(
    models: Mapping[str, tuple[list[object], list[object]]],
    vae: list[object],
    prompt: str,
    *,
    side: int,
    cfg: float,
    seed: int,
) -> Json:
    """Return core's own nodes that draw a prompt: a node ``draw NAME`` has each model's pictures.

    Args:
        models: Name -> MODEL and CLIP, as links of a workflow.
        vae: Link of the VAE.
        prompt: What is drawn.
        side: Side of the pictures in pixels.
        cfg: Guidance.
        seed: Seed of the noise, which all models share.
    """
    size = {"width": side, "height": side, "batch_size": PICTURES}
    nodes: Json = {"noise": _node("EmptyLatentImage", "", size)}
    for name, (model, clip) in models.items():
        keys = [f"{part} {name}" for part in ("prompt", "nothing", "sample", "decode")]
        told, untold, sampled, decoded = keys
        nodes[told] = _node("CLIPTextEncode", "", {"text": prompt, "clip": clip})
        nodes[untold] = _node("CLIPTextEncode", "", {"text": "", "clip": clip})
        nodes[sampled] = _node(
            "KSampler",
            f"Draw with {name}",
            {
                "model": model,
                "positive": [told, 0],
                "negative": [untold, 0],
                "latent_image": ["noise", 0],
                "seed": seed,
                "steps": STEPS,
                "cfg": cfg,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        )
        nodes[decoded] = _node("VAEDecode", "", {"samples": [sampled, 0], "vae": vae})
        nodes[DRAW + name] = _node("PreviewImage", "", {"images": [decoded, 0]})
    return nodes


def _node(kind: str, title: str, inputs: Json) -> Json:
    """Return a node; one without a title has no bar of its own while it runs."""
    return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}


def pictures_of(client: ComfyClient, shown: Json) -> list[Image]:
    """Return the pictures of a node whose output is PNG files, in RGB."""
    from PIL import Image

    return [
        Image.open(io.BytesIO(client.view(**file)), formats=["PNG"]).convert("RGB")
        for file in shown["images"]
    ]


def table_of(columns: Sequence[Column], wanted: Sequence[str]) -> Table:
    """Return how often each model draws what is wanted, as a table for the terminal."""
    from rich.table import Table

    table = Table(title=f"What a recogniser sees in {PICTURES} pictures of each")
    table.add_column("drawn with")
    for name in (*wanted, "both"):
        table.add_column(name, justify="right")
    for column in columns:
        counts = [sum(name in seen for seen in column.seen) for name in wanted]
        table.add_row(column.name, *map(str, counts), str(column.whole(wanted)))
    return table


def write_gallery(path: Path, title: str, columns: Sequence[Column], wanted: Sequence[str]) -> None:
    """Write all pictures as one PNG, with what the recogniser sees below each.

    Args:
        path: The file, which does not exist.
        title: The prompt.
        columns: The models' pictures.
        wanted: What should be in each picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = max(len(column.pictures) for column in columns)
    step = _TILE + _GAP
    size = (
        _GAP + len(columns) * step,
        2 * _LINE + rows * (_TILE + _LINE) + _LINE + _GAP,
    )
    whole = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(whole)
    small = ImageFont.load_default(15)
    large = ImageFont.load_default(18)
    pen.text((size[0] / 2, _LINE / 2 + 2), title, _INK, large, "mm")
    for number, column in enumerate(columns):
        left = _GAP + number * step
        middle = left + _TILE / 2
        pen.text((middle, 1.5 * _LINE), column.name, _INK, small, "mm")
        for row, (picture, seen) in enumerate(zip(column.pictures, column.seen, strict=True)):
            top = 2 * _LINE + row * (_TILE + _LINE)
            whole.paste(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top))
            told = " and ".join(seen) or "neither"
            colour = _GOOD if set(wanted) <= set(seen) else _QUIET
            pen.text((middle, top + _TILE + _LINE / 2), told, colour, small, "mm")
        whole_ones = f"both in {column.whole(wanted)} of {len(column.pictures)}"
        pen.text((middle, size[1] - _GAP - _LINE / 2), whole_ones, _INK, large, "mm")
    with whole_file(path) as file:
        whole.save(file, "PNG")
