"""What a stranger gives to a reader is read, or refused with a typed error that names the file: in
little time, in little memory, and nothing else happens.

`ITERIS_CASES=20000 pytest tests/fuzz/test_fuzz.py` tries more, some 50 ms each.
"""

import json
import os

import fuzz_readers
import pytest
from fuzz_files import METADATA, mutated, seeds
from fuzz_readers import VALUES, findings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

MANY = int(os.environ.get("ITERIS_CASES", "300"))
CASES = (range(50), pytest.param(range(50, MANY), marks=pytest.mark.slow))


@pytest.mark.parametrize("cases", CASES, ids=len)
def test_every_reader_keeps_the_rules(cases, tmp_path):
    found = [finding for case in cases for finding in findings(case, mutated(case), tmp_path)]
    assert found == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.sampled_from([*METADATA]),
        JSON.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    )
)
def test_any_metadata_is_read_or_refused(tmp_path, fields):
    case = mutated(1)
    case.tensors = save(seeds()["kohya"], fields)
    assert list(findings(1, case, tmp_path)) == []


@settings(max_examples=100)
@given(value=JSON | st.text("INOUTMDBASE0129.,:;=- \n<>|", max_size=40))
@pytest.mark.parametrize("reader", VALUES)
def test_any_value_is_a_stack_or_a_recipe_or_is_refused(reader, value):
    assert list(fuzz_readers.tried(1, reader, VALUES[reader], value, "")) == []
