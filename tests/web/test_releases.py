"""A workflow that a released version has saved opens in the frontend, and posts what it posted then."""

import json
from pathlib import Path

import pytest

RELEASES = Path(__file__).parents[1] / "data" / "releases"
GONE = {"try_several", "correct_strength"}  # 0.1.0 had them


@pytest.mark.parametrize("folder", sorted(RELEASES.iterdir()), ids=lambda folder: folder.name)
def test_a_saved_workflow_opens_as_it_was(frontend, folder):
    posted = json.loads((folder / "workflow_api.json").read_text(encoding="utf-8"))
    frontend.load(json.loads((folder / "workflow.json").read_text(encoding="utf-8")), "released")
    prompt = frontend.prompt()
    assert prompt.keys() == posted.keys()
    for key, node in posted.items():
        inputs = prompt[key]["inputs"]
        assert prompt[key]["class_type"] == node["class_type"]
        then = {name: value for name, value in node["inputs"].items() if name not in GONE}
        assert {name: inputs.get(name) for name in then} == then, key
    assert frontend.errors == []
