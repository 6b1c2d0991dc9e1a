"""The node that shows a report."""

import sys

import pytest
from iteris_pack.nodes.report import drawn

from iteris_core import IterisError, MergeReport
from iteris_core.report.records import LayerReport, TaskAtLayerReport


def test_a_report_without_matplotlib_is_still_told(monkeypatch):
    layer = LayerReport("net.a", 1, (TaskAtLayerReport("cat", 0.1, 1.0, 3),))
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    pictures, [note] = drawn(MergeReport((layer,)), None)
    assert pictures.ndim == 4 and pictures.shape[-1] == 3
    assert "python -m pip install matplotlib" in note
    with pytest.raises(IterisError, match="has no layers"):
        drawn(MergeReport(()), None)


def test_what_the_report_cannot_answer_is_told_and_the_rest_drawn():
    layer = LayerReport("net.a", 1, (TaskAtLayerReport("cat", 0.1, 1.0, 3),))
    report = MergeReport((layer,))
    pictures, notes = drawn(report, None, ("ranks", "unseen"))
    assert (len(pictures), notes) == (1, [])
    pictures, [note] = drawn(report, None, ("unseen",))
    assert pictures.ndim == 4 and "no such figures" in note
