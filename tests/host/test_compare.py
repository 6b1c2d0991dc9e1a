"""The picture of Compare: each of its cells is what core's own nodes draw."""

import copy
import io
import urllib.parse
import urllib.request

import numpy as np
import pytest
from comfy_host import node
from PIL import Image
from waiting import HANGS

from demo.client import WorkflowFailed

SIDE = 64
STRIP = 24
GAP = 4
NEGATIVE = "blurry"


def defaults_of(host, kind: str):
    declared = host.client.object_info(kind)["input"]["required"]
    return {name: more["default"] for name, (_, more) in declared.items()}


def opened(host, image) -> Image.Image:
    address = f"http://{host.server.address}/view?{urllib.parse.urlencode(image)}"
    with urllib.request.urlopen(address, timeout=HANGS) as answer:
        return Image.open(io.BytesIO(answer.read()))


def picture(host, image) -> np.ndarray:
    return np.array(opened(host, image).convert("RGB")).astype(int)


def drawn_by_core(model, clip, first: int):
    text, negative, noise, sampler, decode, show = (str(first + i) for i in range(6))
    sampling = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "cfg": 6.0}
    sampling |= {"model": model, "positive": [text, 0], "negative": [negative, 0]}
    return show, {
        text: node("CLIPTextEncode", text="a (first:1.2) thing", clip=clip),
        negative: node("CLIPTextEncode", text=NEGATIVE, clip=clip),
        noise: node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        sampler: node("KSampler", **sampling, latent_image=[noise, 0], seed=7, steps=2),
        decode: node("VAEDecode", samples=[sampler, 0], vae=["1", 2]),
        show: node("PreviewImage", images=[decode, 0]),
    }


