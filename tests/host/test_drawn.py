"""The quality of a merge in the real host: the demo's own model draws both subjects with the merged
file, and does so more often than with the stack.
"""

import json

import pytest

from demo import drawn, gallery
from demo.recogniser import Recogniser
from demo.run import WEIGHTS, drawn_workflow, read_template
from demo.server import link

# the demo's own test sees the same in a few pictures
pytestmark = pytest.mark.nightly

SEEDS = (20_001, 20_002, 20_003)  # none of them was looked at before


@pytest.fixture(scope="module")
def counts(host):
    """Merge on the server, load the saved file with the stock loader, and count the pictures in
    which the recogniser sees both subjects.
    """
    weights = WEIGHTS
    drawn.write_checkpoint(host.base / "models" / "checkpoints" / "drawn.safetensors", weights)
    for name in drawn.LORAS:
        link(weights / name, host.loras / name)
    whole = drawn_workflow(read_template(), "drawn.safetensors", list(drawn.LORAS))
    merging = {key: whole[key] for key in ("1", "2", "4", "settings")}
    del merging["4"]["inputs"]["cover"]
    saved = host.run(merging)["outputs"]["4"]["text"][0]
    merged = host.loras / "from_the_demo.safetensors"
    link(
        next(path for path in host.base.rglob("*.safetensors") if saved.endswith(path.name)), merged
    )

    nodes = {key: whole[key] for key in whole if key == "1" or key.startswith("lora ")}
    stacked = max(key for key in nodes if key.startswith("lora "))
    nodes |= host.load_lora(merged.name)
    models = {"stack": ([stacked, 0], [stacked, 1]), "merge": (["10", 0], ["10", 1])}
    recogniser = Recogniser.read(weights / "recogniser.safetensors")
    found = dict.fromkeys(models, 0)
    for seed in SEEDS:
        drawing = gallery.drawing_nodes(
            models, ["1", 2], drawn.PROMPT, side=drawn.SIDE, cfg=drawn.CFG, seed=seed
        )
        outputs = host.run(nodes | drawing)["outputs"]
        for name in models:
            pictures = gallery.pictures_of(host.client, outputs[gallery.DRAW + name])
            seen = recogniser.sees_in(pictures)
            found[name] += sum(set(drawn.WANTED) <= labels for labels in seen)
    return found


def test_the_merged_file_draws_both_subjects_and_the_stack_does_not(counts):
    pictures = len(SEEDS) * gallery.PICTURES
    assert counts["merge"] >= pictures / 2, json.dumps(counts)
    assert counts["merge"] >= counts["stack"] + pictures / 4, json.dumps(counts)
