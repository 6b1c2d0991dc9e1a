"""What a report says, and that it can be saved as JSON."""

import json

from iteris_core.report.records import (
    LayerReport,
    MergeReport,
    Note,
    TaskAtLayerReport,
    TaskFidelity,
    joined,
)


def layer(path, rank, **residuals):
    return LayerReport(
        path,
        rank,
        tuple(TaskAtLayerReport(task, value, 1.0, 8) for task, value in residuals.items()),
    )


def test_a_report_shows_medians_the_worst_layer_strange_keys_and_notes():
    report = MergeReport(
        (layer("x", 2, a=0.1, b=0.5), layer("y", 5, a=0.3, b=0.4), layer("z", 3, a=0.2, b=0.9)),
        {"a": ("k1", "k2", "k3", "k4")},
        (Note("method", "a note"),),
    )
    assert str(report).splitlines() == [
        "3 layers merged, rank 2 to 5",
        "  a: median residual 0.200, worst 0.300 at y",
        "  b: median residual 0.500, worst 0.900 at z",
        "  a: 4 keys belong to no module of this model: k1, k2, k3, ...",
        "  a note",
    ]


def test_where_a_teacher_wears_nothing_the_figure_is_a_leak_and_no_part_of_the_residual():
    own = TaskAtLayerReport("a", 0.2, 1.0, 8)
    idle = TaskAtLayerReport("a", 0.9, 1.0, 8, wears=False)
    report = MergeReport((LayerReport("x", 2, (own,)), LayerReport("y", 2, (idle,))))
    assert str(report).splitlines()[1:] == [
        "  a: median residual 0.200, worst 0.200 at x",
        "  a: median leak 0.900, worst 0.900 at y",
    ]


def test_a_report_of_nothing_can_be_shown():
    assert str(MergeReport(())) == "0 layers merged, rank 0 to 0"


def test_a_report_is_json_with_what_the_panel_in_the_browser_reads():
    report = MergeReport(
        (layer("x", 2, a=0.1),),
        {"a": ("k",)},
        (Note("host", "note"),),
        settings={"alpha": 1e-4},
        fidelity=(TaskFidelity("a", 0.2, 0.9, 4),),
    )
    again = json.loads(json.dumps(report.to_dict()))
    assert again["unmatched"] == {"a": ["k"]}
    assert again["notes"] == [{"kind": "host", "text": "note"}]
    assert again["settings"] == {"alpha": 1e-4}
    (entry,) = again["layers"]
    assert (entry["path"], entry["rank"]) == ("x", 2)
    (task,) = entry["tasks"]
    assert (task["task"], task["residual"], task["wears"]) == ("a", 0.1, True)
    assert (task["weight"], task["tokens"]) == (1.0, 8)
    (unseen,) = again["fidelity"]
    assert (unseen["task"], unseen["output_error"], unseen["strength"]) == ("a", 0.2, 0.9)


def test_joined_reports_keep_the_order_and_say_nothing_twice():
    same, one, other = (Note("method", text) for text in ("same", "text", "unet"))
    text = MergeReport(
        (layer("te", 2, a=0.1),), {"a": ("k",)}, (same, one), settings={"x": 1}, method="ties"
    )
    unet = MergeReport(
        (layer("unet", 2, a=0.3),), {"b": ("l",)}, (same, other), settings={"y": 2}, method="ties"
    )
    both = joined(text, unet)
    assert [entry.path for entry in both.layers] == ["te", "unet"]
    assert both.unmatched == {"a": ("k",), "b": ("l",)}
    assert both.notes == (same, one, other)
    assert (both.method, both.max_iter) == ("ties", None)
    assert both.settings == {"x": 1, "y": 2}
    assert both.residuals(wears=True) == {"a": [(0.1, "te"), (0.3, "unet")]}
    assert both.residuals(wears=False) == {}


def test_a_report_tells_how_true_the_merged_model_is_on_unseen_samples():
    own = TaskFidelity("cat", 0.125, 0.9, 6)
    preserve = TaskFidelity("preserve", 0.03125, None, 4)
    text = str(MergeReport((), fidelity=(own, preserve)))
    assert "cat, unseen samples: output error 0.125, strength 0.90" in text
    assert "preserve, unseen samples: leak in the output 0.031" in text
    assert joined(
        MergeReport((), fidelity=(own,)), MergeReport((), fidelity=(preserve,))
    ).fidelity == (own, preserve)


def test_a_lora_that_the_model_has_already_is_a_warning_and_said_once():
    """Not among the notes, which are behind a line to click."""
    notes = (Note("host", "a note"), Note("twice", "cat is on the MODEL, too"))
    report = MergeReport((), notes=notes)
    assert report.warnings == report.alerts == ["cat is on the MODEL, too"]
    assert report.to_dict()["warnings"] == report.warnings
    lines = str(report).splitlines()
    assert [line for line in lines if "too" in line] == ["cat is on the MODEL, too"]
    assert "  a note" in lines


def test_a_report_is_text_without_control_characters():
    """Names and keys are strangers'."""
    note = Note("left_out", "of \x1b]52;c;ZXZpbA==\x07\nWARNING: the merge fails")
    report = MergeReport([], {"a\x1b[2J": ["key\u202e"]}, [note])
    assert all(line.isprintable() for line in str(report).splitlines())
    assert "WARNING: the merge" not in [line[:18] for line in str(report).splitlines()]
    assert r"a\x1b[2J: 1 keys belong to no module of this model: key\u202e" in str(report)


def test_a_file_of_which_much_was_not_read_is_a_warning_and_no_detail():
    keys = ("lora_unet_q.alpha", "lora_unet_q.lora_up.weight")
    report = MergeReport(
        (layer("x", 2, a=0.1),),
        {"a": keys, "b": ("stray",)},
        fidelity=(TaskFidelity("a", 0.1, 0.9, 4), TaskFidelity("b", 0.1, 0.9, 4)),
        unread={"a": 0.46},
    )
    verdict, other, warning, _, *details = str(report).splitlines()
    assert verdict.startswith("a: good, kept 90 %")
    assert verdict.endswith("; 46 % of its file not read")
    assert other.startswith("b: good, kept 90 %") and "not read" not in other
    assert warning.startswith("a: 46 % of its file was not read, since 2 keys belong to no module")
    assert warning in report.warnings and warning in report.alerts
    assert [line for line in details if "belong to" in line] == [
        "  b: 1 keys belong to no module of this model: stray"
    ]
    assert joined(report, MergeReport(())).unread == {"a": 0.46}
    assert report.to_dict()["verdict"]["loras"][0]["unread"] == 0.46
