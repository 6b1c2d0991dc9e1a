"""A run of the language benchmark on models too small to learn anything."""

import json

import pytest

from benchmarks.language import __main__ as language
from benchmarks.language import blip
from benchmarks.language.methods import ABLATIONS, DEFAULT, ITERATIONS, MAIN, PAPER
from benchmarks.language.tables import tables_of
from benchmarks.language.world import Size

pytestmark = pytest.mark.nightly
SMALL = Size(
    width=16, layers=1, base_steps=2, lora_steps=2, batch=4, samples=3, examples=3, base_examples=1
)
FEW = [
    DEFAULT,
    PAPER,
    ABLATIONS["target delta"],
    *(MAIN[name] for name in ("IterIS (default) + preserve", "average", "regmean", "regmean_pp")),
    *(ITERATIONS[solves] for solves in (1, 2, 3)),
]


@pytest.mark.parametrize("world", list(language.WORLDS))
def test_a_run_trains_merges_scores_and_makes_tables(world, tmp_path, monkeypatch):
    monkeypatch.setattr(blip, "POOL", 8)
    monkeypatch.setattr(language, "ways_of", lambda *_: FEW)
    group = tuple(language.WORLDS[world].tasks[:2])
    monkeypatch.setattr(language, "groups_of", lambda _: [group])
    job = language.Job(world, 0, 0, tmp_path, SMALL)
    language.prepare_base(job)
    language.work(job)
    path = job.records(group)
    kept = json.loads(path.read_text())
    assert set(kept) == {way.key for way in FEW}
    for scores in kept.values():
        assert set(scores) == {*group, "base"}
        assert all(0 <= score <= 1 for score in scores.values())
    kept[MAIN["average"].key]["base"] = 0.123  # a second run leaves what is there
    path.write_text(json.dumps(kept))
    language.work(job)
    records = language.read_records([job])
    assert records.merges[(0, 0), group] == kept

    pairs, rivals, iterations, ablations = tables_of(world, records)
    for table in (pairs, rivals, iterations, ablations):
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert "IterIS (default)" in [row[0] for row in pairs.rows]
    assert iterations.columns == ["solves", "1", "2", "3", "sweep"]
    assert "target full_output (default)" in [row[0] for row in ablations.rows]


def test_a_caption_needs_the_content_and_the_asked_style_alone():
    scene = blip.Scene("red", "circle", "left")
    plain = scene.caption()
    praised = scene.caption("lovely")
    both = ["a", "lovely", "ugly", *plain[1:]]
    for caption, word, expected in (
        (plain, "plain", True),
        (plain, "praise", False),
        (praised, "praise", True),
        (praised, "plain", False),
        (praised, "blame", False),
        (both, "praise", False),
        (["lovely"], "praise", False),
    ):
        assert blip.is_right(scene, caption, word) == expected, (caption, word)
