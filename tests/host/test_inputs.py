"""What LoRAs can come from, in a real ComfyUI."""

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from comfy_host import node
from safetensors.torch import load_file, save_file
from waiting import HANGS


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
    told |= {"base": "SD1.5 (sd_v1)", "family": "SD1.5"}
    told |= {
        "kind": "",
        "merged_from": [],
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
    [text] = outputs["1"]["text"]
    told, *prompts = text.split("\n  ")
    assert told == f"{name} at 1 / 0.5, its trigger words from the file ({source}):"
    assert prompts == ["a photo of a sks cat", "a sks cat", "a sks cat, outdoors"]


def test_a_stack_of_another_pack_is_merged(host, files):
    """As loaders make it: nested lists, and what a prompt says. Prompts come from the files."""
    nodes = host.merge()
    nodes["5"]["inputs"] |= {"loras": "", "preset": "Preview"}
    nodes["5"]["inputs"].pop("more_loras", None)
    first = host.merge("middle_1.safetensors", "middle_2.safetensors") | host.save("for_stack")
    first["5"]["inputs"]["preset"] = "Preview"
    first["15"] = nodes["5"] | {"inputs": nodes["5"]["inputs"] | {"lora_stack": ["6", 1]}}
    outputs = host.run(first)["outputs"]
    [row] = outputs["15"]["iteris"][0]["of"]["rows"]
    assert row == {"name": "for_stack", "strength": 1.0}


def test_a_lora_model_is_merged_like_a_file(host, files):
    nodes = host.merge("middle_1.safetensors", "middle_2.safetensors")
    nodes["5"]["inputs"]["preset"] = "Preview"
    inputs = {"lora_name": "silent.safetensors", "strength_model": 0.5, "strength_clip": 0.5}
    inputs |= {"prompts": "a caption", "priority": 1.0, "lora_model": ["5", 2]}
    nodes["8"] = node("IterISLora", **inputs)
    again = nodes["5"]["inputs"] | {"loras": "<lora:middle_1>", "more_loras": ["8", 0]}
    nodes["9"] = node("IterISMerge", **again)
    rows = host.run(nodes)["outputs"]["9"]["iteris"][0]["of"]["rows"]
    assert rows == [
        {"name": "middle_1", "strength": 1.0},
        {"name": "trained LoRA 1", "strength": 0.5},
    ]
