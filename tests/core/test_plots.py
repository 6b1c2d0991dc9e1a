"""Pictures of a report: which there are, and that they show what is in it."""

import sys

import pytest
import torch

from iteris_core import IterisError, MergeReport
from iteris_core.report.plot_axes import PALETTE, block_of
from iteris_core.report.plots import pictures
from iteris_core.report.records import Interference, LayerReport, TaskAtLayerReport, TaskFidelity

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
    return MergeReport(
        tuple(LayerReport(path, 8, tasks, cut, 2 * cut or None) for path in PATHS), **more
    )


def rgb(color):
    return torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def painted(picture, color):
    """Return the (row, column) of every pixel of a colour."""
    return ((picture - rgb(color)).abs().amax(-1) < 0.02).nonzero()


def test_a_plain_merge_has_three_pictures_of_the_size_that_was_asked_for():
    drawn = pictures(report(), width=800, height=500)
    assert [title.split(" ")[0] for title in drawn] == ["Residual", "Weight", "Rank"]
    assert all(
        picture.shape == (500, 800, 3) and 0 <= picture.min() < 0.5 < picture.max() <= 1
        for picture in drawn.values()
    )


def test_convergence_and_unseen_samples_are_drawn_if_they_were_measured():
    fidelity = (TaskFidelity("cat", 0.1, 0.9, 4), TaskFidelity("base", 0.3, None, 4))
    drawn = pictures(report(changes=(1.0, 0.1, 0.01), fidelity=fidelity))
    assert [title.split(" ")[0] for title in drawn] == [
        "Residual",
        "The",
        "Weight",
        "Rank",
        "Largest",
    ]


def test_interference_is_a_table_before_and_after():
    tasks = (
        TaskAtLayerReport("cat", 0.1, 1.0, 9, interference=(Interference("dog", 0.9, 0.0),)),
        TaskAtLayerReport("dog", 0.1, 1.0, 9, interference=(Interference("cat", 0.9, 0.0),)),
    )
    drawn = pictures(MergeReport(tuple(LayerReport(path, 8, tasks) for path in PATHS)))
    picture = next(
        picture for title, picture in drawn.items() if title.startswith("How much of each LoRA")
    )
    # the ends of the colour map
    most = "#fee838"
    least = "#00224e"
    stacked, merged = (painted(picture, color)[:, 1].float().median() for color in (most, least))
    assert stacked < 512 < merged


def test_a_task_that_fares_worse_stands_higher():
    bad = TaskAtLayerReport("cat", 0.8, 1.0, 10)
    good = TaskAtLayerReport("dog", 0.2, 1.0, 10)
    picture = next(
        iter(
            pictures(
                MergeReport(tuple(LayerReport(path, 8, (bad, good)) for path in PATHS))
            ).values()
        )
    )
    heights = [painted(picture, color)[:, 0].float().median() for color in PALETTE[:2]]
    assert heights[0] < heights[1] - 100


def test_another_method_is_drawn_beside_it():
    better = report(0.1, settings={"config": {"method": "iteris"}})
    drawn = pictures(better, [report(0.7, settings={"config": {"method": "average"}})])
    picture = next(picture for title, picture in drawn.items() if title.startswith("Mean residual"))
    ours, theirs = (painted(picture, color)[:, 0].float().median() for color in PALETTE[:2])
    assert ours > theirs + 100


def test_stack_and_average_are_drawn_beside_the_merge_if_they_were_measured():
    entry = TaskAtLayerReport("cat", 0.1, 1.0, 9, stacked=0.9, averaged=0.5, energy=2.0)
    drawn = pictures(MergeReport(tuple(LayerReport(path, 8, (entry,)) for path in PATHS)))
    picture = next(picture for title, picture in drawn.items() if title.startswith("Mean residual"))
    ours, stacked, averaged = (
        painted(picture, color)[:, 0].float().median() for color in PALETTE[:3]
    )
    assert ours > averaged + 50 > stacked + 100


def test_what_a_lower_rank_would_keep_is_drawn_if_it_is_known():
    entry = TaskAtLayerReport("cat", 0.1, 1.0, 9)
    layers = [
        LayerReport(path, 3, (entry,), kept=(0.5, 0.9, 0.99)[: 2 + i % 2])
        for i, path in enumerate(PATHS)
    ]
    assert "What a lower rank would keep" in pictures(MergeReport(tuple(layers)))


@pytest.mark.parametrize("name", ["_mine", "a$x_{$b", "猫の絵", "x" * 90])
def test_any_file_name_can_be_drawn(name, recwarn):
    entries = tuple(TaskAtLayerReport(f"{name}{i or ''}", 0.1 * (1 + i), 1.0, 9) for i in range(9))
    drawn = pictures(MergeReport(tuple(LayerReport(path, 8, entries) for path in PATHS)))
    picture = drawn["Residual at every layer: 0 is what each LoRA does alone"]
    assert len(painted(picture, PALETTE[0])) and not any(
        "legend" in str(w.message).lower() for w in recwarn
    )


def test_what_a_cut_costs_is_drawn_only_where_something_was_cut():
    uncut, cut = (list(pictures(report(cut=cost)).values())[-1] for cost in (0.0, 0.1))
    assert not len(painted(uncut, PALETTE[1])) and not len(painted(uncut, PALETTE[5]))
    ours, plain = (painted(cut, color) for color in (PALETTE[1], PALETTE[5]))
    assert len(ours) and len(plain)


def test_layers_without_a_task_leave_a_gap():
    only_first = LayerReport(PATHS[0], 4, (TaskAtLayerReport("cat", 0.5, 0.0, 3),))
    both = LayerReport(PATHS[1], 4, (TaskAtLayerReport("dog", 0.5, 1.0, 3),))
    assert len(pictures(MergeReport((only_first, both)))) == 3


@pytest.mark.parametrize(
    ("path", "block"),
    [
        (PATHS[2], "TE02"),
        (PATHS[3], "IN01"),
        (PATHS[5], "MID"),
        ("diffusion_model.output_blocks.11.1.proj_in", "OUT11"),
        ("unet.down_blocks.2.attentions.0.proj_in", "DOWN2"),
        ("encoder.block.7.layer.0.SelfAttention.q", "ENC07"),
        ("text_decoder.bert.encoder.layer.3.attention", "DEC03"),
        ("decoder.block.1.layer.0.q", "DEC01"),
        ("lm_head", "other"),
    ],
)
def test_layers_are_named_by_their_block(path, block):
    assert block_of(path) == block


def test_a_report_without_layers_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(IterisError, match="nothing to draw"):
        pictures(MergeReport(()))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(IterisError, match="python -m pip install matplotlib"):
        pictures(report())


def test_no_state_of_matplotlib_is_touched():
    import matplotlib

    before = matplotlib.get_backend(auto_select=False)
    pictures(report())
    assert (
        "matplotlib.pyplot" not in sys.modules
        or matplotlib.get_backend(auto_select=False) == before
    )
