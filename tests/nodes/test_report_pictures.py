"""Pictures of a report: which there are, and that they show what is in it."""

import sys

import pytest
from iteris_pack.nodes.report_pictures import pictures
from matplotlib.figure import Figure

from iteris_core import IterisError, MergeReport
from iteris_core.errors import MissingLibraryError
from iteris_core.report.records import Interference, LayerReport, TaskAtLayerReport, TaskFidelity

PATHS = [
    *(f"clip_l.transformer.text_model.encoder.layers.{i}.mlp.fc1" for i in range(3)),
    *(
        f"diffusion_model.{b}.1.transformer_blocks.0.attn2.to_{x}"
        for b in ("input_blocks.1", "middle_block")
        for x in "qk"
    ),
]
BLOCKS = 5  # TE00 to TE02, IN01, MID


def report(residual=0.2, cut=0.0, **more):
    tasks = tuple(
        TaskAtLayerReport(name, residual, 2.0, 10, wears=name != "base")
        for name in ("cat", "dog", "base")
    )
    return MergeReport(
        tuple(LayerReport(path, 8, tasks, cut, 2 * cut or None) for path in PATHS), **more
    )


@pytest.fixture
def draw(monkeypatch):
    """Return a function that draws a report's pictures and returns what is drawn on: question ->
    matplotlib's figure.
    """
    made = []

    class KeptFigure(Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", KeptFigure)

    def draw_report(report, others=()):
        made.clear()
        return dict(zip(pictures(report, others), made, strict=True))

    return draw_report


def lines(axes):
    """Return the lines that the legend names: label -> their values, one per block."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, ([*map(float, line.get_ydata())] for line in handles), strict=True))


def dots(axes):
    """Return the values of the lines that the legend does not name: one per layer."""
    _, labels = axes.get_legend_handles_labels()
    return [
        [*map(float, line.get_ydata())]
        for line in axes.get_lines()
        if line.get_label() not in labels
    ]


UNSEEN = (TaskFidelity("cat", 0.1, 0.9, 4), TaskFidelity("base", 0.3, None, 4))


def test_what_is_asked_and_known_is_drawn_in_the_size_that_was_asked_for():
    drawn = pictures(report(), width=800, height=500)
    assert [*drawn] == ["layers", "weights", "ranks"]
    for picture in drawn.values():
        assert picture.shape == (500, 800, 3) and picture.min() >= 0 and picture.max() <= 1
        light = picture.mean(dim=-1)
        assert light.median() < 0.25 and (light > 0.7).float().mean() > 0.005, "letters"
    assert [*pictures(report(), asked=("ranks", "leaks"))] == ["ranks"]
    assert [*pictures(report(fidelity=UNSEEN))] == ["layers", "unseen", "weights", "ranks"]
    entry = TaskAtLayerReport("cat", 0.1, 1.0, 9)
    layers = [
        LayerReport(path, 3, (entry,), kept=(0.5, 0.9, 0.99)[: 2 + i % 2])
        for i, path in enumerate(PATHS)
    ]
    assert "lower_rank" in pictures(MergeReport(tuple(layers)))


def test_interference_is_a_table_before_and_after(draw):
    tasks = (
        TaskAtLayerReport("cat", 0.1, 1.0, 9, interference=(Interference("dog", 0.9, 0.0),)),
        TaskAtLayerReport("dog", 0.1, 1.0, 9, interference=(Interference("cat", 0.8, -0.1),)),
    )
    drawn = draw(MergeReport(tuple(LayerReport(path, 8, tasks) for path in PATHS)))
    before, after, _colors = drawn["leaks"].axes
    assert [axes.get_title() for axes in (before, after)] == ["LoRAs stacked", "merged"]
    assert [label.get_text() for label in before.get_yticklabels()] == ["cat", "dog"]
    for axes, values in ((before, (0.9, 0.8)), (after, (0.0, 0.1))):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
        (image,) = axes.get_images()
        assert image.get_array().tolist() == [[None, values[0]], [values[1], None]]
        assert image.get_clim() == (0, 0.9), "one scale for both"
        written = [text.get_text() for text in axes.texts]
        assert written == ["own", f"{values[0]:.2f}", f"{values[1]:.2f}", "own"]


def test_a_task_that_fares_worse_stands_higher(draw):
    bad = TaskAtLayerReport("cat", 0.8, 1.0, 10)
    good = TaskAtLayerReport("dog", 0.2, 1.0, 10)
    drawn = draw(MergeReport(tuple(LayerReport(path, 8, (bad, good)) for path in PATHS)))
    (axes,) = drawn["layers"].axes
    assert lines(axes) == {"cat: residual": [0.8] * BLOCKS, "dog: residual": [0.2] * BLOCKS}
    assert dots(axes) == [[0.8] * len(PATHS), [0.2] * len(PATHS)]
    assert axes.get_ylim()[0] == 0 and not axes.yaxis_inverted()


def test_other_ways_are_drawn_beside_the_merge_if_they_were_measured(draw):
    drawn = draw(report(0.1, method="iteris"), [report(0.7, method="average")])
    (axes,) = drawn["stacking"].axes
    assert lines(axes) == {"1. iteris": [0.1] * BLOCKS, "2. average": [0.7] * BLOCKS}
    entry = TaskAtLayerReport("cat", 0.1, 1.0, 9, stacked=0.9, averaged=0.5, energy=2.0)
    drawn = draw(MergeReport(tuple(LayerReport(path, 8, (entry,)) for path in PATHS)))
    (axes,) = drawn["stacking"].axes
    assert lines(axes) == {
        "merged (iteris)": [0.1] * BLOCKS,
        "LoRAs stacked": [0.9] * BLOCKS,
        "LoRAs averaged": [0.5] * BLOCKS,
    }


@pytest.mark.parametrize("name", ["_mine", "a$x_{$b", "猫の絵", "x" * 90])
def test_any_file_name_can_be_drawn(draw, name, recwarn):
    names = [f"{name}{i or ''}" for i in range(9)]
    entries = tuple(TaskAtLayerReport(name, 0.1 * (1 + i), 1.0, 9) for i, name in enumerate(names))
    drawn = draw(MergeReport(tuple(LayerReport(path, 8, entries) for path in PATHS)))
    (axes,) = drawn["layers"].axes
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    for task, label in zip(names, shown, strict=True):
        end = label.strip().replace(r"\$", "$").removeprefix("...")
        assert len(end) > 10 and f"{task}: residual".endswith(end)
    assert not any("legend" in str(warning.message).lower() for warning in recwarn)


def test_what_a_cut_costs_is_drawn_only_where_something_was_cut(draw):
    uncut, cut = (draw(report(cut=cost))["ranks"].axes for cost in (0.0, 0.1))
    assert len(uncut) == 1
    _ranks, costs = cut
    assert lines(costs) == {
        "this merge": [0.1] * BLOCKS,
        "plain SVD of the same rank": [0.2] * BLOCKS,
    }
    for axes in (uncut[0], cut[0]):
        (ranks,) = axes.get_lines()
        assert list(ranks.get_ydata()) == [8] * len(PATHS)


def test_layers_without_a_task_leave_a_gap(draw):
    only_first = LayerReport(PATHS[0], 4, (TaskAtLayerReport("cat", 0.5, 0.0, 3),))
    both = LayerReport(PATHS[1], 4, (TaskAtLayerReport("dog", 0.4, 1.0, 3),))
    drawn = draw(MergeReport((only_first, both)))
    assert len(drawn) == 3
    (axes,) = drawn["layers"].axes
    assert lines(axes) == {"cat: residual": [0.5], "dog: residual": [0.4]}
    assert dots(axes) == [[0.5], [0.4]]


def test_a_report_without_layers_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(IterisError, match="nothing to draw"):
        pictures(MergeReport(()))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match="python -m pip install matplotlib"):
        pictures(report())
