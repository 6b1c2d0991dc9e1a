"""Make the workflows that ComfyUI's template browser lists, the subgraph blueprint, and the
pictures of the documentation, in the real frontend.

    PYTHONPATH=.:tests/support python tools/make_pictures.py workflows [NAME ...]
    PYTHONPATH=.:tests/support python tools/make_pictures.py blueprint
    PYTHONPATH=.:tests/support python tools/make_pictures.py walkthrough
    PYTHONPATH=.:tests/support python tools/make_pictures.py nodes
    PYTHONPATH=.:tests/support python tools/make_pictures.py film

The first makes workflows/*.json from workflows/api/*.json, the second subgraphs/*.json, the third
docs/img/1_*.jpg and so on, the fourth docs/img/load.jpg and nodes.jpg, the fifth
docs/img/merge.webp. `make_cards.py` makes the pictures of the template browser, and the README's.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import browser
from PIL import Image, ImageDraw, ImageFont
from workflow_files import GROWTH, list_transformer
from workflow_notes import TEMPLATES, Template

from demo import drawn
from demo import server as demo_server
from demo.run import WEIGHTS
from demo.server import ComfyServer, cache_folder, find_comfyui, link

ROOT = Path(__file__).resolve().parents[1]
PACK = "iteris-lora-merge"  # the folder that git clone makes
GAP_X = 36
GAP_Y = 30
TITLE = 30
WIDTHS = {
    "IterISMerge": 400,
    "IterISMergeVideo": 400,
    "IterISLoad": 400,
    "IterISCompare": 720,  # its pictures are beside its slider
    "IterISSave": 340,
    "CheckpointSave": 340,
}
# three lines; with more, a page cannot show what *Merge these* adds to template 11
HEIGHTS = {"CLIPTextEncode": 104}
NARROWEST = 270  # of others; Nodes 2.0 draws some wider than the canvas
FIRST_WIDTH = 300  # of what stands on the left, and of the note
NOTE_ROOM = 52  # round its two parts
NOTE_LINES = ((26, 70), (22, 90))  # of each: the height of its lines, and their letters
NOTE_WIDTH = 736  # for which lines have so many letters
NOTE_GAP = 100  # Nodes 2.0 of 0.3.75 draws it higher
# for the text that a run writes, and because Nodes 2.0 draws them higher
ROOM_BELOW = GROWTH | {
    "CLIPTextEncode": 0,
    "IterISModelLoras": 70,
    "IterISRecipe": 170,
    "IterISSave": 120,
    "LoadImage": 180,
}
# nodes that stand below one another, though data goes from one to the other
BELOW = {
    ("KSamplerAdvanced", "KSamplerAdvanced"),
    ("VAEDecode", "SaveImage"),
    ("VAEDecode", "CreateVideo"),
    ("CreateVideo", "SaveVideo"),
}
BACK = ("LoraLoader", "LoraLoader")  # the second one begins another row of a long chain
NARROW = 232  # of a long chain's nodes
# without inputs, and right before what needs it
NEXT = {"EmptyHunyuanLatentVideo", "EmptyLatentImage", "EmptySD3LatentImage", "LoadImage"}
LAST = {"IterISSave": 1, "IterISCompare": 2}  # in a column
GROUP_COLOURS = ("#6fa8d6", "#d0a24e", "#79b67d")
# the first of these that a template has: its column is the second group
SECOND_GROUP = ("IterISMerge", "IterISMergeVideo", "CLIPTextEncode")
GROUP_ROOM = 12
GROUP_HEAD = 42  # from the group's top, below its title, to a node's title
GROUP_BOTTOM = 32  # below its nodes, which Nodes 2.0 draws higher
LANE = 15  # between links that pass above a node, and its badge
LOW_LANES = (0, -9, 4, 10)  # beside it, for a node's place in its column
UP_LANE = 6  # from the middle between columns, of links that go up to a raised node, at either side
BADGE = 12
ROUND = 8  # beside a node, of a link that goes round it to the one below
CLEAR = 26  # of that link, above the title below
RAISED_HEAD = GROUP_HEAD + BADGE + LANE  # where a link passes above the node, too
SLOT = 20  # of a node, below one another
FRAME = 50  # milliseconds of a film's picture, while the pointer moves
MOST_MS = 1_200_000  # of a merge, on a busy machine
FILM = (1120, 640)  # pixels of a film's picture
SUBTITLE = 64  # of the line below it
SHARP = 2  # pixels of a film's screenshots for one of the page
CAMERA = (0.1, 0.35, 0.65, 0.9, 1.0)  # of its way, picture by picture
POINTER = ((0, 0), (0, 32), (8, 25), (21, 23))
RING = 22  # pixels round a click
NOTICE_MS = 8000  # of one that a run has ended
WAIT_MS = 700  # between two pictures of a run
WAITS = 14  # of which a film has so many
SUBJECTS = ("sks_robot", "zwx_owl")  # of the demo
OWN_PLACES = {"1": [0, 0], "2": [340, 0], "3": [660, 0], "4": [980, 0]}
FILMED = ("sks_robot", "zwx_owl", "qpr_blueprint")  # three that spoil each other stacked
PROMPT = "a sks robot and a zwx owl"  # of their comparison
OPENS = {"scale": 0.75, "left": 70, "top": 135}  # where a template's corner is; it may be smaller
READABLE = 0.58  # below, the frontend writes no letters
WINDOW = (1280, 800)
MARGIN = 20  # of a template to the window's ends
# where the merge is on a page: with its group's title, and what is at its right; or at its left, too
MERGE_FIRST = {"left": 86, "top": 216, "scale": 0.9}
MERGE_SECOND = {"left": 372, "top": 216, "scale": 0.85}
MERGE_FILMED = {"left": 86, "top": 120, "scale": 0.9}
NOWHERE = (30, 450)  # on a page, for the pointer
TALL = {"width": 1280, "height": 1000}  # for what a page does not show whole
# the rows of the first template as nodes of their own: newer frontends show no rows on a subgraph
CHOSEN = {"5": "choose a LoRA", "6": "choose another LoRA"}
# node and widget that its blueprint shows, and under which name
BLUEPRINT = [
    (5, "lora_name", "first LoRA"),
    (6, "lora_name", "second LoRA"),
    (2, "preset", "preset"),
    (2, "together", "together"),
    (3, "prompt", "prompt"),
    (4, "file_name", "file_name"),
]
MOST_BYTES = 145_000  # of a picture of the documentation


def columns(prompt: dict) -> dict[str, int]:
    """Return each node's column: right after all that it needs; see also `BELOW`, `BACK`, `NEXT`."""

    def step(*types: str) -> int:
        return -1 if types == BACK else int(types not in BELOW)

    edges = [
        (source, key, step(prompt[source]["class_type"], node["class_type"]))
        for key, node in prompt.items()
        for source in (value[0] for value in node["inputs"].values() if isinstance(value, list))
    ]

    def earliest(key: str) -> int:
        return max(
            (earliest(source) + step for source, user, step in edges if user == key), default=0
        )

    found = {key: earliest(key) for key in prompt}
    for source, user, step in edges:
        if prompt[source]["class_type"] in NEXT:
            found[source] = found[user] - step
    return found


