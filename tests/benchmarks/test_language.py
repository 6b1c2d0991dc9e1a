"""A run of the language benchmark on models too small to learn anything."""

import json

import pytest

from benchmarks import (
    language,
    language_blip,
    language_methods,
    language_tables,
    language_world,
)

pytestmark = pytest.mark.nightly


@pytest.fixture(autouse=True)
def quiet_transformers(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")


@pytest.mark.parametrize("world", ["t5", "blip"])
def test_a_run_trains_merges_scores_and_writes_its_section(world, tmp_path, monkeypatch):
    small = {
        "width": 16,
        "layers": 1,
        "base_steps": 2,
        "lora_steps": 2,
        "batch": 4,
        "samples": 3,
        "examples": 3,
    }
    size = language_world.Size(**small, base_examples=1)
    monkeypatch.setattr(language_blip, "POOL", 8)
    ways = language_methods.main_ways()
    few = {
        name: ways[name]
        for name in (
            language_methods.DEFAULT,
            language_methods.PAPER,
            "IterIS + preserve",
            "average",
            "regmean",
            "regmean_pp",
        )
    }
    few |= {f"iteration {number}": language_methods.iterating(number + 1) for number in range(3)}
    monkeypatch.setattr(language, "plan", lambda *_: few)
    job = language.Job(world, 0, 0, tmp_path, size, quick=True)
    told = []
    language.prepare_base(job, lambda *_: None)
    language.work(job, lambda *step: told.append(step))
    assert told[-1][1:] == (len(few), len(few))

    (group,) = language.groups_of(world, quick=True)
    path = job.records(group)
    kept = json.loads(path.read_text())
    assert set(kept) == set(few)
    for record in kept.values():
        assert set(group) <= set(record["scores"])
        assert all(0 <= score <= 1 for score in record["scores"].values())
    kept["average"]["scores"]["base"] = 0.123  # a second run leaves what is there
    path.write_text(json.dumps(kept))
    language.work(job, lambda *_: None)
    records = language.read_records([job])
    assert records[(0, 0), group] == kept

    tables = language_tables.tables_of(world, language.NAMES[world], records)
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert f"{language_methods.DEFAULT} (default)" in str(tables[0])
