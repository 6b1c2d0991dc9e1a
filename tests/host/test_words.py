"""A running ComfyUI serves the nodes' words in every language."""

import json
import urllib.request
from pathlib import Path

from waiting import HANGS

LOCALES = Path(__file__).parents[2] / "locales"


def test_the_host_serves_the_translations(host):
    ours = {name for name in host.client.object_info() if name.startswith("IterIS")}
    assert len(ours) >= 10
    with urllib.request.urlopen(f"http://{host.server.address}/i18n", timeout=HANGS) as response:
        served = json.load(response)
    languages = {folder.name for folder in LOCALES.iterdir()}
    assert languages == {"en", "zh", "ja"}
    for language in languages:
        assert served[language]["nodeDefs"].keys() >= ours, language