def arrange(frontend: browser.Frontend, prompt: dict, template: Template) -> None:
    """Put the nodes into columns, from left to right as the data goes, the note above them, and a
    coloured group around those that belong together.
    """
    column_of = columns(prompt)
    raised = raised_nodes(prompt)
    second = column_of[
        next(key for key, node in prompt.items() if node["class_type"] in SECOND_GROUP)
    ]
    least = (NARROW, NARROW) if raised and second > 1 else (FIRST_WIDTH, NARROWEST)
    widths = {
        key: WIDTHS.get(node["class_type"], least[column_of[key] > 0])
        for key, node in prompt.items()
    }
    # over what is chosen, and the merge
    note_width = second * (least[0] + GAP_X) + 400 if raised else NOTE_WIDTH
    note_height = NOTE_ROOM + sum(
        height * (1 + len(line) * NOTE_WIDTH // (characters * note_width))
        for part, (height, characters) in zip(template.note.split("\n\n"), NOTE_LINES, strict=True)
        for line in part.split("<br>")
    )
    heights = {key: HEIGHTS.get(node["class_type"], 0) for key, node in prompt.items()}
    sizes = frontend.page.evaluate(
        """([widths, heights, text, size]) => {
            const note = LiteGraph.createNode('MarkdownNote');
            note.title = 'What this does';
            note.widgets[0].value = text;
            app.graph.add(note);
            note.setSize(size);
            return Object.fromEntries(app.graph.nodes.map((node) => {
                if (node !== note) {
                    const [width, height] = node.computeSize();
                    node.setSize([Math.max(widths[node.id], width), Math.max(heights[node.id], height)]);
                }
                return [node === note ? 'note' : node.id, [...node.size]];
            }));
        }""",
        [widths, heights, template.note, [note_width, note_height]],
    )
    places = {}
    x = 0.0
    for column in range(max(column_of.values()) + 1):
        members = [key for key, value in column_of.items() if value == column]
        members.sort(key=lambda key: (LAST.get(prompt[key]["class_type"], 0), int(key)))
        y = 0.0
        for key in members:
            places[key] = [x, y]
            y += sizes[key][1] + TITLE + GAP_Y + room_below(prompt, key)
        x += max(sizes[key][0] for key in members) + GAP_X
    level_rows(column_of, second, places)
    group_of = {
        key: 0 if column < second else 1 if column == second else 2
        for key, column in column_of.items()
    }
    boxes = []
    passing = lanes(prompt, column_of, places)
    top = -2 * TITLE - GROUP_ROOM - (BADGE + LANE * len(passing) if passing else 0)
    places["note"] = [0.0, top - NOTE_GAP - sizes["note"][1]]
    for key in raised:
        places[key][1] = places["note"][1] + RAISED_HEAD
    if raised:
        passing = [
            way._replace(end=way.end - UP_LANE, ends_low=True) if way.node in raised else way
            for way in passing
        ]
        passing += ways_up(prompt, raised, column_of, places)
    passing += ways_down(prompt, places, sizes)
    insides = [
        [key for key in group_of if group_of[key] == number] for number in range(len(GROUP_COLOURS))
    ]
    # groups grow with our nodes: see web/groups.js
    bottom = max(places[key][1] + sizes[key][1] for key in group_of) + GROUP_BOTTOM
    for title, colour, inside in zip(template.groups, GROUP_COLOURS, insides, strict=True):
        left = min(places[key][0] for key in inside) - GROUP_ROOM
        right = max(places[key][0] + sizes[key][0] for key in inside) + GROUP_ROOM
        start = places["note"][1] - TITLE if set(raised) & set(inside) else top
        boxes.append(
            [f"{len(boxes) + 1}. {title}", colour, [left, start], [right - left, bottom - start]]
        )
    # the corner is where the canvas begins: it stays there where frontends enlarge all for Nodes 2.0
    corner = [boxes[0][2][0], places["note"][1] - TITLE]
    for place in [*places.values(), *(pos for _, _, pos, _ in boxes)]:
        place[:] = [place[k] - corner[k] for k in (0, 1)]
    frontend.page.evaluate(
        """([places, boxes]) => {
            for (const node of app.graph.nodes) {
                node.pos = places[node.type === 'MarkdownNote' ? 'note' : node.id];
            }
            for (const [title, colour, pos, size] of boxes) {
                const group = new LiteGraph.LGraphGroup(title);
                Object.assign(group, { color: colour, pos, size });
                app.graph.add(group);
            }
        }""",
        [places, boxes],
    )
    frontend.page.evaluate(
        """passing => {
            for (const { node: id, input, start, end, top, begins_low, ends_low } of passing) {
                const node = app.graph.getNodeById(Number(id));
                const place = node.inputs.findIndex(({ name }) => name === input);
                const link = app.graph.links[node.inputs[place].link];
                const from = app.graph.getNodeById(link.origin_id).getOutputPos(link.origin_slot)[1];
                const points = start === end ? [[start, top]] : [[start, top], [end, top]];
                if (begins_low) points.unshift([start, from]);
                if (ends_low) points.push([end, node.getInputPos(place)[1]]);
                points.reduceRight((next, point) => app.graph.createReroute(point, next), link);
            }
        }""",
        [way.seen_from(corner)._asdict() for way in passing],
    )
    frontend.settle()


def level_rows(column_of: dict[str, int], second: int, places: dict[str, list[float]]) -> None:
    """Put what stands in one row before the second group's column at one height."""
    columns_of = [
        sorted((key for key in column_of if column_of[key] == column), key=lambda k: places[k][1])
        for column in range(second)
    ]
    for row in zip(*columns_of, strict=False):
        top = max(places[key][1] for key in row)
        for key in row:
            places[key][1] = top


def raised_nodes(prompt: dict) -> list[str]:
    """Return the nodes that stand beside the note, above what is at its left: a Compare, so that
    its pictures are in sight after a run, and what saves one of them.
    """
    save = next((key for key, node in prompt.items() if "cover" in node["inputs"]), None)
    return [] if save is None else [prompt[save]["inputs"]["cover"][0], save]


class Way(NamedTuple):
    """The way of a link above a node, to an input of a node, from one place to another of the
    page's width; it may come from below, and go there.
    """

    node: str
    input: str
    start: float
    end: float
    top: float
    begins_low: bool
    ends_low: bool

    def seen_from(self, corner: list[float]) -> Way:
        left, top = corner
        return self._replace(start=self.start - left, end=self.end - left, top=self.top - top)


def lanes(prompt: dict, column_of: dict[str, int], places: dict[str, list[float]]) -> list[Way]:
    """Return ways above nodes for the links that would go behind them, and seem to be theirs."""
    long = [
        (value[0], key, name)
        for key, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and column_of[key] > column_of[value[0]] + 1
        if key not in raised_nodes(prompt)[1:]
    ]

    def above(node: str) -> int:
        """Return how many nodes are above one."""
        column = [places[key][1] for key, value in column_of.items() if value == column_of[node]]
        return sorted(column).index(places[node][1])

    def before(column: int, node: str) -> float:
        """Return the place left of a column where a link of a node goes up or down."""
        place = above(node)
        if place >= len(LOW_LANES):
            raise SystemExit(
                f"Node {node} is number {place + 1} of its column, and has a link to another than the"
                f" next one: LOW_LANES has lanes for {len(LOW_LANES)}. Add one."
            )
        left = min(places[key][0] for key, value in column_of.items() if value == column)
        return left - GAP_X / 2 + LOW_LANES[place]

    return [
        Way(
            key,
            name,
            before(column_of[source] + 1, source),
            before(column_of[key], key),
            -TITLE - BADGE - LANE * (n + 1),
            above(source) > 0,
            above(key) > 0,
        )
        for n, (source, key, name) in enumerate(reversed(long))
    ]


def ways_up(prompt: dict, raised: list[str], column_of: dict[str, int], places: dict) -> list[Way]:
    """Return the ways of a merge's links to raised nodes: up beside it, to the first one straight,
    to what saves it above that one.
    """
    compare, save = raised
    x, right = (places[key][0] - GAP_X / 2 + UP_LANE for key in raised)
    slot = list(prompt[compare]["inputs"]).index("merged")
    y = places[compare][1] + SLOT * (slot + 0.7)
    above = places[compare][1] - TITLE - BADGE - LANE
    return [
        Way(compare, "merged", x, x, y, begins_low=True, ends_low=False),
        Way(save, "merged", x, right, above, begins_low=True, ends_low=True),
    ]


def ways_down(prompt: dict, places: dict, sizes: dict) -> list[Way]:
    """Return ways round both nodes for a link to what stands below, and for those that go back to
    another row, the first of which is round the next one at its start, and in it at its end.
    """
    ways = []
    for key, node in prompt.items():
        down = [
            (name, value[0])
            for name, value in node["inputs"].items()
            if isinstance(value, list)
            and (prompt[value[0]]["class_type"], node["class_type"]) in BELOW
        ]
        if len(down) == 1:
            ((name, source),) = down
            right = places[source][0] + sizes[source][0]
            left, top = places[key]
            ways.append(
                Way(key, name, right + ROUND, left - ROUND, top - TITLE - CLEAR, True, True)
            )
        back = [
            (name, value[0])
            for name, value in node["inputs"].items()
            if isinstance(value, list)
            and (prompt[value[0]]["class_type"], node["class_type"]) == BACK
        ]
        for place, (name, source) in enumerate(back):
            right = places[source][0] + sizes[source][0]
            left, top = places[key]
            inner = len(back) - place
            ways.append(
                Way(
                    key,
                    name,
                    right + ROUND * inner,
                    left - (ROUND - 3) * (place + 1),
                    top - TITLE - BADGE - ROUND * inner + ROUND // 2,
                    begins_low=False,
                    ends_low=False,
                )
            )
    return ways


def room_below(prompt: dict, key: str) -> float:
    """Return the room below a node for what a run writes, and for Nodes 2.0 drawing it higher."""
    return ROOM_BELOW.get(prompt.get(key, {}).get("class_type"), 20)


def fixed_seeds(frontend: browser.Frontend) -> None:
    """Keep seeds as they are from run to run: a second run is taken from the cache."""
    frontend.page.evaluate(
        """app.graph.nodes.flatMap((node) => node.widgets ?? []).forEach((widget) => {
            if (widget.name === 'control_after_generate') widget.value = 'fixed';
        })"""
    )


def whole(frontend: browser.Frontend) -> dict[str, float]:
    """Show the whole graph, as large as the page allows, and return where it is on the page."""
    return frontend.page.evaluate(
        """async () => {
            const boxes = app.graph.nodes.map(({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]);
            const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])) - 20);
            const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])) + 20);
            const scale = Math.min((innerWidth - 100) / (right - left), (innerHeight - 220) / (bottom - top), 1);
            app.canvas.min_font_size_for_lod = 0;  // text, however small
            app.canvas.ds.scale = scale;
            app.canvas.ds.offset = [80 / scale - left, 130 / scale - top];
            app.canvas.setDirty(true, true);
            return { x: 80, y: 130, width: (right - left) * scale, height: (bottom - top) * scale };
        }"""
    )


def save(picture: bytes, path: Path, width: int = 1300) -> None:
    """Save a screenshot as JPEG, in the best quality that fits."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.LANCZOS)
    for quality in range(90, 30, -5):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size < MOST_BYTES:
            return
    raise SystemExit(f"{path} does not fit into {MOST_BYTES} bytes")


def make_workflows(chromium: object, address: str, names: list[str]) -> None:
    frontend = browser.Frontend(chromium, address, width=3200, height=1500)
    for number, template in enumerate(TEMPLATES, start=1):
        if names and template.name not in names:
            continue
        path = ROOT / "workflows" / "api" / f"{template.name}.json"
        prompt = json.loads(path.read_text(encoding="utf-8"))
        frontend.load(prompt, template.title)
        fixed_seeds(frontend)
        whole(frontend)  # what is out of sight has no height
        frontend.words_shown()
        arrange(frontend, prompt, template)
        text = json.dumps(opening(frontend.workflow(), template), indent=1, ensure_ascii=False)
        file = ROOT / "workflows" / f"{number} {template.title}.json"
        file.write_text(text + "\n", encoding="utf-8")
        print(file.name)


def opening(workflow: dict, template: Template) -> dict:
    """Return a workflow as a template opens: whole in a window of 1280 x 800, with the user's first
    checkpoint chosen.
    """
    workflow["extra"] |= {"ds": view(workflow["groups"]), "iteris_whole": True}
    for node in workflow["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            del node["widgets_values"]
    return workflow


def view(groups: list[dict]) -> dict:
    """Return scale and offset of the page that show a template whole in both renderers. Where a
    workflow has none, ComfyUI 0.3.75 fits it to the page and scatters its nodes in Nodes 2.0.
    """
    boxes = [group["bounding"] for group in groups]
    ends = [max(box[k] + box[k + 2] for box in boxes) for k in (0, 1)]
    places = (OPENS["left"], OPENS["top"])
    fits = [(WINDOW[k] - places[k] - MARGIN) / ends[k] for k in (0, 1)]
    scale = max(READABLE, round(min(OPENS["scale"], *fits), 2))
    return {"scale": scale, "offset": [round(place / scale) for place in places]}


def make_blueprint(chromium: object, address: str, names: list[str]) -> None:
    """Make the merge, the comparison and the saved file of the first template one node."""
    frontend = browser.Frontend(chromium, address)
    template = TEMPLATES[0]
    path = ROOT / "workflows" / "api" / f"{template.name}.json"
    prompt = json.loads(path.read_text(encoding="utf-8"))
    last: list[list[object]] = []
    for key, name in CHOSEN.items():
        previous = {"previous": last[-1]} if last else {}
        prompt[key] = {"class_type": "IterISLora", "inputs": {"lora_name": name, **previous}}
        last.append([key, 0])
    merge = next(node for node in prompt.values() if node["class_type"] == "IterISMerge")
    merge["inputs"] |= {"loras": "", "more_loras": last[-1]}
    frontend.load(prompt, template.title)
    frontend.page.evaluate(
        """([shown, outputs, title]) => {
            const loader = app.graph.nodes.find(({ type }) => type === 'CheckpointLoaderSimple');
            const inside = app.graph.nodes.filter((node) => node !== loader);
            const { subgraph, node } = app.graph.convertToSubgraph(new Set(inside));
            for (const [id, slot] of outputs) {
                const from = subgraph.getNodeById(id);
                const { name, type } = from.outputs[slot];
                subgraph.addOutput(name, type).connect(from.outputs[slot], from);
            }
            for (const [id, widget, name] of shown) {
                const to = subgraph.getNodeById(id);
                const slot = to.inputs.find((input) => input.widget?.name === widget);
                subgraph.addInput(name, slot.type).connect(slot, to);
            }
            subgraph.name = node.title = title;
            node.setSize([340, node.size[1]]);  // names of files are read
            app.graph.remove(loader);
        }""",
        [BLUEPRINT, [[2, 0], [2, 1], [3, 0]], template.title],
    )
    frontend.settle()
    workflow = frontend.workflow()
    workflow["extra"]["BlueprintDescription"] = template.does  # what the search for nodes shows
    text = json.dumps(workflow, indent=1, ensure_ascii=False)
    folder = ROOT / "subgraphs"
    folder.mkdir(exist_ok=True)
    (folder / f"{template.title}.json").write_text(text + "\n", encoding="utf-8")


def lowered(workflow: dict) -> dict:
    """Return a template with what stands beside its note beside its merge, for close-ups of both."""
    (merge,) = (node for node in workflow["nodes"] if node["type"] == "IterISMerge")
    right = merge["pos"][0] + merge["size"][0]
    for node in workflow["nodes"]:
        if node["pos"][0] > right:
            node["pos"][1] = merge["pos"][1]
    for way in ("reroutes", "linkExtensions"):
        del workflow["extra"][way]
    return workflow


def add_settings(frontend: browser.Frontend, merge: int) -> int:
    """Connect Merge settings to a merge, out of sight, and return its node."""
    return frontend.page.evaluate(
        """(id) => {
            const node = LiteGraph.createNode('IterISSettings');
            const merge = app.graph.getNodeById(id);
            node.pos = [merge.pos[0] - 3000, merge.pos[1] + 60];  // its link is level, behind other nodes
            app.graph.add(node);
            node.connect(0, merge, 'settings');
            return node.id;
        }""",
        merge,
    )


def small_model(frontend: browser.Frontend, merge: int, compare: int) -> None:
    """Set what the small model needs, and the demo's seed; all else stays as it is by default."""
    frontend.set_widgets(add_settings(frontend, merge), resolution=drawn.SIDE, cfg=drawn.CFG)
    size = {"width": drawn.SIDE, "height": drawn.SIDE}
    frontend.set_widgets(compare, **size, cfg=drawn.CFG, seed=drawn.SEED)


def close_news(page: Any) -> None:
    """Close what older frontends announce above the page."""
    if (news := page.get_by_text("Introducing Nodes 2.0")).count():
        news.locator("xpath=ancestor::*[count(.//button) > 1][1]//button").last.click()


def load_own(frontend: browser.Frontend) -> None:
    """Load a user's workflow, with two loaders of single LoRAs."""
    checkpoint = {"ckpt_name": "checkpoint.safetensors"}
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint}}
    for key, source, name in zip("23", "12", SUBJECTS, strict=True):
        inputs = {"model": [source, 0], "clip": [source, 1], "lora_name": f"{name}.safetensors"}
        inputs |= {"strength_model": 0.8, "strength_clip": 0.8}
        graph[key] = {"class_type": "LoraLoader", "inputs": inputs}
    graph["4"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["3", 1], "text": PROMPT}}
    frontend.load(graph, "My pictures")
    place = "places => Object.entries(places).forEach(([id, at]) => { app.graph.getNodeById(id).pos = at; })"
    frontend.page.evaluate(place, OWN_PLACES)
    frontend.show(1, left=110, top=180, scale=0.9)


