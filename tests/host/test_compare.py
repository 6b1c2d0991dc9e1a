"""The picture of Compare: each of its cells is what core's own nodes draw."""

import copy
import io
import shutil
import urllib.parse
import urllib.request

import numpy as np
import pytest
import torch
from comfy_host import node, write_few
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from waiting import HANGS

from demo.client import WorkflowFailed

SIDE = 64
STRIP = 24
GAP = 4
UNKNOWN = "embedding:none_of_this_name"
NEGATIVE = f"blurry, {UNKNOWN}"


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
    """A merge of a file's LoRA and of one that was taken off the model, compared."""
    nodes = {"1": node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")}
    nodes |= host.load_lora("second.safetensors", "30")
    inputs = {"model": ["30", 0], "clip": ["30", 1], "prompts": "second: a second thing"}
    nodes["31"] = node("IterISModelLoras", **inputs)
    small = {"sample_runs": 1, "sampling_steps": 2, "resolution": SIDE, "negative_share": 0.0}
    small |= {"reproduce": "what the LoRA adds", "cfg": 6.0}  # Compare follows
    nodes["4"] = node("IterISSettings", **defaults_of(host, "IterISSettings") | small)
    base = {"model": ["31", 0], "clip": ["31", 1]}
    inputs = {"loras": "<lora:first:0.8:0.6> | a photo of a first thing", "preset": "Fast"}
    inputs |= {"together": False, "size": "as is", "size_value": 0.0}
    nodes["5"] = node("IterISMerge", **base, **inputs, more_loras=["31", 2], settings=["4", 0])
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


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def cell(whole, row: int, column: int):
    top = 2 * STRIP + row * (2 * STRIP + SIDE + GAP)
    left = GAP + column * (SIDE + GAP)
    return whole[top : top + SIDE, left : left + SIDE]


def test_each_cell_is_what_cores_nodes_draw(host, compared):
    outputs, by_core = compared
    [image] = outputs["40"]["iteris_pictures"]
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
    rows = outputs["40"]["iteris_tiles"]
    assert [row["prompt"] for row in rows] == ["a (first:1.2) thing", "a thing"]
    names = ["base model", "first 0.8/0.6", "second", "stacked", "merged"]
    assert [row["names"] for row in rows] == [names, names]
    assert [row["spoilt"] for row in rows] == [0, 0]  # the base model is the first in each
    ways = ["base", "first", "second", "stacked", "merged"]
    for way, file in zip(ways, rows[0]["pictures"], strict=True):
        assert abs(picture(host, file) - by_core[way]).max() <= 2, way
    assert "prompt" in opened(host, outputs["40"]["iteris_pictures"][0]).info
    assert "prompt" not in opened(host, rows[0]["pictures"][0]).info


def test_the_pictures_of_the_merge_are_an_output_of_their_own(host, compared):
    outputs, by_core = compared
    of_merge = [picture(host, image) for image in outputs["41"]["images"]]
    assert len(of_merge) == 2
    assert abs(of_merge[0] - by_core["merged"]).max() <= 2
    assert outputs["40"]["text"][0].splitlines() == [
        "a (first:1.2) thing",
        "a thing",
        f"left out of the prompts: {UNKNOWN}; there is no such file in ComfyUI's embeddings "
        "folder, or it is for another text encoder",
        "sd15, 64 x 64, 2 steps, cfg 6, euler simple, seed 7",
    ]


def test_a_comparison_says_of_which_merge_it_is_and_what_others_have_in_common_with_it(
    host, workflow, compared
):
    def made(**inputs):
        nodes = copy.deepcopy(workflow)
        for name, value in inputs.items():
            nodes["40" if name in nodes["40"]["inputs"] else "5"]["inputs"][name] = value
        outputs = host.run(nodes)["outputs"]
        [of_pictures] = outputs["40"]["iteris_made"]
        drawn = of_pictures.pop("drawn")
        assert outputs["5"]["iteris_made"] == [of_pictures]
        return of_pictures, drawn

    (of_fast, drawn), (of_preview, again) = made(), made(preset="Preview")
    assert of_fast["settings"]["resolution"] == "64"
    without = {"at": 0, "settings": {}}
    assert of_fast | without == {"preset": "Fast", "strengths": [0.8, 1.0], **without}
    assert of_preview["preset"] == "Preview"
    assert of_fast["at"] < of_preview["at"]
    assert drawn == again
    assert "['first', 'second']" in drawn, "a merge of others has nothing to do with it"
    assert made(preset="Preview", prompt="a thing") == (of_preview, drawn), "each row has its own"
    told, otherwise = made(preset="Preview", negative_prompt="dark")
    assert (told, otherwise == drawn) == (of_preview, False)


def test_only_a_merge_with_together_marks_the_prompt_that_names_several_loras(host, workflow):
    for together in (False, True):
        nodes = copy.deepcopy(workflow)
        nodes["30"]["inputs"]["lora_name"] = "middle_2.safetensors"  # of few layers
        nodes["31"]["inputs"]["prompts"] = "middle_2: a second thing"
        nodes["4"]["inputs"]["reproduce"] = "whole output"
        nodes["5"]["inputs"]["together"] = together
        nodes["5"]["inputs"]["loras"] = "<lora:middle_1> | a first thing"
        nodes["40"]["inputs"]["prompt"] = "a thing\na first thing and a second thing"
        rows = host.run(nodes)["outputs"]["40"]["iteris_tiles"]
        assert [row["together"] for row in rows] == [False, together]


def test_a_comparison_names_the_loras_that_the_base_model_has(host, workflow, compared):
    nodes = copy.deepcopy(workflow)
    nodes["40"]["inputs"].update(model=["30", 0], clip=["30", 1], prompt="a thing")
    *_, drawn = host.run(nodes)["outputs"]["40"]["text"][0].splitlines()
    assert drawn.startswith("sd15 + second, 64 x 64, ")


def test_pictures_are_told_as_soon_as_those_of_their_way_are_drawn(host, workflow, compared):
    """The base model's, each LoRA's, the stack's, and the merge's; they are the comparison's files."""
    nodes = copy.deepcopy(workflow)
    nodes["40"]["inputs"].update(seed=11)
    told, steps = [], []

    def note(event, data):
        if event == "iteris.picture":
            told.append(data)
            steps.append(done[-1])
        if event == "iteris.stage" and data["stage"]["name"] == "Pictures":
            done.append(data["done"])

    done = []
    tiles = host.run(nodes, note)["outputs"]["40"]["iteris_tiles"]
    assert steps == sorted(steps) and len(set(steps)) == 5 and steps[-1] == 20
    rows = [{"prompt": tile["prompt"], "names": tile["names"]} for tile in tiles]
    assert all(data["node"] == "40" and data["rows"] == rows for data in told)
    files = [tiles[data["row"]]["pictures"][data["place"]] for data in told]
    assert [data["picture"] for data in told] == files
    assert len({file["filename"] for file in files}) == 10


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
    nodes["60"] = node("ModelSamplingDiscrete", model=["31", 0], sampling="eps", zsnr=False)
    nodes["40"]["inputs"].update(model=["60", 0], clip=["31", 1])
    output = host.run(nodes)["outputs"]["40"]
    assert output["iteris_drawn"][0]["kept"] == 0
    again = picture(host, output["iteris_pictures"][0])
    before = picture(host, compared[0]["40"]["iteris_pictures"][0])
    for column in range(5):
        assert abs(cell(again, 0, column) - cell(before, 1, column)).max() <= 2


def test_a_file_is_saved_before_its_cover_is_drawn(host, workflow):
    """Five nodes save, since ComfyUI has no order for them and Compare; the last one overwrites."""
    nodes = copy.deepcopy(workflow)
    nodes["40"]["inputs"].update(seed=9, steps=50, prompt="a thing")
    nodes["5"]["inputs"]["size"] = "rank"
    nodes["5"]["inputs"]["size_value"] = 3.0
    names = [f"early_{number}" for number in range(5)]
    for number, name in enumerate(names):
        inputs = {"merged": ["5", 3], "cover": ["40", 1], "file_name": name}
        nodes[f"6{number}"] = node("IterISSave", **inputs, overwrite=number == 4)
    folder = host.output / "loras"
    there, told_early = [], {}

    def cancel(event, data):
        if event == "iteris.saved":
            told_early[data["node"]] = [(file["name"], file["merge"]) for file in data["files"]]
        if event == "iteris.stage" and data["stage"]["name"] == "Pictures":
            there.append(sorted(path.name for path in folder.glob("early_*")))
            host.client.interrupt()

    in_the_way = folder / "early_4.safetensors"
    in_the_way.mkdir(parents=True)
    with pytest.raises(WorkflowFailed, match="is a folder; choose another name"):
        host.run(nodes, cancel)
    assert there == [], "drawn, though a file cannot be saved"
    in_the_way.rmdir()
    with pytest.raises(WorkflowFailed, match=r"(?i)interrupt"):
        host.run(nodes, cancel)
    files = [f"{name}.safetensors" for name in names]
    assert there[0] == files
    assert told_early == {f"6{number}": [(file, "5")] for number, file in enumerate(files)}
    tensors = [load_file(folder / file) for file in files]
    assert not any("modelspec.thumbnail" in metadata_of(folder / file) for file in files)
    nodes["40"]["inputs"]["steps"] = 1
    told = []
    outputs = host.run(nodes, lambda event, data: told.append((event, data.get("node"))))["outputs"]
    assert "5" not in {where for event, where in told if event == "iteris.stage"}, "merged again"
    previews = [f"{name}.preview.png" for name in names]
    assert sorted(path.name for path in folder.glob("early_*")) == sorted(files + previews)
    for number, (file, before) in enumerate(zip(files, tensors, strict=True)):
        path, read, *_ = outputs[f"6{number}"]["text"]
        assert path == str(folder / file) and read.startswith("read back: ")
        assert metadata_of(path)["modelspec.thumbnail"].startswith("data:image/jpeg")
        after = load_file(path)
        assert set(after) == set(before) and all((after[key] == before[key]).all() for key in after)


@pytest.fixture
def kept_in(host):
    """Return what of a comparison is kept, and what is drawn: row and place of each picture."""

    def run(nodes):
        told, drawn = [], []

        def note(event, data):
            if event == "iteris.picture":
                told.append((data["row"], data["place"]))
            if event == "iteris.stage" and data["stage"]["name"] == "Pictures":
                drawn.append((len(told), data["total"]))

        output = host.run(nodes, note)["outputs"]["40"]
        before, steps = drawn[0] if drawn else (len(told), 0)
        [cost] = output["iteris_drawn"]
        assert (cost["kept"], cost["pictures"]) == (before, len(told) - before)
        assert steps == cost["pictures"] * nodes["40"]["inputs"]["steps"], "progress is of these"
        pictures = [file for tile in output["iteris_tiles"] for file in tile["pictures"]]
        return sorted(told[:before]), sorted(told[before:]), pictures

    return run


@pytest.fixture
def of_files(host):
    """A preview of two files' LoRAs, compared; and another file of the checkpoint."""
    checkpoints = host.base / "models" / "checkpoints"
    again = checkpoints / "sd15_again.safetensors"
    if not again.exists():
        again.hardlink_to(checkpoints / "sd15.safetensors")
    shutil.copy(host.loras / "second.safetensors", host.loras / "changing.safetensors")
    nodes = {"1": node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "preset": "Preview"}
    nodes["5"] = node("IterISMerge", **inputs, loras="<lora:first:0.8>\n<lora:changing:1>")
    inputs = {"vae": ["1", 2], "merged": ["5", 3], "prompt": "a thing", "seed": 21, "steps": 1}
    nodes["40"] = node("IterISCompare", **inputs, cfg=1.0, width=SIDE, height=SIDE)
    return nodes


BASE, FIRST, CHANGING, STACKED, MERGED = ((0, place) for place in range(5))
ALL = [BASE, FIRST, CHANGING, STACKED, MERGED]


def test_a_comparison_draws_only_what_has_changed(host, of_files, kept_in):
    """And the pictures that are kept are, to the bit, those that are drawn."""

    def change(number, **inputs):
        of_files[number]["inputs"] |= inputs

    assert kept_in(of_files)[:2] == ([], ALL)
    change("40", caption="of files")
    assert kept_in(of_files)[:2] == (ALL, [])
    change("40", prompt="a thing\nanother thing")
    assert kept_in(of_files)[:2] == (ALL, [(1, place) for place in range(5)])
    change("40", prompt="a thing")
    change("5", size="rank", size_value=2.0)
    assert kept_in(of_files)[:2] == (ALL[:4], [MERGED])
    change("5", loras="<lora:first:0.8>\n<lora:changing:1:0.5>")
    assert kept_in(of_files)[:2] == ([BASE, FIRST], [CHANGING, STACKED, MERGED])
    write_few(host.loras / "changing.safetensors", 7)
    assert kept_in(of_files)[:2] == ([BASE, FIRST], [CHANGING, STACKED, MERGED])
    change("5", loras="<lora:first:0.8>\n<lora:changing:1:0.5> blocks=MID:0.5")
    kept, drawn, pictures = kept_in(of_files)
    assert (kept, drawn) == ([BASE, FIRST], [CHANGING, STACKED, MERGED])
    change("40", caption="")
    kept, _, again = kept_in(of_files)
    assert kept == ALL
    change("1", ckpt_name="sd15_again.safetensors")
    kept, _, fresh = kept_in(of_files)
    assert kept == []
    for before, kept_now, drawn_now in zip(pictures, again, fresh, strict=True):
        seen = [picture(host, file) for file in (before, kept_now, drawn_now)]
        assert (seen[0] == seen[1]).all() and (seen[0] == seen[2]).all()


def test_what_a_stopped_run_has_drawn_is_kept(host, of_files, kept_in):
    of_files["40"]["inputs"] |= {"seed": 31, "steps": 20}
    told = []

    def stop(event, data):
        if event == "iteris.picture":
            told.append((data["row"], data["place"]))
            host.client.interrupt()

    with pytest.raises(WorkflowFailed, match=r"(?i)interrupt"):
        host.run(of_files, stop)
    assert 0 < len(told) < len(ALL)
    assert kept_in(of_files)[:2] == (told, ALL[len(told) :])


def test_all_is_drawn_where_it_is_drawn_with_something_else(host, of_files, kept_in):
    of_files["2"] = node("CheckpointLoaderSimple", ckpt_name="sd15_again.safetensors")
    of_files |= host.load_lora("middle_1.safetensors", "3")
    of_files["4"] = node("FreeU", model=["1", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    learned = host.base / "models" / "embeddings" / "learned.safetensors"
    learned.parent.mkdir(exist_ok=True)
    save_file({"emb_params": torch.zeros(1, 768)}, learned)
    of_files["40"]["inputs"] |= {"prompt": "a thing embedding:learned", "seed": 22}
    kept_in(of_files)
    of_files["40"]["inputs"]["caption"] = "again"
    assert kept_in(of_files)[0] == ALL
    save_file({"emb_params": torch.ones(1, 768)}, learned)
    for number, inputs in (
        ("40", {"caption": "its learned token has changed"}),
        ("40", {"seed": 23}),
        ("40", {"steps": 2}),
        ("40", {"negative_prompt": "blurry"}),
        ("40", {"prompt": "a thin"}),
        ("40", {"vae": ["2", 2]}),
        ("40", {"model": ["3", 0], "clip": ["1", 1]}),
        ("40", {"model": ["1", 0], "clip": ["3", 1]}),
        ("40", {"model": ["4", 0], "clip": ["1", 1]}),
        ("5", {"model": ["3", 0], "clip": ["3", 1]}),
    ):
        nodes = copy.deepcopy(of_files)
        nodes[number]["inputs"] |= inputs
        assert kept_in(nodes)[0] == [], inputs
