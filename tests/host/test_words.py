"""The nodes' words as a running ComfyUI tells them. `tests/nodes/test_words.py` checks that they
are all there.
"""

import json
import urllib.request
from pathlib import Path

import pytest
from waiting import HANGS

LOCALES = Path(__file__).parents[2] / "locales"


@pytest.fixture(scope="module")
def schemas(host):
    """Return what the host tells about our nodes, in the shape of a locale file."""
    found = {}
    for name, node in host.client.object_info().items():
        if not name.startswith("IterIS"):
            continue
        inputs = {
            key: spec
            for part in ("required", "optional")
            for key, spec in node["input"].get(part, {}).items()
        }
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        found[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {
                key: {"name": key, "tooltip": options["tooltip"]}
                for key, (_, options) in inputs.items()
            },
            "outputs": {
                str(i): {"name": key} | ({"tooltip": tooltip} if tooltip else {})
                for i, (key, tooltip) in enumerate(outputs)
            },
        }
    assert len(found) >= 10
    return found


def test_english_is_what_the_host_tells(schemas):
    english = json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert english == schemas


def test_the_host_serves_the_translations(host, schemas):
    languages = {folder.name for folder in LOCALES.iterdir()}
    assert languages == {"en", "zh", "ja"}
    with urllib.request.urlopen(f"http://{host.server.address}/i18n", timeout=HANGS) as response:
        served = json.load(response)
    assert {
        language: served[language]["nodeDefs"].keys() >= schemas.keys() for language in languages
    } == dict.fromkeys(languages, True)
