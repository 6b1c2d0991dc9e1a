"""The benchmarks of time and memory, on models so small that their figures mean nothing."""

import json

import pytest

from benchmarks import memory, pictures, scale

pytestmark = pytest.mark.nightly


def test_memory_is_counted_on_a_model_without_weights():
    def tiny(resolution):
        return memory.sd15(
            resolution,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=48,
            attention_head_dim=4,
        )

    counted = memory.count(memory.Case("tiny", "SD1.5", 64, 1.0, tiny))
    assert counted.model == 2 * sum(w.numel() for w in counted.modules[""].parameters())
    assert memory.verdict(counted, (memory.NOT_FREE + 10e9) / 2**30, 2) == "fits"
    assert memory.verdict(counted, memory.NOT_FREE / 2**30, 2) == "no"
    table = memory.table_of([counted])
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_merge_is_measured_over_processes(monkeypatch):
    monkeypatch.setattr(scale, "WIDTH", 32)
    monkeypatch.setattr(scale, "SAMPLES", 4)
    table = scale.table_of([1, 2], rounds=1)
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert float(table.rows[1][-1]) > 0  # MB that two processes add up


def test_a_merge_is_measured_in_pictures_stage_by_stage(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what the benchmark sets is undone
    results = tmp_path / "pictures.json"
    arguments = ["--small", "--loras", "1", "--threads", "1", "--results", str(results)]
    (measured,) = pictures.main(arguments)
    assert (measured.loras, len(measured.pictures)) == (1, 2)
    (merge,) = measured.merges
    assert tuple(merge.stages) == pictures.STAGES
    for kind in range(2):  # clock, CPU time
        seconds = [times[kind] for times in merge.stages.values()]
        assert min(seconds) > 0
        assert sum(seconds) < merge.whole[kind]
    assert merge.memory > 0
    (table,) = json.loads(results.read_text())["tables"]
    assert [row[0] for row in table["rows"]] == ["1, CPU time", "1, clock"]
