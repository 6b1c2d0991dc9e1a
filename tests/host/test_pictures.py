"""The benchmark of pictures, on a model so small that its figures mean nothing."""

import re

import pytest

from benchmarks import pictures

pytestmark = pytest.mark.nightly


def test_a_merge_is_measured_in_pictures_stage_by_stage(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what the benchmark sets is undone
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nOthers.\n")
    arguments = ["--small", "--loras", "1", "--threads", "1", "--results", str(results)]
    (measured,) = pictures.main(arguments)

    assert measured.loras == 1
    assert len(measured.pictures) == 2
    (merge,) = measured.merges
    assert tuple(merge.stages) == pictures.STAGES
    for kind in range(2):  # clock, CPU time
        seconds = [times[kind] for times in merge.stages.values()]
        assert min(seconds) > 0
        assert sum(seconds) < merge.whole[kind]
        picture = min(times[kind] for times in measured.pictures)
        assert 0 < measured.ratios(kind)[0] <= merge.whole[kind] / picture
    assert merge.memory > 0

    written = results.read_text()
    assert written.startswith("# Results\n\nOthers.\n\n<!-- pictures:begin -->")
    assert "OMP_NUM_THREADS=1" in written
    rows = re.findall(r"^\| 1, (?:CPU time|clock) \|.*\|$", written, re.MULTILINE)
    assert len(rows) == 2
    assert all(row.count("|") == len(pictures.STAGES) + 7 for row in rows)
