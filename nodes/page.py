"""Texts for ComfyUI's page, which reads what a node tells it during a run as HTML."""

from __future__ import annotations

# HTML's own characters, and those that the page makes links of: [[label|address]], which it keeps
# as __LNK0__ meanwhile, http:// and www. Entities look right in all frontends; the newer ones
# sanitise HTML, too.
_ENTITIES = str.maketrans({character: f"&#{ord(character)};" for character in "&<>\"'[]_:."})
_MOST_CHARACTERS = 20_000  # of a text on a node; all of a real merge's captions are a tenth of it


def as_html(text: str) -> str:
    """Return HTML that shows a text as it is: file names, metadata and recipes come from strangers.
    The end of a very long text is left out.

    >>> as_html("<img src=x> & more")
    '&#60;img src=x&#62; &#38; more'
    """
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
    # names of files may hold bytes that are not characters
    return shown.encode("utf-8", "replace").decode("utf-8").translate(_ENTITIES)
