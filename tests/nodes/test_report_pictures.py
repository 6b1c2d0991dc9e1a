"""Pictures of a report, and the node that shows them: which there are, and what is told without them."""

import sys

import pytest
from iteris_pack.nodes.report import drawn
from iteris_pack.nodes.report_pictures import pictures

from iteris_core import IterisError, MergeReport
from iteris_core.errors import MissingLibraryError
from iteris_core.report.layers import LayerReport, TaskAtLayerReport

PATHS = [
    *(f"clip_l.transformer.text_model.encoder.layers.{i}.mlp.fc1" for i in range(3)),
    *(
        f"diffusion_model.{b}.1.transformer_blocks.0.attn2.to_{x}"
        for b in ("input_blocks.1", "middle_block")
        for x in "qk"
    ),
]


def report(residual=0.2, cut=0.0, **more):
    tasks = tuple(
        TaskAtLayerReport(name, residual, 2.0, 10, wears=name != "base")
        for name in ("cat", "dog", "base")
    )
    return MergeReport(tuple(LayerReport(path, 8, tasks, cut) for path in PATHS), **more)


def test_what_is_asked_and_known_is_drawn():
    drawn = pictures(report())
    assert [*drawn] == ["layers", "weights", "ranks"]
    for picture in drawn.values():
        assert picture.shape == (600, 960, 3) and picture.min() >= 0 and picture.max() <= 1
        light = picture.mean(dim=-1)
        assert light.median() < 0.25 and (light > 0.7).float().mean() > 0.005, "letters"
    assert [*pictures(report(), asked=("ranks", "leaks"))] == ["ranks"]


@pytest.mark.parametrize("names", [("_mine",), ("a$x_{$b", "猫の絵", "x" * 90)])
def test_any_file_name_can_be_drawn(names, recwarn):
    """Nor may a legend be empty, as it is where matplotlib leaves out all names with a _ first."""
    names = [f"{name}{i or ''}" for name in names for i in range(9 // len(names))]
    entries = tuple(TaskAtLayerReport(name, 0.1 * (1 + i), 1.0, 9) for i, name in enumerate(names))
    drawn = pictures(MergeReport(tuple(LayerReport(path, 8, entries) for path in PATHS)))
    assert drawn["layers"].isfinite().all()
    assert not any("legend" in str(warning.message).lower() for warning in recwarn)


def test_a_report_without_layers_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(IterisError, match="nothing to draw"):
        pictures(MergeReport(()))
    with pytest.raises(IterisError, match="has no layers"):
        drawn(MergeReport(()), None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match="python -m pip install matplotlib"):
        pictures(report())
    images, [note] = drawn(report(), None)
    assert images.ndim == 4 and images.shape[-1] == 3
    assert "python -m pip install matplotlib" in note


def test_what_the_report_cannot_answer_is_told_and_the_rest_drawn():
    layer = LayerReport("net.a", 1, (TaskAtLayerReport("cat", 0.1, 1.0, 3),))
    report = MergeReport((layer,))
    pictures, notes = drawn(report, None, ("ranks", "unseen"))
    assert (len(pictures), notes) == (1, [])
    pictures, [note] = drawn(report, None, ("unseen",))
    assert pictures.ndim == 4 and "no such figures" in note
