"""What a stranger gives to a reader is read, or refused by name; ITERIS_CASES=20000 tries more."""

import os

import pytest
from fuzz_files import JSON, cases
from fuzz_readers import read_or_refused, try_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iteris_core.files.block_weights import layer_weights

MANY = settings(
    max_examples=int(os.environ.get("ITERIS_CASES", "150")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.slow
@MANY
@given(case=cases())
def test_every_reader_of_files_keeps_the_rules(tmp_path, case):
    try_all(case, tmp_path)


@MANY
@given(value=JSON | st.text("INOUTMDBASE0129.,:;=- \n<>|", max_size=40))
def test_any_text_is_a_spelling_of_blocks_or_is_refused(value):
    read_or_refused(lambda x: layer_weights("a", str(x), [str(x)]), value, "")
