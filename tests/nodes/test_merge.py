"""What the merge node says about the model that it is given."""

from iteris_pack.iteris_core.devices import Room
from iteris_pack.nodes.merge import too_small


def test_a_device_that_is_too_small_is_told_in_the_report_and_the_log(caplog):
    assert too_small(Room(8, 0, 0.0)) == [] and not caplog.records
    [note] = too_small(Room(1, 0, 0.0, missing=1.26e9))
    assert note.kind == "memory" and "about 1.3 GB more than is free" in note.text
    assert "Lower resolution" in note.text
    assert [record.message for record in caplog.records] == [note.text]
