"""Run a workflow of this folder on a ComfyUI that is already running, and print what it shows.

python run.py merge_two_loras.json [127.0.0.1:8188]
"""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def ask(url: str, body: dict | None = None) -> dict:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:  # a workflow that ComfyUI refuses, with its reasons
        sys.exit(error.read().decode())


def run(workflow: Path, server: str) -> None:
    prompt = ask(f"http://{server}/prompt", {"prompt": json.loads(workflow.read_text())})[
        "prompt_id"
    ]
    while prompt not in (history := ask(f"http://{server}/history/{prompt}")):
        time.sleep(1)
    status = history[prompt]["status"]
    outputs = history[prompt]["outputs"]
    for event, data in status["messages"]:
        if event == "execution_error":
            sys.exit(f"{data['node_type']}: {data['exception_message']}")
    for node, shown in outputs.items():
        print(
            f"node {node}:",
            *shown.get("text", ()),
            *(image["filename"] for image in shown.get("images", ())),
            sep="\n  ",
        )


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[2:] or ["127.0.0.1:8188"])
