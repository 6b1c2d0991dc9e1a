"""Messages to the browser, its Cancel, and routes that it can query."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils

from ..progress import WorkClock
from ..workflow import needed_for

if TYPE_CHECKING:
    from ...iteris_core.progress import Stage, StageProgress

_BAR_STEPS = 1000


def heed_cancel() -> None:
    """Let the user's Cancel end what this thread does."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def answer_at(path: str, parameter: str, answer: Callable[[str], dict[str, Any]]) -> None:
    """Answer ``GET path?parameter=...`` with JSON from another thread, since it may read files."""
    from aiohttp import web
    from server import PromptServer

    async def respond(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(answer, request.query.get(parameter, "")))

    PromptServer.instance.routes.get(path)(respond)


def picture_at(path: str, parameter: str, find: Callable[[str], tuple[bytes, str] | None]) -> None:
    """Answer ``GET path?parameter=...`` with a picture of the media type that goes with it, or with
    404.
    """
    from aiohttp import web
    from server import PromptServer

    async def respond(request: web.Request) -> web.Response:
        found = await asyncio.to_thread(find, request.query.get(parameter, ""))
        if found is None:
            return web.Response(status=404)
        content, kind = found
        # a browser that asks what else it may be could take it for a page
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=60"}
        return web.Response(body=content, content_type=kind, headers=headers)

    PromptServer.instance.routes.get(path)(respond)


_SENT: ContextVar[Mapping[str, Any]] = ContextVar("iteris_prompt")


def note_prompts() -> None:
    """Keep what the host is to run of each workflow until its nodes have been validated."""
    from server import PromptServer

    def note(sent: dict[str, Any]) -> dict[str, Any]:
        prompt, targets = sent.get("prompt") or {}, sent.get("partial_execution_targets")
        _SENT.set(prompt if targets is None else needed_for(prompt, targets))
        return sent

    PromptServer.instance.add_on_prompt_handler(note)


def prompt_sent() -> Mapping[str, Any]:
    """Return the part of a workflow that is being validated, since the host tells a node's
    `validate_inputs` only its own inputs; empty elsewhere.
    """
    return _SENT.get({})


def stage_progress(node_id: str) -> StageProgress:
    """Return a listener that shows the share of all work in the node's bar, and sends a stage's
    steps with the remaining time to the web extension and to programs.

    The host's own text on a node would also be shown on nodes of the same id in other workflows.
    """
    from server import PromptServer

    server = PromptServer.instance
    bar = comfy.utils.ProgressBar(_BAR_STEPS)
    clock = WorkClock()

    def show(stage: Stage, done: int, total: int) -> None:
        heed_cancel()
        seconds_left = clock.seconds_left(stage, done, total, time.monotonic())
        bar.update_absolute(round(_BAR_STEPS * stage.part_done(done, total)), _BAR_STEPS)
        of_run = {"prompt_id": server.last_prompt_id, "node": node_id, "stage": asdict(stage)}
        steps = {"done": done, "total": total, "seconds_left": seconds_left}
        server.send_sync("iteris.stage", of_run | steps, server.client_id)

    return show
