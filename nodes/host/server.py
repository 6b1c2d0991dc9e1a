"""What the browser is told, and what it may ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils


def show_text(node_id: str, text: str) -> None:
    """Show a text on a node; without the pack's web extension, too."""
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, node_id)


def answer_at(path: str, parameter: str, answer: Callable[[str], dict[str, Any]]) -> None:
    """Let the browser ask for JSON: ``GET path?parameter=...``; the answer may read files, so another thread makes it."""
    from aiohttp import web
    from server import PromptServer

    @PromptServer.instance.routes.get(path)
    async def respond(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(answer, request.query.get(parameter, "")))


def stage_progress(node_id: str) -> Callable[[str, int, int], None]:
    """Return a progress callback that shows the stage's name on the node and its steps in the node's bar."""
    from server import PromptServer

    bars: dict[str, comfy.utils.ProgressBar] = {}

    def show(stage: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage not in bars:
            bars[stage] = comfy.utils.ProgressBar(total)
        PromptServer.instance.send_progress_text(f"{stage} {done}/{total}", node_id)
        bars[stage].update_absolute(done, total)

    return show
