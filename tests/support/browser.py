"""ComfyUI's own frontend in headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
WORKFLOWS = Path(__file__).parents[2] / "workflows"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # nothing but a server of this machine; what Playwright routes has no cache, and opens in twice the time
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# no tour, no news, no maps over the canvas
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.32.9",
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Node.AlwaysShowAdvancedWidgets": False,
    "Comfy.Extension.Disabled": [],
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.RightSidePanel.ShowErrorsTab": False,
    # a busy page hears the two clicks of a double click far apart
    "Comfy.Pointer.DoubleClickTime": 60_000,
}
QUEUE_EMPTY = """async (most) => {
    for (const end = Date.now() + most; Date.now() < end; await new Promise((go) => setTimeout(go, 50))) {
        const { queue_running: now, queue_pending: later } = await (await fetch("/queue")).json();
        if (!now.length && !later.length) return;
    }
    throw new Error("the server's queue does not end");
}"""
FORGET = "() => [localStorage, sessionStorage].forEach((storage) => storage.clear())"
# counts the answers and the short timers that a page waits for
COUNT_WAITING = """(() => {
    const timers = new Set();
    const { fetch: ask, setTimeout: later, clearTimeout: never } = window;
    window.iterisAsked = 0;
    window.iterisWaiting = () => window.iterisAsked + timers.size;
    window.fetch = (...given) => {
        window.iterisAsked += 1;
        return ask(...given).finally(() => later(() => { window.iterisAsked -= 1; }));
    };
    window.setTimeout = (call, wait, ...given) => {
        const timer = later((...now) => { timers.delete(timer); call(...now); }, wait, ...given);
        if (wait > 0 && wait < 400) timers.add(timer);
        return timer;
    };
    window.clearTimeout = (timer) => { timers.delete(timer); never(timer); };
})()"""
# ten frames in which nothing changes; at most as many as were waited for anyway, unless an answer is to come
SETTLED = """async () => {
    let changed;
    const watched = new MutationObserver(() => { changed = true; });
    watched.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
    let quiet = 0, frames = 0;
    while (quiet < 10 && frames < (window.iterisAsked ? 60 : 20)) {
        changed = false;
        await new Promise(requestAnimationFrame);
        frames += 1;
        quiet = changed || window.iterisWaiting() ? 0 : quiet + 1;
    }
    watched.disconnect();
}"""
OF = {  # what a result is of, as the server tells it
    "rows": [{"name": "first", "strength": 1.0}, {"name": "ink", "strength": 0.8}],
    "preset": "Balanced",
    "together": True,
    "size": "rank 32",
    "time": 1.7e9,
}
WAIT_MS = 180_000  # after that a page hangs; it opens in 7 s on a quiet machine, and merges in 15 s


def find_chromium() -> str | None:
    """Return the path of a Chromium: $CHROMIUM, else Debian's, else whatever is on the path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@contextlib.contextmanager