def make_walkthrough(chromium: object, address: str, names: list[str]) -> None:
    """Take the pictures of a first merge, from the template to the report."""
    size = {"width": 1280, "height": 800}
    frontend = browser.Frontend(chromium, address, **size, Comfy_VueNodes_Enabled=True)
    page = frontend.page
    page.set_default_timeout(MOST_MS)
    folder = ROOT / "docs" / "img"
    title = f"1 {TEMPLATES[0].title}"
    merge, compare = 2, 3
    close_news(page)

    def shoot(name: str, shown: browser.Frontend = frontend) -> None:
        shown.settle(40)
        save(shown.page.screenshot(), folder / f"{name}.jpg")
        print(name, flush=True)

    load_own(frontend)
    header = page.locator('[data-node-id="3"] .lg-node-header')
    header.click(button="right", position={"x": 150, "y": 12})
    page.get_by_text("Merge these LoRAs (IterIS)").hover()
    shoot("0_own")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Templates").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(PACK, exact=True).click()
    dialog.get_by_text(title).first.wait_for()
    frontend.pictures_shown()
    shoot("1_template")
    dialog.get_by_text(title).first.click()
    page.wait_for_function("app.graph.nodes.some((node) => node.type === 'IterISMerge')")
    page.locator(".iteris-missing").nth(1).wait_for()
    page.mouse.move(*NOWHERE)
    frontend.show(merge, left=290, top=405, scale=0.63)  # as large as the page shows it whole
    shoot("2_workflow")
    frontend.show(merge, **MERGE_SECOND)
    files = page.locator(".iteris-row .iteris-lora")
    files.first.click()
    first, second = (page.locator(".iteris-option", has_text=name) for name in SUBJECTS)
    first.click()
    second.wait_for()
    shoot("3_loras")
    second.click()
    small_model(frontend, merge, compare)
    page.mouse.move(*NOWHERE)
    frontend.run()
    page.locator(".iteris-block").nth(2).wait_for(state="attached")  # its details are closed
    shoot("4_running")
    page.wait_for_selector(".iteris-file")
    page.wait_for_selector(".iteris-text >> text=read back")
    frontend.pictures_shown()
    frontend.show(merge, **MERGE_FIRST)
    page.wait_for_timeout(NOTICE_MS)
    shoot("5_report")
    frontend.show(compare, left=400, top=130, scale=0.82)
    shoot("6_compare")
    page.set_viewport_size(TALL)
    page.locator(".iteris-details summary", has_text="layers").click()
    frontend.show(merge, left=300, top=-160, scale=0.9)
    page.locator('.iteris-block[data-block="MID"]').hover()
    shoot("7_details")
    canvas = browser.Frontend(chromium, address, **size)
    canvas.load(frontend.workflow(), title)
    canvas.page.locator(".iteris-kept").first.wait_for()
    canvas.show(merge, **MERGE_FIRST)
    shoot("8_canvas", canvas)


