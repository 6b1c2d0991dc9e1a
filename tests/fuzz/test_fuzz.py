"""What a stranger gives to a reader is read, or refused with a typed error that names the file: in
little time, in little memory, and nothing else happens.

`python tests/fuzz --cases 20000` tries more.
"""

import json

import fuzz_readers
import pytest
from fuzz_files import mutated, seeds
from fuzz_readers import VALUES, findings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

CASES = (range(50), pytest.param(range(50, 300), marks=pytest.mark.slow))


@pytest.mark.parametrize("cases", CASES, ids=len)
def test_every_reader_keeps_the_rules(cases, tmp_path):
    found = [finding for case in cases for finding in findings(case, mutated(case), tmp_path)]
    assert found == []


def test_the_rules_are_looked_at(tmp_path, monkeypatch):
    """A reader that breaks them is found."""

    def slow(path):
        while True:
            pass

    def untyped(path):
        raise IndexError("no such place")

    def nameless(path):
        raise fuzz_readers.IterisError("something is wrong")

    def hungry(path):
        bytearray(fuzz_readers.BYTES + 2 * case.size + 10_000_000)

    case = mutated(0)
    readers = {"slow": slow, "untyped": untyped, "nameless": nameless, "hungry": hungry}
    monkeypatch.setattr(fuzz_readers, "SECONDS", 0.1)
    for kind in ("FOLDERS", "TEXTS", "VALUES", "OF_COMMANDS", "WRITTEN"):
        monkeypatch.setattr(fuzz_readers, kind, {})
    monkeypatch.setattr(fuzz_readers, "FILES", readers)
    found = {finding.reader: finding.what for finding in findings(0, case, tmp_path)}
    assert found["slow"] == "no end"
    assert found["untyped"] == "IndexError: no such place"
    assert found["nameless"].startswith("an error that does not name the file")
    assert "bytes of memory" in found["all"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.sampled_from(
            [
                "ss_tag_frequency",
                "trained_words",
                "modelspec.trigger_phrase",
                "modelspec.architecture",
                "lora_adapter_metadata",
                "iteris.recipe",
            ]
        ),
        JSON.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    )
)
def test_any_metadata_is_read_or_refused(tmp_path, fields):
    case = mutated(1)
    case.tensors = save(seeds()["kohya"], fields)
    assert list(findings(1, case, tmp_path)) == []


@settings(max_examples=100)
@given(value=JSON)
@pytest.mark.parametrize("reader", VALUES)
def test_any_value_is_a_stack_or_a_recipe_or_is_refused(reader, value):
    assert list(fuzz_readers.tried(1, reader, VALUES[reader], value, "")) == []