def chromium(executable: str) -> Iterator[Any]:
    """Start Chromium; every page gets an empty profile of its own."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)  # its own five seconds are few where both cores are busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Frontend:
    """One page with the frontend of a running ComfyUI."""

    def __init__(
        self,
        browser: Any,
        address: str,
        width: int = 1720,
        height: int = 980,
        sharpness: float = 1,
        **settings: Any,
    ) -> None:
        self.address = address
        self.page = browser.new_page(
            viewport={"width": width, "height": height},
            device_scale_factor=sharpness,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.page.set_default_timeout(WAIT_MS)
        self.page.add_init_script(COUNT_WAITING)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.enter(**settings)

    def enter(self, **settings: Any) -> None:
        """Open the frontend with settings of its own: a new page, or one that was left."""
        self.errors: list[str] = []
        self.settings = SETTINGS | {
            name.replace("_", "."): value for name, value in settings.items()
        }
        self.open()

    def leave(self) -> None:
        """Forget all that was done in this page, which opens in a third of the time of a new one."""
        self.page.unroute_all()
        self.page.goto(f"http://{self.address}/system_stats")  # of whose storage, without its code
        self.page.evaluate(FORGET)

    def _configure(self) -> None:
        """Store this page's settings on the server, where those of the page before may be."""
        data = json.dumps(self.settings).encode()
        kind = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{self.address}/api/settings", data, kind)
        ):
            pass

    def open(self) -> None:
        """Open the frontend, anew if it is open already, and wait for its graph and our nodes."""
        self._configure()
        # "load" waits for several hundred modules, one after the other
        self.page.goto(f"http://{self.address}/", wait_until="commit")
        nodes = "window.LiteGraph?.registered_node_types.IterISMerge"
        workflow = "app.extensionManager?.workflow.activeWorkflow"
        ready = f"!!(window.app?.vueAppReady && app.graph && {nodes} && {workflow}?.isLoaded)"
        self.page.wait_for_function(ready)
        self.settle()

    def pictures_shown(self) -> None:
        """Wait until all pictures on the page that do not wait to be seen are loaded and drawn."""
        done = "(image) => image.complete || image.loading === 'lazy'"
        self.page.wait_for_function(f"[...document.images].every({done})")
        self.settle()

    def settle(self, frames: int = 0) -> None:
        """Wait until the page has drawn what it was told, or for so many frames."""
        if not frames:
            self.page.evaluate(SETTLED)
            return
        wait = "n => new Promise(done => { const next = () => n-- ? requestAnimationFrame(next) : done(); next(); })"
        self.page.evaluate(wait, frames)

    def load_template(self, number: int) -> None:
        """Load one of the pack's templates, as the template browser does."""
        (file,) = WORKFLOWS.glob(f"{number} *.json")
        self.load(json.loads(file.read_text(encoding="utf-8")), file.stem, source="template")

    def load(self, workflow: Json, name: str, source: str | None = None) -> None:
        """Load a workflow of either format, when no run is left that shows results on its numbers."""
        # a function that is waited for may not be async: what it promises is true
        self.page.evaluate(QUEUE_EMPTY, WAIT_MS)
        if "nodes" in workflow:
            self.page.evaluate(
                "([graph, name, openSource]) => app.loadGraphData(graph, true, true, name, { openSource })",
                [workflow, name, source],
            )
        else:
            # out of a subgraph first, which the page does by itself for its own format alone
            self.page.evaluate(
                "([api, name]) => { app.canvas.setGraph(app.graph); return app.loadApiJson(api, name); }",
                [workflow, name],
            )
        # results are shown in the workflow that a run was queued from, which may still be the one before
        self.page.wait_for_function(
            "name => app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)",
            arg=name,
        )
        self.settle()

    def workflow(self) -> Json:
        return json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))

    def prompt(self) -> Json:
        return self.page.evaluate("app.graphToPrompt().then(({ output }) => output)")

    def set_widgets(self, node_id: int, **values: Any) -> None:
        """Set widgets of a node by name, as a user does: their callbacks are called."""
        self.page.evaluate(
            """([id, values]) => {
                for (const [name, value] of Object.entries(values)) {
                    const widget = app.graph.getNodeById(id).widgets.find((widget) => widget.name === name);
                    widget.value = value;
                    widget.callback?.(value);
                }
            }""",
            [node_id, values],
        )

    def show(self, node_id: int, left: int = 500, top: int = 150, scale: float = 1.0) -> None:
        """Move the canvas so that a node's upper left corner is at a place of the page."""
        self.page.evaluate(
            """([id, left, top, scale]) => {
                const { pos } = app.graph.getNodeById(id);
                app.canvas.ds.scale = scale;
                app.canvas.ds.offset = [left / scale - pos[0], top / scale - pos[1]];
                app.canvas.setDirty(true, true);
            }""",
            [node_id, left, top, scale],
        )
        self.settle()

    def into_subgraph(self, *ids: int | str, show: bool = False) -> int:
        """Put nodes into a subgraph, as the menu does, show the last one there, and return its node's id."""
        return self.page.evaluate(
            """([ids, show]) => {
                const { node } = app.graph.convertToSubgraph(new Set(ids.map((id) => app.graph.getNodeById(id))));
                if (show) {
                    app.canvas.setGraph(node.subgraph);
                    app.canvas.centerOnNode(node.subgraph.getNodeById(ids.at(-1)));
                }
                return node.id;
            }""",
            [ids, show],
        )

    def complaints(self) -> Any:
        """Return the page's messages, but for the one that the installed templates are old."""
        return self.page.locator(".p-toast-message").filter(
            has_not_text="Version Compatibility Warning"
        )

    def send(self, event: str, **detail: Any) -> None:
        """Let the page believe that the server has sent it something."""
        self.page.evaluate(
            "([event, detail]) => comfyAPI.api.api.dispatchEvent(new CustomEvent(event, { detail }))",
            [event, detail],
        )
        self.settle()

    def overlaps(self) -> list[tuple[int, int]]:
        """Return the pairs of nodes that cover one another, titles included."""
        return self.page.evaluate(
            """() => {
                const before = (a, b, axis, title) => a.pos[axis] + a.size[axis] <= b.pos[axis] - title;
                const meet = (a, b) => [[a, b], [b, a]].every(([a, b]) => !before(a, b, 0, 0) && !before(a, b, 1, 30));
                const { nodes } = app.graph;
                return nodes.flatMap((a) => nodes.filter((b) => a.id < b.id && meet(a, b)).map((b) => [a.id, b.id]));
            }"""
        )

    def executed(self, node: int | str, payload: Json, *lines: str) -> None:
        """Let the page believe that a node of ours has run: what it shows, and lines for people."""
        told = {"node": str(node), "display_node": str(node)}
        output = {"iteris": [payload], "text": lines}
        self.send("executed", prompt_id="a", **told, output=output)

    def size_of(self, node_id: int) -> list[float]:
        return self.page.evaluate("id => [...app.graph.getNodeById(id).size]", node_id)

    def undo(self) -> None:
        """Press the keys of Undo until ComfyUI has loaded the graph of before.

        They are held until then: ComfyUI acts on a key in its next frame, and takes a step of its
        own when a modifier is let go before that, as on a busy machine.
        """
        self.page.evaluate("() => { window.iterisUndone = app.graph.nodes[0]; }")
        keyboard = self.page.keyboard
        for each in ("Control", "z"):
            keyboard.down(each)
        self.page.wait_for_function("!app.graph.nodes.includes(window.iterisUndone)")
        for each in ("z", "Control"):
            keyboard.up(each)
        self.settle(40)

    def run(self) -> None:
        # the button itself, or in the older frontend what is around it
        self.page.locator(
            "button[data-testid=queue-button], [data-testid=queue-button] button:has-text('Run')"
        ).click()

    def run_to_the_end(self) -> str:
        """Press the Run button, wait until nothing is left to do, and return the run's id."""
        self.page.evaluate(
            """() => {
                window.iterisRun = { id: null, ended: false };
                const { api } = comfyAPI.api;
                api.addEventListener('execution_start', ({ detail }) => { iterisRun.id = detail.prompt_id; });
                api.addEventListener('executing', ({ detail }) => { iterisRun.ended ||= detail === null; });
            }"""
        )
        self.run()
        self.page.wait_for_function("iterisRun.ended")
        return self.page.evaluate("iterisRun.id")
