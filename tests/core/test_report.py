"""What a report says, and that it can be saved as JSON."""

import json

from iteris_core.report.layers import LayerReport, TaskAtLayerReport
from iteris_core.report.records import MergeReport, Note, joined
from iteris_core.report.runs import TaskFidelity


def layer(path, rank, **residuals):
    tasks = tuple(TaskAtLayerReport(task, value, 1.0, 8) for task, value in residuals.items())
    return LayerReport(path, rank, tasks)


def test_a_report_is_json_with_what_the_panel_in_the_browser_reads():
    notes = (Note("host", "a note"), Note("twice", "cat is on the MODEL, too"))
    own = TaskFidelity("a", 0.2, 0.9, 4)
    given = {"settings": {"alpha": 1e-4}, "fidelity": (own,)}
    report = MergeReport((layer("x", 2, a=0.1),), {"a": ("k",)}, notes, **given)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["unmatched"] == {"a": ["k"]}
    assert again["notes"][0] == {"kind": "host", "text": "a note"}
    assert again["warnings"] == ["cat is on the MODEL, too"] == report.alerts  # not a note alone
    assert str(report).count(", too") == 1 and "  a note" in str(report).splitlines()
    (entry,) = again["layers"]
    (task,) = entry["tasks"]
    assert (entry["path"], entry["rank"]) == ("x", 2)
    assert (task["task"], task["residual"], task["wears"], task["tokens"]) == ("a", 0.1, True, 8)
    (unseen,) = again["fidelity"]
    assert (unseen["task"], unseen["output_error"], unseen["strength"]) == ("a", 0.2, 0.9)


def test_joined_reports_keep_the_order_and_say_nothing_twice():
    same, one, other = (Note("method", text) for text in ("same", "text", "unet"))
    text = MergeReport((layer("te", 2, a=0.1),), notes=(same, one), method="ties")
    unet = MergeReport((layer("unet", 2, a=0.3),), notes=(same, other), method="ties")
    both = joined(text, unet)
    assert both.notes == (same, one, other) and both.method == "ties"
    assert both.residuals(wears=True) == {"a": [(0.1, "te"), (0.3, "unet")]}


def test_a_report_is_text_without_control_characters():
    """Names and keys are strangers'."""
    note = Note("left_out", "of \x1b]52;c;ZXZpbA==\x07\nWARNING: the merge fails")
    report = MergeReport([], {"a\x1b[2J": ["key\u202e"]}, [note])
    assert all(line.isprintable() for line in str(report).splitlines())
    assert "WARNING: the merge" not in [line[:18] for line in str(report).splitlines()]
    assert r"a\x1b[2J: 1 keys belong to no module of this model: key\u202e" in str(report)


def test_a_file_of_which_much_was_not_read_is_a_warning_and_no_detail():
    keys = ("lora_unet_q.alpha", "lora_unet_q.lora_up.weight")
    unmatched = {"a": keys, "b": ("stray",)}
    figures = tuple(TaskFidelity(name, 0.1, 0.9, 4) for name in "ab")
    layers = (layer("x", 2, a=0.1),)
    report = MergeReport(layers, unmatched, fidelity=figures, unread={"a": 0.46})
    verdict, other, warning, _, *details = str(report).splitlines()
    assert verdict.startswith("a: good, kept 90 %")
    assert verdict.endswith("; 46 % of its file not read")
    assert other.startswith("b: good, kept 90 %") and "not read" not in other
    assert warning.startswith("a: 46 % of its file was not read, since 2 keys belong to no module")
    assert warning in report.warnings and warning in report.alerts
    assert [line for line in details if "belong to" in line] == [
        "  b: 1 keys belong to no module of this model: stray"
    ]
    assert report.to_dict()["verdict"]["loras"][0]["unread"] == 0.46
