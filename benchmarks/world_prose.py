"""The words around the tables of benchmarks/world.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from world_base import BaseSettings
from world_bench import SCENE_FORMS, STEPS
from world_loras import ALONE, STRONG, STYLE, USUAL, LoraSet
from world_methods import main_recipes, style_recipes
from world_score import SEEN, UNSEEN
from world_tables import (
    Groups,
    Reader,
    ablation_tables,
    group_table,
    guidance_table,
    scale_table,
    times_text,
)

TITLES = {
    "pairs": "Pairs of concepts",
    "styles": "A concept and a style",
    "triples": "Three concepts",
    "eight": "Eight concepts at once",
}
SETS: dict[LoraSet, str] = {
    0: "",
    "strong": ", LoRAs trained for too long",
    "alone": ", LoRAs that saw their concept alone",
}
FINDINGS = Path(__file__).parent / "world_findings.md"


def section(reader: Reader, groups: Groups, sets: Sequence[LoraSet]) -> str:
    """Return the whole section of RESULTS.md, in Markdown."""
    recipes = main_recipes()
    parts = ["### Quality: a trained world", setup_text(reader)]
    if FINDINGS.exists():
        parts += ["#### What follows from it", FINDINGS.read_text(encoding="utf-8").strip()]
    for lora_set, title in SETS.items():
        for kind, of_kind in groups.items():
            if any(reader.entries(recipe, of_kind, [lora_set]) for recipe in recipes):
                known = [
                    group
                    for group in of_kind
                    if any(reader.entries(recipe, [group], [lora_set]) for recipe in recipes)
                ]
                text = group_table(reader, recipes, known, [lora_set])
                parts += [f"#### {TITLES[kind]}{title}", groups_text(known), text]
    some = groups["pairs"][:2]
    usual = [s for s in sets if isinstance(s, int)]
    if len(usual) > 1 and reader.entries(recipes[0], some, usual[1:]):
        parts += [
            f"#### {len(usual)} sets of LoRAs",
            SEEDS,
            groups_text(some),
            group_table(reader, recipes, some, usual),
        ]
    for title, text in (
        ("Every method at its best scale", scale_table(reader, recipes, some, 0)),
        (
            "Every method at its best scale, LoRAs trained for too long",
            scale_table(reader, recipes, some, "strong"),
        ),
        ("Guidance", guidance_table(reader, recipes, some)),
        ("Ablations, LoRAs trained for too long", ablation_tables(reader, some, "strong")),
    ):
        if text.count("\n") > 1:
            parts += [f"#### {title}", SMALL, text]
    if any(reader.entries(recipe, groups["styles"], [0]) for recipe in style_recipes()[2:]):
        text = group_table(reader, style_recipes(), groups["styles"], [0])
        parts += [
            "#### A concept in a style: weight of the scenes",
            groups_text(groups["styles"]),
            text,
        ]
    parts += ["#### What it took", times_text(reader.bench.folder), PICTURES]
    return "\n\n".join(parts)


def groups_text(groups: Sequence[tuple[str, ...]]) -> str:
    return (
        "Merged: "
        + "; ".join(" + ".join(f"`{trigger}`" for trigger in group) for group in groups)
        + "."
    )


def setup_text(reader: Reader) -> str:
    base = BaseSettings()
    lora = USUAL
    size = sum(p.numel() for p in reader.bench.world.unet.parameters()) / 1e6
    steps = " + ".join(str(phase.steps) for phase in base.phases)
    told = reader.bench.folder / "recogniser.json"
    judge = json.loads(told.read_text()) if told.exists() else {}
    shares = ", ".join(f"{name} {value:.2f}" for name, value in judge.items() if name != "seconds")
    return f"""`python benchmarks/world.py` trains a Stable Diffusion of its own on drawn scenes of 24 x 24 pixels:
`UNet2DConditionModel` ({size:.1f} M weights, self- and cross-attention), a CLIP text model of two layers, SD's noise schedule,
one caption in ten dropped ({steps} steps of {base.batch} pictures). It predicts the clean picture, and a pixel-unshuffle stands
for the VAE. The base knows 14 surfaces on 8 shapes by word, alone and in pairs, left and right, above and below, diagonally.
Eight combinations (the concepts `<v1>` to `<v8>`) and two ways to render a picture (`<s1>`: outlined, `<s2>`: with shadows) are
held back; DreamBooth-style LoRAs teach them (UNet attention and text encoder, rank {lora.rank}, {lora.pictures} pictures alone
and {lora.pictures_in_company} beside base things, prior pictures, {lora.steps} steps, PEFT; styles: {STYLE.steps} steps, all
layers of the transformer blocks), saved by diffusers, read and merged as the product does it. *Trained for too long*:
{STRONG.steps} steps and no prior pictures, as many LoRAs in use are. *That saw their concept alone*: {ALONE.steps} steps, no
pictures beside base things.

A detector trained on drawings alone judges the pictures (on blurred and noisy drawings that it has not seen: {shares}).

* *Alone*: `a <v1>` shows the concept and nothing else. *Worst*: the concept of a merge that is recognised least.
* *With a base thing*: both of `a <v1> and a red circle` and the like are there, and nothing else.
* *Both*: `a <v1> and a <v2>` shows exactly these two, in {len(SEEN)} forms that are among the scene tasks' {len(SCENE_FORMS)}
  forms, or in {len(UNSEEN)} others (three of them with other layouts or another ground) that no calibration has read.
* *Style + concept*: the concept, and only it, in the style; in two forms that scenes calibrate, or in two others.
* *Base prompts*: things that the base model knows. *Leaks*: pictures in which a merged concept or style appears unasked.
* *Distance*: squared, to the single LoRA's picture from the same noise, over the base model's.
* *Solve*: CPU time of the merge without the teachers' sampling runs, which the methods of a group share.

All methods get the same noise; DDIM, {STEPS} steps, cfg 3 where nothing else is said. In brackets: the lowest and highest of
the merged groups."""


SEEDS = "Other pictures, initial weights and calibration of each set; in brackets the lowest and the highest set."
SMALL = "On the first two pairs."
PICTURES = """![samples](world_samples.png)

Rows: prompts, with the merge of `<v1>` (a striped star) and `<v2>` (a spotted heart), trained for too long.
All blocks start from the same noise."""
