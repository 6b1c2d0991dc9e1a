"""A client of a running ComfyUI: post a workflow, follow it by websocket, fetch the results."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from iteris_core.errors import IterisError

Json = dict[str, Any]
OnEvent = Callable[[str, Json], None]

HTTP_SECONDS = 60.0
HISTORY_SECONDS = 10.0


class WorkflowError(IterisError):
    """A workflow that did not run to its end."""


class WorkflowRejected(WorkflowError):
    """A workflow that the server did not accept; `node_errors` are its errors by node."""

    def __init__(self, response: Json) -> None:
        self.node_errors: Json = response.get("node_errors") or {}
        super().__init__(_readable(response))


class WorkflowFailed(WorkflowError):
    """A node that raised an error, or that was interrupted."""

    def __init__(self, node_id: str, node_type: str, message: str, exception_type: str) -> None:
        self.node_type = node_type
        # ComfyUI puts the path of the pack in front of the name of its classes.
        super().__init__(
            f"node {node_id} ({node_type}): {exception_type.rpartition('.')[2]}: {message}"
        )


class WorkflowTimeout(WorkflowError):
    """A workflow that took too long; it has been interrupted."""


class ComfyClient:
    """One connection to a ComfyUI.

    Args:
        address: Host and port, for example "127.0.0.1:8188".
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.client_id = uuid.uuid4().hex

    def post(self, prompt: Json) -> str:
        """Queue a workflow in API format and return its id.

        Raises:
            WorkflowRejected: The server found errors in it.
        """
        try:
            return self._json("/prompt", {"prompt": prompt, "client_id": self.client_id})[
                "prompt_id"
            ]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise WorkflowRejected(json.load(error)) from None

    def run(self, prompt: Json, on_event: OnEvent | None = None, timeout: float = 3600.0) -> Json:
        """Run a workflow to its end and return its entry of the history.

        Args:
            prompt: The workflow in API format.
            on_event: Listener for (type, data) of every message about this workflow.
            timeout: Seconds until the workflow is given up and interrupted.

        Raises:
            WorkflowRejected: The server found errors in it.
            WorkflowFailed: A node raised an error, or the workflow was interrupted.
            WorkflowTimeout: It took longer than `timeout`.
        """
        import websocket

        deadline = time.monotonic() + timeout
        url = f"ws://{self.address}/ws?clientId={self.client_id}"
        # The socket comes first: messages of a fast workflow would be lost otherwise.
        with contextlib.closing(
            websocket.create_connection(url, timeout=HTTP_SECONDS)
        ) as connection:
            connection.settimeout(1.0)
            prompt_id = self.post(prompt)
            failure: WorkflowFailed | None = None
            while True:
                if time.monotonic() > deadline:
                    self.interrupt()
                    raise WorkflowTimeout(
                        f"the workflow did not end within {timeout:.0f} s; it has been interrupted"
                    )
                try:
                    message = connection.recv()
                except websocket.WebSocketTimeoutException:
                    continue
                except (websocket.WebSocketException, OSError) as error:
                    lost = WorkflowError(f"the connection to ComfyUI was lost: {error}")
                    raise failure or lost from error
                if isinstance(message, bytes):
                    continue  # a preview
                # An empty one: the server has closed the connection.
                told = json.loads(message) if message else {}
                event, data = told.get("type"), told.get("data") or {}
                if data.get("prompt_id") != prompt_id:
                    continue
                if on_event is not None:
                    on_event(event, data)
                failure = failure or _failure(event, data)
                # The last message, sent when the server has taken the workflow out of its queue.
                if event == "executing" and data.get("node") is None:
                    if failure is not None:
                        raise failure
                    return self.history(prompt_id)

    def history(self, prompt_id: str) -> Json:
        """Return the history's entry of a workflow that has ended."""
        deadline = time.monotonic() + HISTORY_SECONDS
        while prompt_id not in (found := self._json(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise WorkflowError(f"the server has no history of workflow {prompt_id}")
            time.sleep(0.1)
        return found[prompt_id]

    def interrupt(self) -> None:
        """Stop the workflow that is running."""
        self._request("/interrupt", {})

    def object_info(self, node: str | None = None) -> Json:
        """Return the schema of one node type ({} if there is none of that name), or of all by
        name.
        """
        if node is None:
            return self._json("/object_info")
        return self._json(f"/object_info/{urllib.parse.quote(node)}").get(node, {})

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """Return the content of a picture that a node has saved."""
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self._request(f"/view?{query}")

    def _json(self, path: str, body: Json | None = None) -> Json:
        return json.loads(self._request(path, body))

    def _request(self, path: str, body: Json | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.address}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as response:
            return response.read()


def _failure(event: str, data: Json) -> WorkflowFailed | None:
    if event not in ("execution_error", "execution_interrupted"):
        return None
    interrupted = event == "execution_interrupted"
    return WorkflowFailed(
        str(data.get("node_id")),
        str(data.get("node_type")),
        "interrupted" if interrupted else str(data.get("exception_message", "")).strip(),
        "InterruptProcessingException" if interrupted else str(data.get("exception_type", "")),
    )


def _readable(response: Json) -> str:
    """Return the server's answer to a bad workflow as text: one line per node and input."""
    error = response.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    lines = [
        f"ComfyUI rejected the workflow: {error.get('message', '')} "
        f"{error.get('details', '')}".strip()
    ]
    for node_id, node in (response.get("node_errors") or {}).items():
        for item in node.get("errors", []):
            where = (item.get("extra_info") or {}).get("input_name", "")
            lines.append(
                f"  node {node_id} ({node.get('class_type')}) {where}: {item['message']}: "
                f"{item['details']}"
            )
    return "\n".join(lines)