def clip(frontend: browser.Frontend, nodes: Sequence[int], name: str) -> None:
    """Save what is seen of some nodes, and of nothing beside them."""
    boxes = frontend.page.evaluate(
        """(nodes) => nodes.map((id) => {
            const { pos, size } = app.graph.getNodeById(id);
            const { scale, offset } = app.canvas.ds;
            const place = [0, 1].map((k) => (pos[k] + offset[k]) * scale);
            return [place[0], place[1] - 30 * scale, place[0] + size[0] * scale, place[1] + size[1] * scale];
        })""",
        list(nodes),
    )
    left, top = (min(box[k] for box in boxes) - MARGIN for k in (0, 1))
    right, bottom = (max(box[k] for box in boxes) + MARGIN for k in (2, 3))
    seen = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    save(frontend.page.screenshot(clip=seen), ROOT / "docs" / "img" / f"{name}.jpg")


def make_nodes(chromium: object, address: str, names: list[str]) -> None:
    """Take the pictures of the loader, and of it beside the merge with an open row."""
    frontend = browser.Frontend(chromium, address, width=1280, height=1000)
    page = frontend.page
    loader, load, merge, text = "1", "2", "3", "4"
    of_checkpoint = {"model": [loader, 0], "clip": [loader, 1]}
    robot, owl, style = (name.removesuffix(".safetensors") for name in drawn.LORAS)
    loaded = f"<lora:{robot}:0.8>\n<lora:{owl}:1>\n# <lora:{style}:0.6>"
    merged = f"<lora:{robot}:0.8>\n<lora:{style}:0.6>"
    checkpoint = {"ckpt_name": "checkpoint.safetensors"}
    frontend.load(
        {
            loader: {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint},
            load: {"class_type": "IterISLoad", "inputs": {**of_checkpoint, "loras": loaded}},
            merge: {"class_type": "IterISMerge", "inputs": {"loras": merged}},
            text: {"class_type": "CLIPTextEncode", "inputs": {"clip": [load, 1], "text": ""}},
        },
        "nodes",
    )
    frontend.page.evaluate(
        """(places) => {
            for (const [id, pos, width] of places) {
                const node = app.graph.getNodeById(id);
                node.pos = pos;
                node.setSize([width, node.computeSize()[1]]);
            }
        }""",
        [[1, [-900, 0], 300], [4, [1500, 0], 300], [2, [0, 0], 400], [3, [440, 0], 420]],
    )
    frontend.show(int(load), left=160, top=240)
    frontend.settle(40)
    clip(frontend, [int(load)], "load")
    for place in (0, 3):  # the first row of each
        page.locator(".iteris-opener").nth(place).click()
    page.evaluate("app.canvas.deselectAll()")
    # those that pass behind a node seem to end in its sockets
    page.evaluate(
        "app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK; app.canvas.setDirty(true, true)"
    )
    frontend.settle(40)
    clip(frontend, [int(load), int(merge)], "nodes")


