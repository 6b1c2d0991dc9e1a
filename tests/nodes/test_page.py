"""What ComfyUI's page, which reads HTML, makes of texts of strangers."""

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from iteris_pack.nodes.page import as_html


@given(st.text() | st.text(alphabet="<>&'\"[]|_LNK0;#a:/.w"))
def test_a_text_looks_as_it_is_and_holds_nothing_that_the_page_would_act_on(text):
    shown = as_html(text)
    assert html.unescape(shown) == text
    assert not set(shown) & set("<>\"'[]_:.")
    assert set(re.findall(r"&(?!#\d+;)", shown)) == set()


def test_letters_that_are_none_and_endless_texts_reach_the_page():
    assert as_html("a\udc80b") == "a?b"
    assert len(as_html("x" * 10**7)) < 10**5
