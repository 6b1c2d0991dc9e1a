"""Run a workflow of this folder on a ComfyUI that is already running, and print what it shows.

python run.py merge_two_loras.json --checkpoint sd15.safetensors \\
    --lora "<lora:sks_dog:0.8> subject" --lora ink_wash --prompt "sks dog in a garden"

It needs nothing but Python. Without options the workflow runs as its file says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Nodes = dict[str, Any]  # a workflow: id -> class_type and inputs
SIDES = ("width", "height")  # of pictures
AUTO = {"IterISCompare": 0}  # a side that a file need not have
MOST_CHARACTERS = 400  # of a server's reason; it may be the list of all files


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    nodes = read(options.workflow)
    if options.checkpoint is not None:
        set_checkpoint(nodes, options.checkpoint)
    if options.lora:
        set_loras(nodes, options.lora)
    if options.prompt is not None:
        set_prompt(nodes, options.prompt)
    for side in SIDES:
        if (pixels := getattr(options, side)) is not None:
            set_side(nodes, side, pixels)
    run(nodes, options.server)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workflow", type=Path, help="a .json file of this folder")
    parser.add_argument("--checkpoint", metavar="NAME", help="file of the base model")
    parser.add_argument(
        "--lora",
        metavar="ROW",
        action="append",
        help="a LoRA to merge: NAME or NAME:STRENGTH of its file, or a row as the merge node takes "
        'it, such as "<lora:sks_dog:0.8> subject | a photo of sks dog"; once for each LoRA',
    )
    parser.add_argument("--prompt", metavar="TEXT", help="prompt of the pictures")
    for side in SIDES:
        parser.add_argument(
            f"--{side}", metavar="PIXELS", type=int, help=f"{side} of the pictures; SD1.5: 512"
        )
    parser.add_argument(
        "--server", default="127.0.0.1:8188", help="where ComfyUI runs (default %(default)s)"
    )
    return parser.parse_args(arguments)


def read(workflow: Path) -> Nodes:
    try:
        nodes = json.loads(workflow.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{workflow}: cannot be read: {error}")
    if not isinstance(nodes, dict) or not all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        for node in nodes.values()
    ):
        sys.exit(
            f"{workflow}: is not a workflow in the API's format; ComfyUI's Export (API) makes it"
        )
    return nodes


def set_checkpoint(nodes: Nodes, name: str) -> None:
    for node in wanted(nodes, ("CheckpointLoaderSimple",), "--checkpoint"):
        node["inputs"]["ckpt_name"] = name


def set_loras(nodes: Nodes, rows: Sequence[str]) -> None:
    """Replace the rows of the merge or loader. What else is connected to it stays."""
    text = "\n".join(row if row.lstrip().startswith("<") else f"<lora:{row}>" for row in rows)
    for node in wanted(nodes, ("IterISMerge",), "--lora"):
        if not isinstance(node["inputs"].get("loras"), str):
            sys.exit(
                f"--lora: {node['class_type']} of this workflow has no text in loras, so there is "
                "nothing to replace; its LoRAs come from other nodes. Write their files into those"
            )
        node["inputs"]["loras"] = text


def set_prompt(nodes: Nodes, prompt: str) -> None:
    """Replace the prompt of every Compare, and the text of every node from which a sampler has its
    positive prompt.
    """
    compares = [node for node in nodes.values() if node["class_type"] == "IterISCompare"]
    for node in compares:
        node["inputs"]["prompt"] = prompt
    found = [
        node
        for sampler in nodes.values()
        for node in texts_before(nodes, sampler["inputs"].get("positive"))
    ]
    if not found and not compares:
        sys.exit(
            "--prompt: there is no IterISCompare, and no node CLIPTextEncode leads to the positive "
            "prompt of a sampler, so this workflow draws no picture"
        )
    for node in found:
        node["inputs"]["text"] = prompt


def set_side(nodes: Nodes, side: str, pixels: int) -> None:
    """Replace a side of the pictures that a workflow draws; one that a link gives stays."""
    found = [
        node["inputs"]
        for node in nodes.values()
        if isinstance(node["inputs"].get(side, AUTO.get(node["class_type"])), int)
    ]
    if not found:
        sys.exit(f"--{side}: no node of this workflow has it, so this workflow draws no picture")
    for inputs in found:
        inputs[side] = pixels


def texts_before(nodes: Nodes, link: Any) -> Iterator[Nodes]:
    """Yield the nodes CLIPTextEncode from which a link comes, through nodes between them."""
    waiting = [link]
    seen = set()
    while waiting:
        link = waiting.pop()
        if not isinstance(link, list) or not link or str(link[0]) in seen:
            continue
        seen.add(str(link[0]))
        node = nodes.get(str(link[0]), {"class_type": "", "inputs": {}})
        if node["class_type"] == "CLIPTextEncode":
            yield node
        else:
            inputs = node["inputs"].items()
            waiting += [value for name, value in inputs if name != "negative"]


def wanted(nodes: Nodes, class_types: Sequence[str], option: str) -> list[Nodes]:
    """Return the nodes of some classes, or end with what is missing."""
    found = [node for node in nodes.values() if node["class_type"] in class_types]
    if not found:
        named = " or ".join(class_types)
        there = ", ".join(sorted({node["class_type"] for node in nodes.values()}))
        sys.exit(f"{option}: this workflow has no node {named}; it has {there}")
    return found


def ask(server: str, path: str, body: Nodes | None = None) -> Nodes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server}/{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(refusal(error.read().decode("utf-8", "replace"), (body or {}).get("prompt", {})))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        sys.exit(f"no ComfyUI answers at {server} ({reason}); start it, or name it by --server")


def refusal(answer: str, nodes: Nodes) -> str:
    """Return why ComfyUI refuses a workflow, one line for each reason."""
    try:
        told = json.loads(answer)
        lines = [
            f"{titled(nodes, number)}: {reason['message']}: {line}"
            for number, node in (told.get("node_errors") or {}).items()
            for reason in node["errors"]
            for line in reason["details"].splitlines() or [""]
        ]
        lines = lines or [f"{told['error']['message']}: {told['error'].get('details') or ''}"]
    except (ValueError, TypeError, KeyError, AttributeError):
        lines = [answer]
    return "\n".join(shortened(f"ComfyUI refuses the workflow: {line}") for line in lines)


def titled(nodes: Nodes, number: str) -> str:
    """Return how people call a node."""
    node = nodes.get(number, {})
    title = node.get("_meta", {}).get("title") or node.get("class_type", "")
    return f"node {number}, {title}"


def shortened(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]} ..."


def run(nodes: Nodes, server: str) -> None:
    prompt = ask(server, "prompt", {"prompt": nodes})["prompt_id"]
    while prompt not in (history := ask(server, f"history/{prompt}")):
        time.sleep(1)
    for event, data in history[prompt]["status"]["messages"]:
        if event == "execution_error":
            sys.exit(f"{data['node_type']}: {data['exception_message']}")
        if event == "execution_interrupted":
            sys.exit("the run was cancelled on the server")
    for number, shown in history[prompt]["outputs"].items():
        print(
            f"{titled(nodes, number)}:",
            *shown.get("text", ()),
            *(image["filename"] for image in shown.get("images", ())),
            sep="\n  ",
        )


if __name__ == "__main__":
    main()