class Film:
    """Close-ups of a page with a pointer, and below them a line that tells what is done, as an
    animated picture.

    Args:
        frontend: The page, in sharp letters.
    """

    def __init__(self, frontend: browser.Frontend) -> None:
        self.frontend = frontend
        self.pictures: list[Image.Image] = []
        self.durations: list[int] = []
        self.at = (640.0, 700.0)
        self.line = ""
        self.part = (0.0, 0.0, float(WINDOW[0]))  # of the page that is seen: left, top, width
        self.page = Image.new("RGB", (1, 1))

    def say(self, line: str, duration: int) -> None:
        """Show what is seen now with another line, for so many milliseconds."""
        self.line = line
        self.take(duration)

    def take(self, duration: int = FRAME) -> None:
        """Add what is seen now, for so many milliseconds."""
        self.page = Image.open(io.BytesIO(self.frontend.page.screenshot())).convert("RGB")
        self.add(duration)

    def add(self, duration: int, pressed: bool = False) -> None:
        """Add what was seen last, from where the camera is now."""
        left, top, width = self.part
        scale = FILM[0] / width
        seen = [SHARP * at for at in (left, top, left + width, top + FILM[1] / scale)]
        picture = Image.new("RGB", (FILM[0], FILM[1] + SUBTITLE), "#101216")
        picture.paste(self.page.resize(FILM, Image.LANCZOS, seen))
        pen = ImageDraw.Draw(picture)
        x, y = (self.at[0] - left) * scale, (self.at[1] - top) * scale
        if pressed:
            pen.ellipse((x - RING, y - RING, x + RING, y + RING), outline="#ffd54a", width=4)
        pen.polygon([(x + u, y + v) for u, v in POINTER], fill="white", outline="black")
        pen.rectangle((0, FILM[1], FILM[0], picture.height), fill="#101216")
        middle = (FILM[0] // 2, FILM[1] + SUBTITLE // 2)
        pen.text(middle, self.line, "white", ImageFont.load_default(32), "mm")
        self.pictures.append(picture)
        self.durations.append(duration)

    def cut(self, left: float, top: float, width: float) -> None:
        """Put the camera to a part of the page, or as near to it as the page goes."""
        left, top = (
            max(0, min(at, whole - size))
            for at, whole, size in zip(
                (left, top), WINDOW, (width, width * FILM[1] / FILM[0]), strict=True
            )
        )
        self.part = (left, top, width)

    def look(self, left: float, top: float, width: float) -> None:
        """Move the camera there."""
        start = self.part
        self.cut(left, top, width)
        end = self.part
        for share in CAMERA:
            self.part = tuple(a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.add(FRAME)

    def move(self, x: float, y: float, steps: int = 4) -> None:
        """Move the pointer."""
        (from_x, from_y), self.at = self.at, (x, y)
        for step in range(1, steps + 1):
            share = step / steps
            self.at = (from_x + share * (x - from_x), from_y + share * (y - from_y))
            self.frontend.page.mouse.move(*self.at)
            self.take()

    def click(self, locator: Any, duration: int = 380) -> None:
        """Move to the middle of an element, click, and look at what comes of it."""
        box = locator.bounding_box()
        self.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.add(80, pressed=True)
        self.frontend.page.mouse.click(*self.at)
        self.frontend.settle()
        self.take(duration)

    def thin(self, begin: int, most: int) -> None:
        """Keep so many pictures of those from one on."""
        found = len(self.pictures) - begin
        kept = [begin + i * found // most for i in range(most)]
        self.pictures[begin:] = [self.pictures[i] for i in kept]
        self.durations[begin:] = [self.durations[i] for i in kept]

    def begin_with(self, line: str, duration: int) -> None:
        """Show what is seen now at the film's beginning, with a line of its own."""
        now, self.line = self.line, line
        self.add(duration)
        self.line = now
        for each in (self.pictures, self.durations):
            each.insert(0, each.pop())

    def save(self, path: Path) -> None:
        first, *others = self.pictures
        how = {"quality": 68, "method": 4, "loop": 0}
        first.save(path, save_all=True, append_images=others, duration=self.durations, **how)


def make_film(chromium: object, address: str, names: list[str]) -> None:
    """Film a merge: files are chosen, it runs, its verdict, stacked beside merged, and the file in
    use.
    """
    merge, compare = 2, 3
    width, height = WINDOW
    frontend = browser.Frontend(
        chromium,
        address,
        width,
        height,
        sharpness=SHARP,
        Comfy_VueNodes_Enabled=True,
        Comfy_EnableTooltips=False,
    )
    page = frontend.page
    page.set_default_timeout(MOST_MS)
    close_news(page)
    title = f"1 {TEMPLATES[0].title}"
    workflow = json.loads((ROOT / "workflows" / f"{title}.json").read_text(encoding="utf-8"))
    frontend.load(lowered(workflow), title)
    small_model(frontend, merge, compare)
    frontend.show(merge, **MERGE_FILMED)

    def node(kind: str) -> Any:
        found = page.evaluate("kind => app.graph.nodes.find(({ type }) => type === kind).id", kind)
        return page.locator(f"[data-node-id='{found}']")

    film = Film(frontend)
    film.cut(64, 82, 830)
    film.say("Merge three LoRAs into one", 1200)
    film.look(66, 172, 690)
    film.line = "Choose the LoRAs"
    film.click(page.locator(".iteris-row .iteris-lora").first)
    for name in FILMED[:2]:  # the second row's list opens by itself
        film.click(page.get_by_role("option", name=name, exact=True))
    film.click(page.locator(".iteris-add"))
    film.click(page.get_by_role("option", name=FILMED[2], exact=True), 600)
    film.line = "together: for two subjects in one picture"
    film.click(page.get_by_role("switch", name="together"), 700)
    film.line = "A prompt for the test picture"
    film.look(440, 110, 720)
    film.click(node("IterISCompare").locator("textarea").first, FRAME)
    for letter in PROMPT:
        page.keyboard.type(letter)
        film.take(30)
    film.add(400)
    film.line = "Run"
    film.look(720, 0, 560)
    film.click(frontend.run_button())
    film.line = "Each LoRA is measured on its own prompts (shortened)"
    film.look(62, 390, 530)
    begin = len(film.pictures)
    while not page.locator(".iteris-kept").count():
        if page.get_by_text("Diffusion model").count():
            film.line = "Every layer is solved (shortened)"
        film.take(150)
        page.wait_for_timeout(WAIT_MS)
    film.thin(begin, WAITS)
    page.wait_for_selector(".iteris-slider:not(.iteris-live) .iteris-pair:visible")
    page.wait_for_selector(".iteris-see:visible")
    frontend.pictures_shown()
    film.cut(62, 422, 545)
    film.say("The verdict, a hint: Compare is the proof", 3600)
    film.click(page.locator(".iteris-see"), FRAME)
    box = page.locator(".iteris-pair").bounding_box()
    middle, high = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drawn = page.locator(".iteris-slider .iteris-pictures").bounding_box()
    seen = max((box["height"] + 80) * FILM[0] / FILM[1], drawn["width"] + 24)
    film.line = "The three LoRAs stacked: they spoil each other"
    film.look(drawn["x"] - 12, box["y"] - 45, seen)
    film.move(middle, high)
    film.begin_with("Three LoRAs: stacked (left), and merged into one", 1800)
    page.mouse.down()
    film.move(box["x"] + 0.97 * box["width"], high, steps=10)
    film.add(1000)
    film.line = "Merged: a robot and an owl"
    film.move(box["x"] + 0.03 * box["width"], high, steps=16)
    film.add(1400)
    page.mouse.up()
    frontend.show(merge, **MERGE_FILMED)
    load = page.locator(".iteris-report .iteris-load")
    film.cut(62, load.bounding_box()["y"] - 200, 530)
    film.say("Use the new LoRA: Load this", 500)
    film.click(load, FRAME)
    frontend.settle(40)
    film.cut(60, 40, 1220)
    film.say("It is loaded, ready to draw", 600)
    box = node("IterISLoad").bounding_box()
    film.look(box["x"] - 15, box["y"] - 45, 590)
    film.add(800)
    film.line = "Run"
    film.look(640, 20, 640)
    film.click(frontend.run_button(), 300)
    picture = node("SaveImage").locator("img")
    picture.wait_for()
    frontend.pictures_shown()
    page.wait_for_timeout(NOTICE_MS)
    film.say("One LoRA now draws both", 500)
    box = picture.bounding_box()
    film.look(box["x"] - 140, box["y"] - 65, 370)
    film.add(2500)
    film.save(ROOT / "docs" / "img" / "merge.webp")
    print(f"{sum(film.durations) / 1000:.1f} s, {len(film.pictures)} pictures")


def main() -> None:
    what, *names = sys.argv[1:]
    demo_server.PACK_NAME = PACK
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        models = base / "models"
        weights = WEIGHTS
        drawn.write_checkpoint(models / "checkpoints" / "checkpoint.safetensors", weights)
        list_transformer(models)
        for name in drawn.LORAS:
            link(weights / name, models / "loras" / name)
        with (
            ComfyServer(
                find_comfyui(cache_folder()),
                base,
                base / "server.log",
                device="cpu",
            ) as server,
            browser.chromium(browser.find_chromium()) as chromium,
        ):
            {
                "workflows": make_workflows,
                "blueprint": make_blueprint,
                "walkthrough": make_walkthrough,
                "nodes": make_nodes,
                "film": make_film,
            }[what](chromium, server.address, names)


if __name__ == "__main__":
    main()
