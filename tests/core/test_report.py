"""What a report says, and that it can be saved as JSON."""

import json

from iteris_core import Adapter
from iteris_core.merging import notes_about_unread
from iteris_core.report.records import (
    LayerReport,
    MergeReport,
    Note,
    Source,
    TaskAtLayerReport,
    joined,
)


def layer(path, rank, **residuals):
    tasks = tuple(TaskAtLayerReport(task, value, 1.0, 8) for task, value in residuals.items())
    return LayerReport(path, rank, tasks)


def test_a_report_is_json_with_what_the_panel_in_the_browser_reads():
    notes = (Note("host", "a note"), Note("twice", "cat is on the MODEL, too"))
    report = MergeReport((layer("x", 2, a=0.1),), notes, settings={"alpha": 1e-4})
    again = json.loads(json.dumps(report.to_dict()))
    assert again["notes"][0] == {"kind": "host", "text": "a note"}
    assert again["warnings"] == ["cat is on the MODEL, too"]  # not a note alone
    assert str(report).count(", too") == 1 and "  a note" in str(report).splitlines()
    (entry,) = again["layers"]
    (task,) = entry["tasks"]
    assert (entry["path"], entry["rank"]) == ("x", 2)
    assert (task["task"], task["residual"], task["wears"], task["tokens"]) == ("a", 0.1, True, 8)


def test_a_report_tells_what_went_in_what_was_measured_and_what_came_out():
    layers = (layer("x", 2, a=0.1), layer("y", 16, a=0.3))
    loras = (
        Source("dog", 1.0, 1.0, ("a sks dog", "a sks dog outdoors")),
        Source("ink", 0.8, 0.0, ("xyz ink",), are_made=True),
    )
    report = MergeReport(layers, loras=loras, rows=207, seconds=33.7, saved_bytes=74_200_000)
    assert report.facts == ["207 rows measured in 34 s", "2 layers merged, rank 2 to 16, 74.2 MB"]
    assert report.to_dict()["facts"] == report.facts
    lines = str(report).splitlines()
    assert lines[:2] == report.facts
    assert lines[2:4] == [
        "  dog at 1: a sks dog; a sks dog outdoors",
        "  ink at 0.8 (text encoder 0): made of its trigger words",
    ]
    preview = MergeReport(layers, method="np_lora", is_measured=False, seconds=2.0)
    assert preview.facts[0] == "merged by np_lora from the files alone in 2 s: nothing measured"


def test_joined_reports_keep_the_order_and_say_nothing_twice():
    same, one, other = (Note("method", text) for text in ("same", "text", "unet"))
    text = MergeReport((layer("te", 2, a=0.1),), notes=(same, one), method="ties")
    unet = MergeReport((layer("unet", 2, a=0.3),), notes=(same, other), method="ties")
    both = joined(text, unet)
    assert both.notes == (same, one, other) and both.method == "ties"
    assert both.residuals(wears=True) == {"a": [(0.1, "te"), (0.3, "unet")]}


def test_a_report_is_text_without_control_characters():
    """Names and keys are strangers'."""
    note = Note("left_out", "of \x1b]52;c;ZXZpbA==\x07\nWARNING: the merge fails\u202e")
    report = MergeReport([], [note], loras=(Source("a\x1b[2J", 1.0, 1.0, ()),))
    assert all(line.isprintable() for line in str(report).splitlines())
    assert "WARNING: the merge" not in [line[:18] for line in str(report).splitlines()]
    assert r"a\x1b[2J at 1" in str(report) and r"fails\u202e" in str(report)


def test_a_file_of_which_much_was_not_read_is_a_warning_and_no_detail():
    keys = ("lora_unet_q.alpha", "lora_unet_q.lora_up.weight")
    much = Adapter("a", {}, keys, keys=4)
    little = Adapter("b", {}, ("stray",), keys=100)
    report = MergeReport((), tuple(notes_about_unread([much, little])))
    warning, _, *details = str(report).splitlines()
    assert warning.startswith("a: 50 % of its file was not read, since 2 keys belong to no module")
    assert report.warnings == [warning]
    assert details == ["  b: 1 keys belong to no module of this model: stray"]
