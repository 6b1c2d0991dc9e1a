"""Many merges on one server. `tests/support/endurance.py` makes more of them."""

import endurance
import pytest

pytestmark = pytest.mark.nightly

# So many that a leak of 10 MB a merge makes 70 MB: from the fourth to the eleventh.
MERGES = 12


@pytest.fixture(scope="module")
def first(host):
    endurance.write_loras(host)
    return endurance.result_of(host)


def test_merges_in_a_row_take_no_more_memory(host, first):
    row = endurance.in_a_row(host, MERGES)
    assert row.growth < endurance.MOST_GROWTH_MB, row.memory


def test_a_queue_of_which_half_is_cancelled_leaves_nothing_and_changes_nothing(host, first):
    assert endurance.queued(host, 4) == endurance.Queued(2, 1, 1, ())
    assert endurance.differences(endurance.result_of(host), first) == []
