"""What LoRAs can come from, in a real ComfyUI."""

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
import torch
from comfy_host import node
from safetensors.torch import load_file, save_file
from waiting import HANGS

from demo.client import WorkflowFailed, WorkflowRejected


def show(source, output=0, node_id="90"):
    return {node_id: node("PreviewAny", source=[source, output])}


def asked(host, route: str, name: str):
    url = f"http://{host.server.address}/iteris/{route}?name={urllib.parse.quote(name)}"
    return urllib.request.urlopen(url, timeout=HANGS)


def ask(host, name: str):
    with asked(host, "lora", name) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def files(host):
    """Three files: with a trigger phrase, with tags, with neither."""
    tensors = load_file(host.loras / "first.safetensors")
    tags = json.dumps({"10_ohwx": {"ohwx": 9, "outdoors": 4}})
    (host.loras / "named").mkdir()
    said = {"named/phrase": {"modelspec.trigger_phrase": "a sks cat"}, "silent": None}
    said["tags"] = {"ss_tag_frequency": tags, "ss_base_model_version": "sd_v1"}
    for name, metadata in said.items():
        save_file(tensors, host.loras / f"{name}.safetensors", metadata)


STRANGE = ("../checkpoints/sd15.safetensors", "/etc/passwd", "gone.safetensors", "")


def test_the_browser_is_told_of_files_in_the_lists_alone(host, files):
    """Trigger words, prompts, rank and base of a LoRA; whose LoRAs fit a model; a picture."""
    told = {"name": "tags.safetensors", "trigger_words": ["ohwx", "outdoors"], "rank": 8}
    told |= {"base": "SD1.5 (sd_v1)", "family": "SD1.5", "blocks": ["IN", "MID", "OUT"]}
    told |= {
        "kind": "",
        "are_tags": True,
        "merged_from": [],
        "merged_words": [],
        "is_preview": False,
        "thumbnail": False,
        "hash": "",
        "error": None,
    }
    of_style = ["a landscape, ohwx", "ohwx", "a portrait of a person, ohwx", "ohwx, outdoors"]
    prompts = {"subject": ["a photo of ohwx", "ohwx", "ohwx, outdoors"], "style": of_style}
    assert ask(host, "tags.safetensors") == told | {"prompts": prompts}
    (host.loras / "code.pt").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    assert "pickle" in ask(host, "code.pt")["error"]
    with asked(host, "model", "sd15.safetensors") as response:
        assert json.load(response)["fits"] == ["SD1.5"]
    with asked(host, "model", "../loras/silent.safetensors") as response:
        assert "is not in ComfyUI's lists" in json.load(response)["error"]
    content = b"\x89PNG\r\n\x1a\n and more"
    (host.loras / "named" / "phrase.preview.png").write_bytes(content)
    assert ask(host, "named/phrase.safetensors")["thumbnail"]
    with asked(host, "thumbnail", "named/phrase.safetensors") as response:
        assert response.headers["Content-Type"] == "image/png"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.read() == content
    for name in STRANGE:
        assert "is not in ComfyUI's list of LoRAs" in ask(host, name)["error"]
        with pytest.raises(urllib.error.HTTPError) as error:
            asked(host, "thumbnail", name)
        assert error.value.code == 404


def test_prompts_come_from_the_file_and_are_shown(host, files):
    name, source = "named/phrase.safetensors", "modelspec.trigger_phrase"
    inputs = {"lora_name": name, "strength_model": 1.0, "strength_clip": 0.5}
    lora = node("IterISLora", **inputs, priority=1.0, prompts="")
    outputs = host.run({"1": lora, **show("1")})["outputs"]
    prompts = ["a photo of a sks cat", "a sks cat", "a sks cat, outdoors"]
    told = {"name": name, "source": source, "strengths": [1.0, 0.5], "prompts": prompts}
    assert outputs["1"]["iteris_loras"] == [told]
    [text] = outputs["1"]["text"]
    assert text.startswith(f"{name} at 1 / 0.5, its trigger words from the file ({source})")


def loaders(host, first, second):
    nodes = {"1": host.merge()["1"], **host.load_lora(first, "10"), **host.load_lora(second, "11")}
    nodes["10"]["inputs"].update(strength_model=0.7, strength_clip=0.4)
    nodes["11"]["inputs"].update(model=["10", 0], clip=["10", 1])
    inputs = {"model": ["11", 0], "clip": ["11", 1], "prompts": ""}
    return nodes | {"12": node("IterISModelLoras", **inputs)}


def test_the_plain_loader_draws_what_stock_loaders_draw(host, files):
    nodes = loaders(host, "named/phrase.safetensors", "second.safetensors")
    del nodes["12"]
    host.run({**nodes, **host.sample("stock", ["11", 0], ["11", 1])})
    text = "<lora:phrase:0.7:0.4>\n# <lora:gone>\n<lora:tags:0>\n<lora:second:1>"
    inputs = {"model": ["1", 0], "clip": ["1", 1], "loras": text}
    nodes = {"1": nodes["1"], "5": node("IterISLoad", **inputs)}
    outputs = host.run(
        {**nodes, **host.sample("loaded", ["5", 0], ["5", 1]), **show("5", 2), **show("5", 3, "91")}
    )["outputs"]
    assert torch.equal(host.latent("loaded"), host.latent("stock"))
    assert outputs["91"]["text"] == ["a sks cat, demo2"]
    stack = [["named/phrase.safetensors", 0.7, 0.4], ["second.safetensors", 1.0, 1.0]]
    assert json.loads(outputs["90"]["text"][0]) == stack
    nodes["5"]["inputs"]["loras"] = "<lora:phrase>\n<lora:phrise>"
    with pytest.raises(WorkflowRejected, match="Row 2: 'phrise' is in none of"):
        host.run({**nodes, **host.sample("loaded", ["5", 0], ["5", 1])})


def test_loras_on_a_model_are_taken_off_it(host, files):
    nodes = loaders(host, "tags.safetensors", "second.safetensors")
    outputs = host.run({**nodes, **show("12", 2), **host.sample("bare", ["12", 0], ["12", 1])})[
        "outputs"
    ]
    host.run({"1": nodes["1"], **host.sample("base", ["1", 0], ["1", 1])})
    found = outputs["12"]["iteris_loras"]
    assert [(lora["name"], lora["strengths"]) for lora in found] == [
        ("tags.safetensors", [0.7, 0.4]),
        ("second.safetensors", [1.0, 1.0]),
    ]
    assert found[0]["prompts"][0] == "a photo of ohwx"
    assert torch.equal(host.latent("bare"), host.latent("base"))
    nodes["12"]["inputs"].update(model=["1", 0], clip=["1", 1])
    with pytest.raises(WorkflowFailed, match="MODEL and CLIP carry no LoRA"):
        host.run({**nodes, **show("12", 2)})
