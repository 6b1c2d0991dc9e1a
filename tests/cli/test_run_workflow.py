"""workflows/api/run.py: what its options set in a workflow, and what it says of a server's answers."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "workflows" / "api" / "run.py"
WORKFLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
    "2": {
        "class_type": "IterISMerge",
        "_meta": {"title": "Merge LoRAs"},
        "inputs": {"model": ["1", 0], "clip": ["1", 1], "loras": "<lora:old>"},
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "old"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "ugly"}},
    "5": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["3", 0], "negative": ["4", 0]}},
    "6": {"class_type": "KSampler", "inputs": {"positive": ["5", 0], "negative": ["4", 0]}},
}


@pytest.fixture
def run():
    spec = importlib.util.spec_from_file_location("run_workflow", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server():
    """A server that answers as a test says: path -> (status, body); what was posted is in
    `posted`.
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            status, body = self.server.answers[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_GET = answer

        def do_POST(self):
            posted = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.posted.append(json.loads(posted)["prompt"])
            self.answer()

        def log_message(self, *_): ...

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        running.posted = []
        running.answers = {
            "/prompt": (200, {"prompt_id": "a"}),
            "/history/a": (200, {"a": {"status": {"messages": []}, "outputs": {}}}),
        }
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def start(run, server, tmp_path):
    """Run a workflow with options, and return it as the server got it."""

    def started(*options, workflow=WORKFLOW):
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(workflow))
        run.main([str(path), "--server", f"127.0.0.1:{server.server_port}", *options])
        return server.posted[-1]

    return started


def without(*numbers, **changed):
    return {key: node for key, node in WORKFLOW.items() if key not in numbers} | changed


def test_the_options_set_what_they_name_and_nothing_else(start):
    row = "<lora:folder/sks dog:0.8:0.5> subject | a photo of sks dog"
    sent = start("--checkpoint", "b", "--lora", row, "--lora", "ink:0.7", "--prompt", "new")
    expected = json.loads(json.dumps(WORKFLOW))
    expected["1"]["inputs"]["ckpt_name"] = "b"
    expected["2"]["inputs"]["loras"] = f"{row}\n<lora:ink:0.7>"
    expected["3"]["inputs"]["text"] = "new"
    assert sent == expected


def test_what_is_missing_is_named(start, server):
    from_others = {"class_type": "IterISMerge", "inputs": {"loras": ["9", 0]}}
    for options, workflow, told in (
        (("--checkpoint", "b"), without("1"), "--checkpoint: .* no node CheckpointLoaderSimple"),
        (("--lora", "b"), without("2", **{"2": from_others}), "come from other nodes"),
        ((), {"nodes": []}, "is not a workflow in the API's format"),
    ):
        with pytest.raises(SystemExit, match=told):
            start(*options, workflow=workflow)
    assert server.posted == []