@pytest.fixture(scope="module")
def workflow(host):
    """A merge of two LoRAs, compared."""
    nodes = {"1": node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")}
    nodes |= host.load_lora("second.safetensors", "30")
    small = {"sample_runs": 1, "sampling_steps": 2, "resolution": SIDE, "negative_share": 0.0}
    small |= {"reproduce": "what the LoRA adds", "cfg": 6.0}  # Compare follows
    nodes["4"] = node("IterISSettings", **defaults_of(host, "IterISSettings") | small)
    rows = "<lora:first:0.8:0.6> | a photo of a first thing\n<lora:second> | a second thing"
    inputs = {"model": ["1", 0], "clip": ["1", 1], "loras": rows, "preset": "Fast"}
    inputs |= {"together": False, "size": "as is", "size_value": 0.0}
    nodes["5"] = node("IterISMerge", **inputs, settings=["4", 0])
    inputs = {
        "vae": ["1", 2],
        "merged": ["5", 3],
        "prompt": "a (first:1.2) thing\na thing",
    }
    inputs |= {"seed": 7, "steps": 2, "cfg": 0.0, "negative_prompt": NEGATIVE}
    nodes["40"] = node("IterISCompare", **inputs, width=SIDE, height=SIDE)
    nodes["41"] = node("PreviewImage", images=["40", 1])
    return nodes


@pytest.fixture(scope="module")
def compared(host, workflow):
    nodes = dict(workflow)
    first = node("LoraLoader", lora_name="first.safetensors", strength_model=0.8, strength_clip=0.6)
    nodes["50"] = {**first, "inputs": {**first["inputs"], "model": ["1", 0], "clip": ["1", 1]}}
    nodes["51"] = {**first, "inputs": {**first["inputs"], "model": ["30", 0], "clip": ["30", 1]}}
    by_core = {}
    ways = {"base": "1", "second": "30", "first": "50", "stacked": "51", "merged": "5"}
    for number, (way, source) in enumerate(ways.items()):
        by_core[way], more = drawn_by_core([source, 0], [source, 1], 100 + 10 * number)
        nodes |= more
    outputs = host.run(nodes)["outputs"]
    shown = {way: picture(host, outputs[show]["images"][0]) for way, show in by_core.items()}
    return outputs, shown


def cell(whole, row: int, column: int):
    top = 2 * STRIP + row * (2 * STRIP + SIDE + GAP)
    left = GAP + column * (SIDE + GAP)
    return whole[top : top + SIDE, left : left + SIDE]


def test_each_cell_is_what_cores_nodes_draw(host, compared):
    outputs, by_core = compared
    image = outputs["40"]["iteris"][0]["whole"]
    whole = picture(host, image)
    columns = ["base", "first", "second", "stacked", "merged"]
    said = 1  # line: how it was drawn
    height, width = 2 * (2 * STRIP + SIDE + GAP) + said * STRIP, len(columns) * (SIDE + GAP) + GAP
    assert whole.shape == (height, width, 3)
    for column, way in enumerate(columns):
        assert abs(cell(whole, 0, column) - by_core[way]).max() <= 2, way
        for other in set(columns) - {way}:  # and they are not alike
            assert abs(by_core[other] - by_core[way]).mean() > 2
    assert abs(cell(whole, 1, 0) - cell(whole, 0, 0)).mean() > 2  # another prompt


def test_every_picture_is_a_file_for_the_page(host, compared):
    """It has no workflow in it, which the whole comparison has, as what Preview Image shows."""
    outputs, by_core = compared
    rows = outputs["40"]["iteris"][0]["pictures"]
    assert [row["prompt"] for row in rows] == ["a (first:1.2) thing", "a thing"]
    names = ["base model", "first 0.8/0.6", "second", "stacked", "merged"]
    assert [row["names"] for row in rows] == [names, names]
    ways = ["base", "first", "second", "stacked", "merged"]
    for way, file in zip(ways, rows[0]["files"], strict=True):
        assert abs(picture(host, file) - by_core[way]).max() <= 2, way
    assert "prompt" in opened(host, outputs["40"]["iteris"][0]["whole"]).info
    assert "prompt" not in opened(host, rows[0]["files"][0]).info


def test_the_pictures_of_the_merge_are_an_output_of_their_own(host, compared):
    outputs, by_core = compared
    of_merge = [picture(host, image) for image in outputs["41"]["images"]]
    assert len(of_merge) == 2
    assert abs(of_merge[0] - by_core["merged"]).max() <= 2
    assert outputs["40"]["text"][0].splitlines() == [
        "a (first:1.2) thing",
        "a thing",
        "sd15, 64 x 64, 2 steps, cfg 6, euler simple, seed 7",
    ]


def test_each_lora_has_a_share_in_the_stack_and_the_merge(host, workflow, compared):
    """Of what its own picture has, where it has drawn the prompt alone."""
    rows = compared[0]["40"]["iteris"][0]["pictures"]
    for row in rows:
        *others, stacked, merged = row["shares"]
        assert others == [None] * 3
        for shares in (stacked, merged):
            assert shares.keys() == {"first", "second"}
            assert all(0 <= share <= 100 for share in shares.values())
    nodes = copy.deepcopy(workflow)
    nodes["40"]["inputs"].update(prompt="a (first:1.2) thing", stack_strength=0.0)
    weak = host.run(nodes)["outputs"]["40"]["iteris"][0]["pictures"][0]
    assert weak["names"][-2] == "stacked at 0"
    by_base, of_stack = (picture(host, weak["files"][place]) for place in (0, -2))
    assert abs(by_base - of_stack).max() <= 2, "a stack at 0 is the base model"


def test_cancel_ends_the_drawing(host, workflow, compared):
    """It is sent at the first step, and what was drawn before is drawn again afterwards."""
    nodes = copy.deepcopy(workflow)
    nodes["40"]["inputs"].update(seed=8, steps=50)
    told = []

    def cancel(event, data):
        if event == "iteris.stage" and data["stage"]["name"] == "Pictures":
            told.append(data["done"])
            host.client.interrupt()

    with pytest.raises(WorkflowFailed, match=r"(?i)interrupt"):
        host.run(nodes, cancel)
    assert told[0] == 1 and told[-1] < 50
    nodes["40"]["inputs"].update(seed=7, steps=2, prompt="a thing")
    # the merge's, as if another one
    nodes["60"] = node("ModelSamplingDiscrete", model=["1", 0], sampling="eps", zsnr=False)
    nodes["40"]["inputs"].update(model=["60", 0], clip=["1", 1])
    output = host.run(nodes)["outputs"]["40"]
    again = picture(host, output["iteris"][0]["whole"])
    before = picture(host, compared[0]["40"]["iteris"][0]["whole"])
    for column in range(5):
        assert abs(cell(again, 0, column) - cell(before, 1, column)).max() <= 2
