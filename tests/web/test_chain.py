"""What buttons change in the graph: nodes and links are laid out so that they can be read, and Undo takes it back."""

import json
import re

import pytest
from browser import TRACKER
from PIL import Image
from playwright.sync_api import expect

LOADER, LATENT, ENCODER, SAMPLER = "2", "5", "3", "6"
MODEL = {"model": ["1", 0], "clip": ["1", 1]}
ROWS = "<lora:first:1>\n<lora:second:1>"
WORDS = "demo1, demo2"  # their trigger words
SAMPLING = {"seed": 1, "steps": 2, "denoise": 1}
SAMPLING |= {"sampler_name": "euler", "scheduler": "normal"}
PLACES = {"1": [0, 100], LOADER: [340, 0], ENCODER: [800, 0], "4": [800, 260], LATENT: [340, 300]}
PLACES |= {SAMPLER: [1260, 0], "7": [1590, 0], "8": [1850, 0]}
# the ends of links that seem to go to a node that they only go behind; without points, they are curves
HIDDEN = """() => app.graph.nodes.flatMap((node) => (node.inputs ?? []).flatMap((input, slot) => {
    const link = app.graph.getLink(input.link);
    if (!link) return [];
    const from = app.graph.getNodeById(link.origin_id);
    const way = [node.getInputPos(slot)];
    for (let id = link.parentId; id != null; id = app.graph.getReroute(id).parentId)
        way.unshift(app.graph.getReroute(id).pos);
    way.unshift(from.getOutputPos(link.origin_slot));
    const inside = ([x, y], { pos, size }) =>
        pos[0] < x && x < pos[0] + size[0] && pos[1] - 30 < y && y < pos[1] + size[1];
    const points = way.slice(1).flatMap((end, i) =>
        Array.from({ length: 100 }, (_, k) => way[i].map((start, axis) => start + ((end[axis] - start) * k) / 100)));
    const others = app.graph.nodes.filter((other) => other !== from && other !== node);
    return others.some((other) => points.some((point) => inside(point, other))) ? [`${node.type} ${input.name}`] : [];
}))"""
OVER_A_BORDER = """() => app.graph.nodes.filter(({ pos, size }) => app.graph.groups.some((group) => {
    const starts = [pos[0], pos[1] - 30];
    const meets = [0, 1].every((k) => starts[k] < group.pos[k] + group.size[k] && group.pos[k] < pos[k] + size[k]);
    const holds = [0, 1].every((k) => starts[k] >= group.pos[k] && pos[k] + size[k] <= group.pos[k] + group.size[k]);
    return meets && !holds;
})).map(({ type }) => type)"""
# how far from nodes the parts of links are that go down or up beside them
BESIDE = """() => {
    const way = [...app.graph.reroutes.values()].map((end) => [app.graph.getReroute(end.parentId), end]);
    return way.filter(([start, end]) => start && start.pos[0] === end.pos[0]).flatMap(([start, end]) => {
        const [x, from, to] = [end.pos[0], ...[start.pos[1], end.pos[1]].sort((a, b) => a - b)];
        const beside = app.graph.nodes.filter(({ pos, size }) => from < pos[1] + size[1] && pos[1] - 30 < to);
        return beside.map(({ pos, size }) => Math.max(pos[0] - x, x - pos[0] - size[0]));
    });
}"""
# how far apart parallel parts of links are that lie side by side, but for those that go on from the same point
LANES = """() => {
    const way = [...app.graph.reroutes.values()].map((end) => [app.graph.getReroute(end.parentId), end]);
    return [0, 1].flatMap((axis) => {
        const along = ([start, end]) => [start, end].map(({ pos }) => pos[1 - axis]).sort((a, b) => a - b);
        const lines = way.filter(([start, end]) => start && start.pos[axis] === end.pos[axis])
            .map((ends) => [ends[1].pos[axis], ...along(ends), ends[0].id]);
        const meet = (one, other) => one[1] < other[2] && other[1] < one[2] && one[3] !== other[3];
        return lines.flatMap((one, i) => lines.slice(i + 1).filter((other) => meet(one, other))
            .map((other) => Math.abs(one[0] - other[0])));
    });
}"""
ARE_SEEN = """kinds => {
    const { scale, offset } = app.canvas.ds;
    const { left, top, right, bottom } = document.querySelector(".graph-canvas-panel").getBoundingClientRect();
    const place = ([x, y]) => [x, y].map((at, axis) => (at + offset[axis]) * scale);
    return app.graph.nodes.filter(({ type }) => kinds.includes(type)).every(({ pos, size }) => {
        const [start, end] = [place([pos[0], pos[1] - 30]), place([pos[0] + size[0], pos[1] + size[1]])];
        return start[0] >= left && start[1] >= top && end[0] <= right && end[1] <= bottom;
    });
}"""
READABLE = 0.572  # the scale from which on Nodes 2.0 and the canvas draw letters
REPORTED = {"iteris_report": [{"layers": [], "fidelity": [], "unmatched": {}, "notes": []}]}
OF_MERGES = ("IterISCompare", "IterISSave")
ONE = "name => app.graph.nodes.find(({ type }) => type === name)"


def plain(loader, cfg=7):
    """Return a picture that is drawn with LoRAs: a loader of them, or a merge."""
    clip = {"clip": [LOADER, 1]}
    sampled = {"positive": [ENCODER, 0], "negative": ["4", 0], "latent_image": [LATENT, 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "checkpoint.safetensors"}),
        LOADER: (loader, MODEL | {"loras": ROWS}),
        ENCODER: ("CLIPTextEncode", {"text": WORDS, **clip}),
        "4": ("CLIPTextEncode", {"text": "rain", **clip}),
        LATENT: ("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}),
        SAMPLER: ("KSampler", {"model": [LOADER, 0], **sampled, **SAMPLING, "cfg": cfg}),
        "7": ("VAEDecode", {"samples": [SAMPLER, 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "x"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def load_placed(frontend, graph, name, places):
    frontend.load(graph, name)
    place = "places => Object.entries(places).forEach(([id, at]) => { app.graph.getNodeById(id).pos = at; })"
    frontend.page.evaluate(place, {key: places[key] for key in graph})
    frontend.show(int(LOADER), left=300, top=150, scale=0.5)
    frontend.keep()


def load_plain(frontend, loader="IterISLoad", cfg=7):
    places = PLACES if loader == "IterISLoad" else PLACES | {LATENT: [340, 1200]}
    load_placed(frontend, plain(loader, cfg), "plain", places)


# how far a link goes below its end at Compare
LOWEST_OF_VAE = """(() => {
    const compare = app.graph.nodes.find(({ type }) => type === 'IterISCompare');
    const place = compare.findInputSlot('vae');
    let lowest = -Infinity;
    for (let { parentId } = app.graph.getLink(compare.inputs[place].link); parentId; ) {
        const point = app.graph.getReroute(parentId);
        lowest = Math.max(lowest, point.pos[1]);
        ({ parentId } = point);
    }
    return Math.round(lowest - compare.getInputPos(place)[1]);
})()"""


def kinds(frontend):
    return sorted(node["class_type"] for node in frontend.prompt().values())


def how_laid_out(frontend):
    """Return links behind nodes, nodes over a group's border, and nodes that cover one another."""
    hidden, over = frontend.page.evaluate(HIDDEN), frontend.page.evaluate(OVER_A_BORDER)
    return set(hidden), set(over), {tuple(pair) for pair in frontend.overlaps()}


def new_in(frontend, then):
    """Return what of `how_laid_out` was not there then."""
    return [now - had for now, had in zip(how_laid_out(frontend), then, strict=True)]


def wait_until_seen(frontend, *kinds_of_nodes):
    frontend.page.wait_for_function(ARE_SEEN, arg=kinds_of_nodes)


def merge_these(frontend):
    frontend.page.locator(".iteris-merge-these").press("Enter")
    frontend.page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'IterISCompare')")
    frontend.still("JSON.stringify([app.graph.serialize(), app.canvas.ds.state])")


@pytest.mark.parametrize("where", [11, "11 of few steps", 12, "plain"])
def test_a_loader_becomes_a_merge_whose_links_go_behind_no_node(in_renderer, picture, where):
    frontend = in_renderer
    asked = "**/iteris/model?name=flux1-dev.safetensors"  # here the file is empty
    known = {"family": "Flux.1", "fits": [], "guidance": 1, "resolution": 512}
    frontend.page.route(asked, lambda route: route.fulfill(json=known))
    if where != "plain":
        frontend.load_template(12 if where == 12 else 11)
        if where == "11 of few steps":
            (sampler,) = (key for key, each in frontend.prompt().items() if "cfg" in each["inputs"])
            frontend.set_widgets(int(sampler), cfg=1)  # Merge settings comes, too
        # all is seen in Nodes 2.0, which measures nothing else
        frontend.show(1, left=100, top=300, scale=0.5)
        frontend.keep()
    else:
        load_plain(frontend)
    # not all nodes of other packs have the room that Nodes 2.0 takes
    before, then = kinds(frontend), how_laid_out(frontend)
    near = min(frontend.page.evaluate(BESIDE), default=99)
    points = "app.graph.reroutes.size"
    scale, had = frontend.page.evaluate(f"[app.canvas.ds.scale, {points}]")
    merge_these(frontend)
    picture(frontend, f"merge_these_{where}")
    assert frontend.page.evaluate("app.canvas.ds.scale") == scale
    wait_until_seen(frontend, "IterISMerge", *OF_MERGES)
    assert new_in(frontend, then) == [set()] * 3
    assert min(frontend.page.evaluate(BESIDE)) >= min(near, 6), "none seems to be a node's edge"
    assert frontend.page.evaluate(points) <= had + 7
    if where != "plain":
        # its loader may be below; Nodes 2.0 places sockets a little later
        assert where == 12 or frontend.page.evaluate(LOWEST_OF_VAE) < 5
        tops, bottoms = (set(ends[:-1]) for ends in frontend.page.evaluate(GROUPS))
        # Nodes 2.0 draws Merge settings higher than it is when the others get their places
        is_higher = where == "11 of few steps" and frontend.page.evaluate("LiteGraph.vueNodesMode")
        assert len(tops) == 1
        if where == "11 of few steps":
            place = f"(name => Math.round(({ONE})(name).pos[0]))"
            settings, loader = frontend.page.evaluate(
                f"['IterISSettings', 'CheckpointLoaderSimple'].map({place})"
            )
            assert settings == loader, "in its column"
        assert is_higher or len(bottoms) == 1
        *lefts, left = frontend.page.evaluate(
            "app.graph.groups.map(({ pos }) => Math.round(pos[0]))"
        )
        assert left in lefts, "one begins below another one"
        assert frontend.page.evaluate("app.graph.groups.at(-1).title") == "4. See and save"
    merged = kinds(frontend), frontend.page.evaluate(points)
    assert "IterISMerge" in merged[0]
    frontend.undo()
    assert kinds(frontend) == before, "in one step"
    frontend.undo("redo")
    assert (kinds(frontend), frontend.page.evaluate(points)) == merged
    frontend.page.unroute(asked)
    assert frontend.errors == []


def choose_in_menu(frontend, node_id, entry, picture=None):
    """Choose an entry of ours in the menu of a node of others."""
    frontend.settle(20)
    page = frontend.page
    if is_vue := page.evaluate("LiteGraph.vueNodesMode"):
        page.locator(f'[data-node-id="{node_id}"] .lg-node-header').click(button="right")
    else:
        at = "id => app.graph.getNodeById(id).pos.map((at, k) => (at + app.canvas.ds.offset[k]) * app.canvas.ds.scale)"
        x, y = page.evaluate(at, node_id)
        page.mouse.click(x + 60, y - 8, button="right")
    page.get_by_text(re.compile("^(Remove|Delete)$")).locator("visible=true").first.wait_for()
    if picture:
        picture(frontend, f"loaders_menu_{node_id}")
    item = page.get_by_text(f"{entry} (IterIS)")
    if is_vue and not item.count():
        pytest.skip("the menu of older frontends has no entries of others in Nodes 2.0")
    item.click()


def load_chain(frontend):
    """Load a picture drawn with loaders of single LoRAs: 11, 12 for the model alone, bypassed, and 13."""
    graph = plain("IterISLoad")
    del graph[LOADER]
    names = {"first": ("11", ["1", 0]), "second": ("12", ["11", 0]), "third": ("13", ["12", 0])}
    for name, (key, model) in names.items():
        inputs = {"lora_name": f"{name}.safetensors", "model": model, "strength_model": 0.8}
        graph[key] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    for key, source in (("11", ["1", 1]), ("13", ["11", 1])):
        graph[key]["class_type"] = "LoraLoader"
        graph[key]["inputs"] |= {"clip": source, "strength_clip": 0.5}
    graph[ENCODER]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["13", 1]
    graph[SAMPLER]["inputs"]["model"] = ["13", 0]
    places = PLACES | {"11": [340, 0], "12": [700, 0], "13": [1060, 0], LATENT: [340, 300]}
    places |= {
        key: [x + 660, y]
        for key, (x, y) in PLACES.items()
        if key in (ENCODER, "4", SAMPLER, "7", "8")
    }
    frontend.load(graph, "loaders")
    workflow = frontend.workflow()
    for node in workflow["nodes"]:
        node["pos"] = places[str(node["id"])]
    # Nodes 2.0 of older frontends draws a node where it was added
    frontend.load(workflow, "loaders")
    frontend.page.evaluate("app.graph.getNodeById(12).mode = 4")
    frontend.show(11, left=300, top=200, scale=0.7)
    frontend.keep()


IN_ROWS = "<lora:first:0.8:0.5>\n# <lora:second:0.8:0>\n<lora:third:0.8:0.5>"


@pytest.mark.parametrize("clicked", ["11", "13"])
def test_loaders_of_single_loras_become_rows_and_a_merge(in_renderer, picture, clicked):
    frontend = in_renderer
    load_chain(frontend)
    before, then = frontend.prompt(), how_laid_out(frontend)
    for entry, kind in (("Load LoRAs in rows", "IterISLoad"), ("Merge these LoRAs", "IterISMerge")):
        choose_in_menu(frontend, clicked, entry, picture)
        frontend.page.wait_for_function(f"!!({ONE})('{kind}')")
        frontend.settle(60)
        picture(frontend, f"loaders_{kind}_{clicked}")
        sent = frontend.prompt()
        ((key, made),) = ((k, n["inputs"]) for k, n in sent.items() if n["class_type"] == kind)
        assert {"loras": IN_ROWS, **MODEL}.items() <= made.items()
        assert sent[SAMPLER]["inputs"]["model"] == [key, 0]
        assert [sent[text]["inputs"]["clip"] for text in (ENCODER, "4")] == [[key, 1]] * 2
        assert not {"11", "12", "13"} & sent.keys()
        assert new_in(frontend, then)[1:] == [set()] * 2
        frontend.keep()
        frontend.undo()
        assert frontend.prompt() == before, "in one step"
    assert frontend.errors == []


# a node says the strength of 12
SAID_ELSEWHERE = """() => {
    const said = LiteGraph.createNode("PrimitiveFloat");
    app.graph.add(said);
    const loader = app.graph.getNodeById(12);
    said.connect(0, loader, loader.inputs.findIndex(({ name }) => name === "strength_model"));
}"""
BRANCH = "() => app.graph.getNodeById(11).connect(1, app.graph.getNodeById(4), 0)"
LEFT = {
    "said": (SAID_ELSEWHERE, "13", "<lora:third:0.8:0.5>", (["11", 0], ["11", 1])),
    "branch": (BRANCH, "12", "<lora:first:0.8:0.5>\n# <lora:second:0.8:0>", (["1", 0], ["1", 1])),
}


@pytest.mark.parametrize("why", LEFT)
def test_loaders_with_something_else_between_them_are_left_and_the_page_says_so(frontend, why):
    load_chain(frontend)
    change, clicked, text, before = LEFT[why]
    frontend.page.evaluate(change)
    choose_in_menu(frontend, clicked, "Load LoRAs in rows")
    told = frontend.page.locator(".p-toast-message", has_text="Not all loaders are in the rows")
    told.get_by_role("button").click()
    (made,) = (n["inputs"] for n in frontend.prompt().values() if n["class_type"] == "IterISLoad")
    assert (made["loras"], (made["model"], made["clip"])) == (text, before)
    told.wait_for(state="hidden")
    assert frontend.errors == []


# a node of rgthree's, which has no CLIP, instead of the three loaders
POWER = """([sampler, rows]) => {
    class Power extends LiteGraph.LGraphNode {
        constructor() {
            super("Power Lora Loader (rgthree)");
            this.comfyClass = "Power Lora Loader (rgthree)";
            for (const [name, type] of [["model", "MODEL"], ["clip", "CLIP"]]) {
                this.addInput(name, type);
                this.addOutput(type, type);
            }
            rows.forEach((value, i) => this.addCustomWidget({ name: `lora_${i}`, type: "custom", value, options: {} }));
        }
    }
    LiteGraph.registerNodeType("Power Lora Loader (rgthree)", Power);
    for (const id of [11, 12, 13]) app.graph.remove(app.graph.getNodeById(id));
    const node = LiteGraph.createNode("Power Lora Loader (rgthree)");
    node.pos = [340, 0];
    app.graph.add(node);
    app.graph.getNodeById(1).connect(0, node, 0);
    node.connect(0, app.graph.getNodeById(sampler), 0);
    [3, 4].forEach((id) => app.graph.getNodeById(1).connect(1, app.graph.getNodeById(id), 0));
    app.extensions.find(({ name }) => name === "IterIS.LoraMerge").nodeCreated(node);
    return node.id;
}"""


def test_a_loader_of_many_loras_becomes_a_merge_with_the_clip_that_texts_are_encoded_with(frontend):
    load_chain(frontend)
    rows = [{"on": True, "lora": "first.safetensors", "strength": 0.7, "strengthTwo": None}]
    rows += [{"on": False, "lora": "second.safetensors", "strength": 1, "strengthTwo": 0.5}]
    rows += [{"on": True, "lora": "third.safetensors", "strength": 1, "strengthTwo": None}]
    rows += [{"on": True, "lora": "None", "strength": 1, "strengthTwo": None}]
    power = frontend.page.evaluate(POWER, [SAMPLER, rows])
    choose_in_menu(frontend, power, "Merge these LoRAs")
    frontend.page.wait_for_function(f"!!({ONE})('IterISMerge')")
    sent = frontend.prompt()
    (made,) = (n["inputs"] for n in sent.values() if n["class_type"] == "IterISMerge")
    text = "<lora:first:0.7:0>\n# <lora:second:1:0>\n<lora:third:1:0>"
    assert {"loras": text, **MODEL}.items() <= made.items()
    assert [sent[node]["inputs"]["clip"] for node in (ENCODER, "4")] == [["1", 1]] * 2
    assert frontend.errors == []


# where groups begin and end
GROUPS = "[0, 1].map((end) => app.graph.groups.map(({ pos, size }) => Math.round(pos[1] + end * size[1])))"
# how far the last group is from all others
APART = """(() => {
    const ends = ({ pos, size }) => [0, 1].map((axis) => [pos[axis], pos[axis] + size[axis]]);
    const [last, ...others] = [...app.graph.groups].reverse().map(ends);
    const between = ([from, to], axis) => Math.max(last[axis][0] - to, from - last[axis][1]);
    return Math.min(...others.map((other) => Math.max(...other.map(between))));
})()"""


def test_what_comes_with_a_merge_is_seen_and_moves_nothing(in_renderer, picture):
    frontend = in_renderer
    size = frontend.page.viewport_size
    frontend.page.set_viewport_size({"width": 1280, "height": 800})  # that the template fits
    frontend.load_template(11)
    if frontend.page.evaluate(f"({ONE})('SaveImage').pos[0] > 1600"):
        # Nodes 2.0 of older frontends draws a template 1.2 times as large
        frontend.page.set_viewport_size({"width": 1600, "height": 1000})
    places = "app.graph.nodes.map(({ type, pos }) => [type, ...pos]).filter(([type]) => !type.startsWith('IterIS'))"
    before = frontend.page.evaluate(places)
    merge_these(frontend)
    picture(frontend, "merge_these_seen")
    wait_until_seen(frontend, "IterISMerge", "IterISCompare")
    after, scale, apart = frontend.page.evaluate(f"[{places}, app.canvas.ds.scale, {APART}]")
    frontend.page.set_viewport_size(size)
    assert after == before
    assert scale >= READABLE
    assert apart >= 10, "as the template's groups"
    assert frontend.errors == []


# how far the groups' titles and left borders are from where they would be cut; the least
UNCUT = """(() => {
    const { ds: { scale, offset }, graph, canvas } = app.canvas;
    const [page, free] = [canvas, document.querySelector(".graph-canvas-panel")].map((each) => each.getBoundingClientRect());
    const starts = [free.left - page.left, free.top - page.top];
    return Math.min(...graph.groups.flatMap(({ pos }) => starts.map((start, k) => (pos[k] + offset[k]) * scale - start)));
})()"""


@pytest.mark.parametrize(("width", "height", "least"), [(1920, 1080, 0.8), (1280, 800, 0.585)])
def test_what_comes_with_a_merge_is_read_with_ease_and_no_group_is_cut(
    in_renderer, picture, width, height, least
):
    frontend = in_renderer
    size = frontend.page.viewport_size
    frontend.page.set_viewport_size({"width": width, "height": height})
    frontend.load_template(11)
    frontend.settle(20)
    opened = frontend.page.evaluate("app.canvas.ds.scale")
    merge_these(frontend)
    picture(frontend, f"merge_these_{width}")
    wait_until_seen(frontend, "IterISMerge", "CheckpointLoaderSimple", *OF_MERGES)
    scale, uncut = frontend.page.evaluate(f"[app.canvas.ds.scale, {UNCUT}]")
    frontend.page.set_viewport_size(size)
    assert least <= scale <= opened
    assert uncut >= 0
    assert frontend.errors == []


def test_a_template_opens_so_that_its_letters_are_drawn(in_renderer, picture):
    frontend = in_renderer
    size = frontend.page.viewport_size
    frontend.page.set_viewport_size({"width": 1280, "height": 800})
    frontend.load_template(1)
    if frontend.page.evaluate(f"({ONE})('IterISSave').pos[0] > 1600"):
        # Nodes 2.0 of older frontends draws a template 1.2 times as large
        frontend.page.set_viewport_size({"width": 1536, "height": 960})
    wait_until_seen(frontend, "IterISMerge", *OF_MERGES)
    picture(frontend, "template_opens")
    scale = frontend.page.evaluate("app.canvas.ds.scale")
    frontend.page.evaluate("app.canvas.ds.scale = 0.3")
    frontend.load(frontend.workflow(), "far_away")
    frontend.settle(20)
    far = frontend.page.evaluate("app.canvas.ds.scale")
    width = frontend.page.viewport_size["width"]
    frontend.page.set_viewport_size({"width": 2 * width, "height": 1600})
    frontend.load_template(1)
    frontend.page.wait_for_function(f"app.canvas.ds.scale > {1.5 * READABLE}")
    frontend.page.set_viewport_size(size)
    assert scale >= READABLE
    assert far == 0.3, "what a user has set stays"
    assert frontend.errors == []


@pytest.mark.parametrize("template", [1, 11])
def test_what_the_page_lays_out_is_no_step_of_undo(in_renderer, template):
    """Nodes 2.0 draws some nodes higher than a workflow says, and anew after each Undo."""
    frontend = in_renderer
    frontend.load_template(template)
    steps = f"{TRACKER}.undoQueue.length"
    frontend.settle(40)
    frontend.keep()
    assert frontend.page.evaluate(steps) == 0
    frontend.page.evaluate("app.graph.nodes[0].title = 'another'")
    frontend.keep()
    frontend.undo()
    frontend.keep()
    assert frontend.page.evaluate(steps) == 0
    assert frontend.errors == []


def test_undo_takes_back_what_was_told_and_brings_what_remains_into_sight(in_renderer):
    frontend = in_renderer
    load_plain(frontend)
    frontend.set_widgets(int(LOADER), loras=ROWS)
    frontend.set_widgets(int(ENCODER), text="a demo1")
    frontend.keep()
    merge_these(frontend)
    told = frontend.page.get_by_text("The prompt does not name every LoRA")
    expect(told).to_have_count(1)
    frontend.page.evaluate("app.canvas.ds.offset = [-9000, -9000]")
    frontend.undo()
    expect(told).to_have_count(0)
    assert frontend.page.evaluate(ARE_SEEN, ["SaveImage"]), "what was nearest"
    assert frontend.errors == []


def test_without_a_lora_no_merge_is_made_and_the_page_says_why(in_renderer, picture):
    frontend = in_renderer
    load_plain(frontend)
    before = kinds(frontend)
    for rows, title in (
        ("", "There is nothing to merge"),
        ("# <lora:first:1>", "There is nothing to merge"),
        ("<lora:first:1>\n# <lora:second:1>", "One LoRA alone needs no merge"),
    ):
        frontend.set_widgets(int(LOADER), loras=rows)
        frontend.page.locator(".iteris-merge-these").press("Enter")
        told = frontend.page.locator(".p-toast-message", has_text="Add a LoRA, or switch a row on.")
        told.wait_for()
        expect(told).to_contain_text(title)
        picture(frontend, "nothing_to_merge")
        assert kinds(frontend) == before
        told.get_by_role("button").click()  # or it stays for seconds
        told.wait_for(state="hidden")
    frontend.page.evaluate(
        """id => {
            const stack = LiteGraph.createNode("IterISStack");
            app.graph.add(stack);
            stack.connect(0, app.graph.getNodeById(id), "more_loras");
        }""",
        LOADER,
    )
    merge_these(frontend)
    assert frontend.errors == []


def test_a_pinned_node_stays_where_it_is(frontend):
    load_plain(frontend)
    pinned = [LATENT, ENCODER]
    frontend.page.evaluate("id => app.graph.getNodeById(id).pin(true)", LOADER)
    places = "ids => ids.map((id) => app.graph.getNodeById(id)).map(({ pos }) => [...pos])"
    frontend.page.evaluate(
        "ids => ids.forEach((id) => app.graph.getNodeById(id).pin(true))", pinned
    )
    before = frontend.page.evaluate(places, pinned)
    merge_these(frontend)
    assert frontend.page.evaluate(places, pinned) == before
    assert frontend.page.evaluate(f"({ONE})('IterISMerge').pinned"), "as the loader was"
    assert frontend.overlaps() == []
    assert frontend.errors == []


def test_a_save_at_a_click_is_one_step_with_the_seeds_of_its_run(in_renderer):
    frontend = in_renderer
    load_plain(frontend, "IterISMerge")
    frontend.executed(int(LOADER), REPORTED)
    frontend.settle(40)
    frontend.keep()
    seed = "app.graph.getNodeById('6').widgets.find(({ name }) => name === 'seed').value"
    before = kinds(frontend), frontend.page.evaluate(seed)
    unsaved = frontend.page.locator(".iteris-file", has_text="Not saved as a file.")
    expect(unsaved).to_have_count(1)
    with frontend.queueing("saves") as queued:
        unsaved.get_by_role("button", name="Save").click()
    assert run_alone(queued) == "IterISSave"
    expect(unsaved).to_have_count(0)
    frontend.settle(40)
    frontend.keep()
    after = kinds(frontend), frontend.page.evaluate(seed)
    (save,) = (node for node in frontend.prompt().values() if node["class_type"] == "IterISSave")
    assert save["inputs"]["merged"] == [LOADER, 3]
    # Nodes 2.0 of 0.3.75 moves the merge
    if not frontend.settings["Comfy.VueNodes.Enabled"]:
        assert "IterISSave merged" not in frontend.page.evaluate(HIDDEN)
    frontend.undo()
    assert (kinds(frontend), frontend.page.evaluate(seed)) == before
    frontend.undo("redo")
    assert (kinds(frontend), frontend.page.evaluate(seed)) == after
    assert frontend.errors == []


PICTURES_SEEN = """() => {
    const pictures = document.querySelector(".iteris-slider").getBoundingClientRect();
    const free = document.querySelector(".graph-canvas-panel").getBoundingClientRect();
    const isIn = (from, to) => free[from] <= pictures[from] && pictures[to] <= free[to];
    return pictures.height > 300 && isIn("left", "right") && isIn("top", "bottom");
}"""


COMPARE_SEEN = """() => {
    const { pos, size } = app.canvas.graph.nodes.find((node) => node.comfyClass === "IterISCompare");
    const [left, top, width, height] = app.canvas.visible_area;
    return left <= pos[0] && pos[0] + size[0] <= left + width && top <= pos[1] && pos[1] + size[1] <= top + height;
}"""


def run_alone(queued):
    """Return the type of the one node that is to be run."""
    (alone,) = queued.value.post_data_json["partial_execution_targets"]
    return queued.value.post_data_json["prompt"][alone]["class_type"]


def see(frontend):
    frontend.page.locator(".iteris-see").press("Enter")


def seen_queued(frontend):
    """Press the button for pictures, and return what it queues, without a run."""
    with frontend.queueing("draws") as queued:
        see(frontend)
    return queued


def test_a_report_leads_to_the_pictures_of_its_compare(in_renderer, picture, server):
    folder = server.base / "temp"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(folder / "seen.png")
    frontend = in_renderer
    load_plain(frontend)
    merge_these(frontend)
    merge, compare = (
        frontend.page.evaluate(f"({ONE})('IterIS{n}').id") for n in ("Merge", "Compare")
    )
    frontend.executed(merge, REPORTED)
    frontend.show(merge, left=300, top=150, scale=1)
    drawn = [{"filename": "seen.png", "subfolder": "", "type": "temp"}] * 4
    rows = [{"prompt": "a", "names": ["base", "first", "stacked", "merged"], "pictures": drawn}] * 4
    frontend.executed(compare, {"text": ["a"], "iteris_tiles": rows})
    before = kinds(frontend)
    assert not frontend.page.evaluate(PICTURES_SEEN)
    frontend.page.on("request", lambda request: sent.append(request.url.split("/")[-1]))
    sent = []
    see(frontend)
    frontend.page.wait_for_function(PICTURES_SEEN)
    picture(frontend, "seen_in_pictures")
    assert frontend.page.evaluate("app.canvas.ds.scale") <= 1, "no larger than they are"
    title = f"({ONE})('IterISCompare').pos[1] - 30"
    assert frontend.page.evaluate(f"app.canvas.visible_area[1] <= {title}"), "and its title"
    assert kinds(frontend) == before
    assert "prompt" not in sent
    made = {"preset": "Fast", "strengths": [1, 1], "settings": {}, "at": 2}
    frontend.executed(merge, REPORTED | {"iteris_made": [made]}, run="a")
    frontend.show(merge, left=300, top=150, scale=1)
    assert run_alone(seen_queued(frontend)) == "IterISCompare", "these are of another merge"
    assert frontend.errors == []


@pytest.mark.parametrize("inside", ["IterISMerge", "IterISCompare"])
def test_a_report_leads_to_its_compare_in_another_graph(in_renderer, picture, inside):
    """Out of a subgraph, and into one."""
    frontend = in_renderer
    load_plain(frontend)
    merge_these(frontend)
    moved = frontend.page.evaluate(f"({ONE})('{inside}').id")
    is_merge = inside == "IterISMerge"
    outer = frontend.into_subgraph(moved, show=is_merge)
    merge = f"{outer}:{moved}" if is_merge else frontend.page.evaluate(f"({ONE})('IterISMerge').id")
    frontend.executed(merge, REPORTED)
    queued = seen_queued(frontend)
    graph = "app.canvas.graph.nodes.map(({ comfyClass }) => comfyClass)"
    frontend.page.wait_for_function(f"{graph}.includes('IterISCompare')")
    frontend.settle(40)
    picture(frontend, f"seen_in_another_graph_{inside}")
    frontend.page.wait_for_function(COMPARE_SEEN)
    assert run_alone(queued) == "IterISCompare", "it has no pictures yet"
    types = [node["class_type"] for node in frontend.prompt().values()]
    assert types.count("IterISCompare") == 1, "no other one is added"
    unsaved = frontend.page.locator(".iteris-file", has_text="Not saved as a file.")
    expect(unsaved).to_have_count(0)
    assert frontend.errors == []


def test_where_there_is_no_compare_a_click_adds_one_and_runs_it(in_renderer, picture):
    frontend = in_renderer
    load_plain(frontend, "IterISMerge")
    assert frontend.page.locator(".iteris-see").count() == 0, "there is nothing to see yet"
    frontend.executed(int(LOADER), REPORTED)
    frontend.settle(40)
    frontend.keep()
    then = kinds(frontend)
    queued = seen_queued(frontend)
    frontend.settle(40)
    picture(frontend, "compare_added")
    assert run_alone(queued) == "IterISCompare", "and no picture of the workflow's own"
    nodes = queued.value.post_data_json["prompt"].values()
    (compare,) = (node["inputs"] for node in nodes if node["class_type"] == "IterISCompare")
    expected = {"vae": ["1", 2], "merged": [LOADER, 3]}
    expected |= {"prompt": WORDS, "steps": 2, "width": 512, "cfg": 0}
    assert not {"model", "clip"} & compare.keys(), "they come with the merge"
    assert {name: compare[name] for name in expected} == expected
    wait_until_seen(frontend, "IterISCompare")
    added = int(frontend.page.evaluate(f"({ONE})('IterISCompare').id"))
    assert [pair for pair in frontend.overlaps() if added in map(int, pair)] == []
    after = kinds(frontend)
    running = [[0, "draws", queued.value.post_data_json["prompt"], {}, [str(added)]]]
    busy = {"queue_running": running, "queue_pending": []}
    frontend.page.route("**/queue", lambda route: route.fulfill(json=busy))
    drawing = frontend.page.get_by_text("The pictures are still to come")
    see(frontend)
    expect(drawing).to_have_count(1)
    assert kinds(frontend) == after, "it is there now"
    frontend.page.unroute("**/queue")
    frontend.undo()
    assert kinds(frontend) == then, "in one step"
    assert frontend.errors == []


def test_where_there_is_no_vae_a_merge_says_that_it_has_no_compare(in_renderer, picture):
    frontend = in_renderer
    load_plain(frontend)
    frontend.into_subgraph(LOADER, show=True)
    frontend.page.locator(".iteris-merge-these").press("Enter")
    frontend.page.get_by_text("It needs exactly one VAE").wait_for()
    picture(frontend, "no_compare")
    made = frontend.page.evaluate("app.canvas.graph.nodes.map(({ type }) => type).sort()")
    assert made == ["IterISMerge", "IterISSave"]
    depth = """(() => {
        const { outputNode, reroutes } = app.canvas.graph;
        const ends = [...reroutes.values()].map(({ pos }) => pos[1]);
        return outputNode.pos[1] - Math.max(...ends);
    })()"""
    assert 0 < frontend.page.evaluate(depth) < 60, "right above the bracket that is between them"
    frontend.page.evaluate("app.canvas.setGraph(app.graph)")
    assert frontend.errors == []


# what runs with the rows, and the rows that a subgraph's node shows
ROWS_OF = """async id => {
    const { subgraph, widgets } = app.graph.getNodeById(id);
    const prompt = (await app.graphToPrompt()).output;
    const { class_type, inputs } = Object.values(prompt).find(({ class_type }) => /Merge$|Load$/.test(class_type));
    const inside = ({ nodeId }) => subgraph.getNodeById(nodeId)?.widgets.find(({ name }) => name === "loras");
    return [class_type, inputs.loras, widgets.map((each) => (each._overlay ? inside(each._overlay) : each)?.value)];
}"""
# the merge in a subgraph, what saves it, and the content of a file
INSIDE = """async id => {
    const { nodes } = app.graph.getNodeById(id).subgraph;
    const { hash } = await (await fetch("/iteris/lora?name=first.safetensors")).json();
    return [...["Merge", "Save"].map((kind) => nodes.find(({ type }) => type === `IterIS${kind}`).id), hash];
}"""


def load_inside(frontend, outer):
    """Let a merge in a subgraph be saved, press what loads its file, and go out again."""
    merge, save, found = frontend.page.evaluate(INSIDE, outer)
    file = {
        "merge": f"{outer}:{merge}",
        "name": "first.safetensors",
        "listed_as": "first.safetensors",
    }
    file |= {"mb": 3, "ranks": [8, 8], "words": ["sks"], "hash": found}
    frontend.executed(f"{outer}:{merge}", REPORTED)
    frontend.executed(f"{outer}:{save}", {"text": ["read back"], "iteris_saved": [file]})
    frontend.page.evaluate(
        """([id, merge]) => {
            const { subgraph } = app.graph.getNodeById(id);
            app.canvas.setGraph(subgraph);
            app.canvas.centerOnNode(subgraph.getNodeById(merge));
        }""",
        [outer, merge],
    )
    frontend.settle(40)
    frontend.page.locator(".iteris-report .iteris-load").press("Enter")
    frontend.page.wait_for_function(
        "app.canvas.graph.nodes.some(({ type }) => type === 'IterISLoad')"
    )
    frontend.page.evaluate("app.canvas.setGraph(app.graph)")
    frontend.settle(40)


def test_rows_that_a_subgraph_shows_are_those_of_what_is_in_it(in_renderer, picture):
    """When a loader becomes a merge there, and when the merge becomes a loader."""
    frontend = in_renderer
    load_plain(frontend)
    outer = frontend.into_subgraph(LOADER)
    pairs = "([id, inner]) => { app.graph.getNodeById(id).properties.proxyWidgets = [[inner, 'iteris_rows']]; }"
    frontend.page.evaluate(pairs, [outer, LOADER])
    if not frontend.page.evaluate("id => app.graph.getNodeById(id).widgets.length", outer):
        pytest.skip("newer frontends show nothing but inputs")
    frontend.show(outer, left=300, top=150)
    frontend.settle(40)
    if not frontend.page.evaluate("LiteGraph.vueNodesMode"):
        size = frontend.page.evaluate("id => app.graph.getNodeById(id).size[0]", outer)
        assert size >= 330, "as wide as rows need"
        frontend.page.wait_for_function(
            """() => {
                const button = document.querySelector(".iteris-merge-these");
                return button.scrollWidth <= button.clientWidth;
            }"""
        )
    frontend.keep()

    def rows():
        return frontend.page.evaluate(ROWS_OF, outer)

    first, merged = [[kind, ROWS, [ROWS]] for kind in ("IterISLoad", "IterISMerge")]
    assert rows() == first
    offset = frontend.page.evaluate("[...app.canvas.ds.offset]")
    frontend.page.locator(".iteris-merge-these").press("Enter")
    frontend.page.get_by_text("The next run merges").wait_for()
    frontend.settle(40)
    picture(frontend, "subgraph_of_merge")
    assert frontend.page.evaluate("[...app.canvas.ds.offset]") == offset
    assert rows() == merged
    frontend.undo()
    assert rows() == first, "in one step"
    frontend.undo("redo")
    assert rows() == merged
    frontend.page.locator(".iteris-toggle").locator("visible=true").first.click()
    off = f"# {ROWS}"
    assert rows() == ["IterISMerge", off, [off]]
    load_inside(frontend, outer)
    picture(frontend, "subgraph_of_its_file")
    assert rows() == ["IterISLoad", "<lora:first:1>", ["<lora:first:1>"]]
    assert frontend.errors == []


def test_a_text_that_a_subgraph_shows_is_that_of_a_merges_file(frontend):
    load_plain(frontend)
    outer = frontend.into_subgraph(LOADER, show=True)
    frontend.page.locator(".iteris-merge-these").press("Enter")
    frontend.page.get_by_text("It needs exactly one VAE").wait_for()
    frontend.page.evaluate(
        """([id, merge]) => {
            const { subgraph } = app.graph.getNodeById(id);
            const node = subgraph.getNodeById(merge);
            const slot = node.inputs.find(({ widget }) => widget?.name === "loras");
            subgraph.addInput("loras", slot.type).connect(slot, node);
        }""",
        [outer, frontend.page.evaluate(INSIDE, outer)[0]],
    )
    assert frontend.page.evaluate(ROWS_OF, outer) == ["IterISMerge", ROWS, [ROWS]]
    load_inside(frontend, outer)
    file = "<lora:first:1>"
    assert frontend.page.evaluate(ROWS_OF, outer) == ["IterISLoad", file, [file]]
    assert frontend.errors == []


def test_a_vae_that_comes_into_a_subgraph_is_compares(in_renderer, picture):
    frontend = in_renderer
    load_plain(frontend)
    outer = frontend.into_subgraph("7", LOADER, show=True)
    frontend.page.locator(".iteris-merge-these").press("Enter")
    frontend.page.wait_for_function(
        "app.canvas.graph.nodes.some(({ type }) => type === 'IterISSave')"
    )
    frontend.settle(40)
    picture(frontend, "vae_from_outside")
    nodes = frontend.prompt().values()
    (compare,) = (node["inputs"] for node in nodes if node["class_type"] == "IterISCompare")
    merged, slot = compare["merged"]
    assert (compare["vae"], merged.split(":")[0], slot) == (["1", 2], str(outer), 3)
    frontend.page.evaluate("app.canvas.setGraph(app.graph)")
    assert frontend.errors == []


def test_in_a_subgraph_a_new_compare_is_run_alone(frontend):
    load_plain(frontend, "IterISMerge")
    outer = frontend.into_subgraph("1", LOADER, show=True)
    frontend.executed(f"{outer}:{LOADER}", REPORTED)
    frontend.settle(40)
    queued = seen_queued(frontend)
    assert run_alone(queued) == "IterISCompare"
    frontend.page.evaluate("app.canvas.setGraph(app.graph)")
    assert frontend.errors == []


def test_a_result_in_a_subgraph_is_no_step_of_undo(frontend):
    """To compare it with its run, the frontend is asked for what would run, and numbers nodes anew."""
    load_plain(frontend, "IterISMerge")
    frontend.executed(int(LOADER), REPORTED)
    frontend.settle(40)
    frontend.into_subgraph(LOADER)
    frontend.keep()
    steps = "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    before = frontend.page.evaluate(steps)
    frontend.page.evaluate(
        "app.graph.nodes.find(({ subgraph }) => subgraph).subgraph.nodes[0].compareIterisRun()"
    )
    frontend.settle(60)
    frontend.keep()
    assert frontend.page.evaluate(steps) == before
    assert frontend.errors == []


def test_a_new_compare_gives_a_file_its_cover_again(frontend):
    frontend.load_template(1)
    merge, compare = (
        frontend.page.evaluate(f"({ONE})('IterIS{n}').id") for n in ("Merge", "Compare")
    )
    frontend.page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", compare)
    frontend.executed(merge, REPORTED)
    frontend.settle(40)
    queued = seen_queued(frontend)
    prompt = frontend.prompt()
    alone = queued.value.post_data_json["partial_execution_targets"]
    assert {prompt[each]["class_type"] for each in alone} == {"IterISCompare", "IterISSave"}
    (save,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "IterISSave")
    (added,) = (key for key, node in prompt.items() if node["class_type"] == "IterISCompare")
    assert save["cover"] == [added, 1]
    assert frontend.errors == []


@pytest.mark.parametrize("cfg", [7, 8, 4, 1])
def test_compare_draws_as_the_graphs_sampler_does(in_renderer, cfg):
    """A merge is measured at its cfg where that is far from 7, which suits the model."""
    frontend = in_renderer
    load_plain(frontend, cfg=cfg)
    before = set(map(tuple, frontend.overlaps()))
    merge_these(frontend)
    nodes = frontend.prompt().values()
    compare, merge = (
        next(node["inputs"] for node in nodes if node["class_type"] == kind)
        for kind in ("IterISCompare", "IterISMerge")
    )
    drawn = {"steps": 2, "sampler": "euler", "scheduler": "normal", "width": 512, "height": 512}
    drawn |= {"prompt": WORDS, "negative_prompt": "rain", "seed": 1}
    drawn["cfg"] = 8 if cfg == 8 else 0
    assert {name: compare[name] for name in drawn} == drawn
    settings = [node["inputs"]["cfg"] for node in nodes if node["class_type"] == "IterISSettings"]
    assert (settings, "settings" in merge) == (([cfg], True) if cfg < 7 else ([], False))
    told = frontend.page.get_by_text(f"as the KSampler draws: cfg {cfg}.")
    expect(told).to_have_count(1 if cfg < 7 else 0)
    assert set(map(tuple, frontend.overlaps())) <= before
    assert frontend.errors == []


def test_compare_draws_what_a_prompt_says_that_has_a_guidance_of_its_own(in_renderer):
    frontend = in_renderer
    frontend.load_template(12)
    (text,) = (key for key, each in frontend.prompt().items() if "text" in each["inputs"])
    frontend.set_widgets(int(text), text="a robot")
    merge_these(frontend)
    nodes = {each["class_type"]: each["inputs"] for each in frontend.prompt().values()}
    drawn = {"prompt": "a robot", "negative_prompt": "", "width": 1024, "scheduler": "simple"}
    assert {name: nodes["IterISCompare"][name] for name in drawn} == drawn
    assert frontend.prompt()[nodes["IterISCompare"]["vae"][0]]["class_type"] == "VAELoader"
    assert frontend.errors == []


def test_a_merge_measures_with_guidance_where_only_its_sampler_shows_that_there_is_some(frontend):
    """Of Z-Image, nothing tells base from Turbo."""
    asked = "**/iteris/model?name=z_image.safetensors"
    known = {"family": "Z-Image", "fits": [], "guidance": 1, "resolution": 1024}
    frontend.page.route(asked, lambda route: route.fulfill(json=known))
    cfgs = {}
    for cfg in (4, 1):
        load_plain(frontend, cfg=cfg)
        frontend.set_widgets(1, ckpt_name="z_image.safetensors")
        frontend.set_widgets(int(LATENT), width=1024, height=1024)
        merge_these(frontend)
        nodes = frontend.prompt().values()
        cfgs[cfg] = {
            node["class_type"]: node["inputs"]["cfg"]
            for node in nodes
            if node["class_type"] in ("IterISSettings", "IterISCompare")
        }
    frontend.page.unroute(asked)
    assert cfgs == {4: {"IterISSettings": 4, "IterISCompare": 0}, 1: {"IterISCompare": 0}}
    assert frontend.errors == []


def test_a_merge_measures_pictures_as_small_as_its_sampler_draws(frontend):
    known = {"family": "SDXL", "fits": [], "guidance": 7, "resolution": 1024}
    frontend.page.route("**/iteris/model?*", lambda route: route.fulfill(json=known))
    frontend.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    measured = {}
    for size in ((832, 1216), (1024, 512), (512, 640), (128, 128)):
        load_plain(frontend, cfg=7)
        frontend.set_widgets(int(LATENT), width=size[0], height=size[1])
        merge_these(frontend)
        nodes = {node["class_type"]: node["inputs"] for node in frontend.prompt().values()}
        measured[size] = nodes.get("IterISSettings", {}).get("resolution")
    frontend.page.unroute("**/iteris/model?*")
    frontend.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    assert measured == {(832, 1216): None, (1024, 512): None, (512, 640): 576, (128, 128): 128}
    assert frontend.errors == []


def test_a_model_in_parts_is_compared_by_the_graphs_vae(in_renderer, picture):
    """Of two, nobody knows which one is the model's."""
    frontend = in_renderer
    for vaes in (1, 2):
        graph = plain("IterISLoad")
        names = {"unet_name": "transformer.safetensors", "weight_dtype": "default"}
        graph["1"] = {"class_type": "UNETLoader", "inputs": names}
        clip = {"clip_name": "clip.safetensors", "type": "stable_diffusion"}
        graph["9"] = {"class_type": "CLIPLoader", "inputs": clip}
        for key in ("10", "11")[:vaes]:
            graph[key] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
        graph[LOADER]["inputs"]["clip"] = ["9", 0]
        graph["7"]["inputs"]["vae"] = ["10", 0]
        places = PLACES | {"9": [0, 300], "10": [0, 500], "11": [0, 700]}
        load_placed(frontend, graph, f"parts {vaes}", places)
        hidden = set(frontend.page.evaluate(HIDDEN))
        frontend.page.locator(".iteris-merge-these").press("Enter")
        frontend.page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'IterISSave')")
        frontend.settle(60)
        picture(frontend, f"merge_these_in_parts_{vaes}")
        nodes = frontend.prompt().values()
        found = [node["inputs"] for node in nodes if node["class_type"] == "IterISCompare"]
        assert [each["vae"] for each in found] == [["10", 0]][: 2 - vaes]
        assert set(frontend.page.evaluate(HIDDEN)) <= hidden
    assert frontend.errors == []


def test_a_vae_at_the_right_of_a_merge_is_not_led_round_it(in_renderer, picture):
    frontend = in_renderer
    graph = plain("IterISLoad")
    graph["10"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    names = {"unet_name": "transformer.safetensors", "weight_dtype": "default"}
    graph["1"] = {"class_type": "UNETLoader", "inputs": names}
    clip = {"clip_name": "clip.safetensors", "type": "stable_diffusion"}
    graph["9"] = {"class_type": "CLIPLoader", "inputs": clip}
    graph[LOADER]["inputs"]["clip"] = ["9", 0]
    graph["7"]["inputs"]["vae"] = ["10", 0]
    sampler = PLACES[SAMPLER]
    load_placed(
        frontend, graph, "right", PLACES | {"9": [0, 300], "10": [sampler[0], sampler[1] + 400]}
    )
    merge_these(frontend)
    picture(frontend, "merge_these_vae_right")
    assert [each for each in frontend.page.evaluate(HIDDEN) if each.startswith(OF_MERGES)] == []
    beside = """() => {
        const { pos, size } = app.graph.nodes.find(({ type }) => type === "IterISMerge");
        return [...app.graph.reroutes.values()].map((end) => end.pos[0] - pos[0] - size[0]);
    }"""
    assert min(frontend.page.evaluate(beside)) > 0
    assert frontend.errors == []


PROMPTS = {"demo1,\n\n  demo2\n": "demo1, demo2", "a {red|blue} cat": "", "a cat // why": ""}


@pytest.mark.parametrize("written", PROMPTS)
def test_compare_draws_the_graphs_prompt_where_that_is_one_text(frontend, written):
    """The sampler and the prompt are found behind nodes that hand a link on."""
    load_plain(frontend)
    frontend.set_widgets(int(ENCODER), text=written)
    frontend.page.evaluate(
        """([from, to]) => [[from[0], "model"], [from[1], "positive"]].forEach(([id, name]) => {
            const between = LiteGraph.createNode("Reroute");
            between.pos = [2200, 0];
            app.graph.add(between);
            app.graph.getNodeById(id).connect(0, between, 0);
            const sampler = app.graph.getNodeById(to);
            between.connect(0, sampler, sampler.findInputSlot(name));
        })""",
        [[LOADER, ENCODER], SAMPLER],
    )
    frontend.page.locator(".iteris-merge-these").press("Enter")
    told = frontend.page.locator(".p-toast-message", has_text="The prompt was not taken over")
    if PROMPTS[written]:
        wait_until_seen(frontend, "IterISCompare")
        expect(told).to_have_count(0)
    else:
        told.get_by_role("button").click()
        told.wait_for(state="hidden")
    nodes = frontend.prompt().values()
    (compare,) = (node["inputs"] for node in nodes if node["class_type"] == "IterISCompare")
    assert (compare["prompt"], compare["seed"]) == (PROMPTS[written], 1)
    assert frontend.errors == []


@pytest.mark.parametrize("how", ["Merge these", "See it in pictures"])
def test_compare_draws_each_lora_where_the_graphs_prompt_names_one_alone(frontend, how):
    """And the page says what the prompt lacks, once a merge is made for it."""

    def answer(route):
        words = ["sks robot"] if "first" in route.request.url else ["zwx owl"]
        lora = {"base": "", "rank": 8, "blocks": [], "prompts": {}, "error": None}
        route.fulfill(json=lora | {"trigger_words": words})

    frontend.page.route("**/iteris/lora?*", answer)
    frontend.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    drawn = {}
    for written in ("a sks robot", "a sks robot and a zwx owl"):
        load_plain(frontend, "IterISLoad" if how == "Merge these" else "IterISMerge")
        frontend.set_widgets(int(ENCODER), text=written)
        if how == "Merge these":
            merge_these(frontend)
            nodes = frontend.prompt()
            told = frontend.page.locator(".p-toast-message", has_text="zwx owl (second)")
            if "owl" in written:
                expect(told).to_have_count(0)
            else:
                expect(told).to_contain_text("does not name every LoRA")
                told.get_by_role("button").click()
                told.wait_for(state="hidden")
        else:
            frontend.executed(int(LOADER), REPORTED)
            nodes = seen_queued(frontend).value.post_data_json["prompt"]
        inputs = [n["inputs"] for n in nodes.values() if n["class_type"] == "IterISCompare"]
        (drawn[written],) = (each["prompt"] for each in inputs)
    frontend.page.unroute("**/iteris/lora?*")
    frontend.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    assert drawn == {"a sks robot": "", "a sks robot and a zwx owl": "a sks robot and a zwx owl"}
    assert frontend.errors == []


def test_subjects_that_the_graphs_prompt_names_are_measured_together(in_renderer, picture):
    """The merge says so until it has a report, and Undo takes it back with the merge."""
    frontend = in_renderer

    def told(route):
        words = ["sks robot"] if "first" in route.request.url else ["zwx robot"]
        lora = {"base": "", "rank": 8, "blocks": [], "prompts": {}, "error": None}
        route.fulfill(json=lora | {"trigger_words": words, "kind": "subject"})

    known = {"family": "SDXL", "fits": [], "guidance": 7, "resolution": 1024}
    frontend.page.route("**/iteris/lora?*", told)
    frontend.page.route("**/iteris/model?*", lambda route: route.fulfill(json=known))
    frontend.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    line = frontend.page.get_by_text("The prompt names several subjects, so “together” is on")

    def merged(written, rows=ROWS):
        load_plain(frontend)
        frontend.set_widgets(int(ENCODER), text=written)
        frontend.set_widgets(int(LOADER), loras=rows)
        frontend.keep()
        merge_these(frontend)
        nodes = frontend.prompt().values()
        (merge,) = (n["inputs"] for n in nodes if n["class_type"] == "IterISMerge")
        expect(line).to_have_count(int(merge["together"]))
        return merge["together"]

    both = "a sks robot and a zwx robot"
    assert not merged("a sks robot"), "both have a robot"
    assert not merged(both, "<lora:first:1>\n<lora:second:1> style")
    assert merged(both)
    picture(frontend, "set_together")
    frontend.undo()
    expect(line).to_have_count(0)
    frontend.undo("redo")
    expect(line).to_have_count(1)
    frontend.executed(frontend.page.evaluate(f"({ONE})('IterISMerge').id"), REPORTED)
    expect(line).to_have_count(0)
    frontend.undo()
    assert "IterISLoad" in kinds(frontend), "in one step"
    for route in ("lora", "model"):
        frontend.page.unroute(f"**/iteris/{route}?*")
    frontend.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    assert frontend.errors == []


def test_a_merges_file_is_called_like_its_rows_until_the_user_calls_it_otherwise(in_renderer):
    frontend = in_renderer
    load_plain(frontend)
    frontend.set_widgets(int(LOADER), loras=ROWS)
    merge_these(frontend)
    frontend.keep()

    def called():
        nodes = frontend.prompt().values()
        return next(n["inputs"]["file_name"] for n in nodes if n["class_type"] == "IterISSave")

    assert called() == "first+second"
    rows = frontend.page.locator(".iteris-row")
    rows.nth(1).locator(".iteris-out").press("Enter")
    assert called() == "first+second", "one alone is no merge"
    frontend.page.locator(".iteris-add").press("Enter")
    frontend.page.locator(".iteris-option", has_text="third").first.click()
    frontend.page.keyboard.press("Escape")
    expect(rows).to_have_count(2)
    frontend.settle(20)
    assert called() == "first+third"
    frontend.undo()
    assert called() == "first+second", "in one step"
    frontend.undo("redo")
    save = frontend.page.evaluate(f"({ONE})('IterISSave').id")
    frontend.set_widgets(save, file_name="mine")
    rows.nth(1).locator(".iteris-lora").click()
    frontend.page.locator(".iteris-option", has_text="second").first.click()
    frontend.settle(20)
    assert called() == "mine"
    assert frontend.errors == []


def test_the_keyboard_goes_on_in_the_merge_that_a_loader_becomes(in_renderer):
    """After a click, the focus would let Delete take a row out instead of the node."""
    frontend = in_renderer
    load_plain(frontend)
    merge_these(frontend)
    name = frontend.page.locator(".iteris-lora").first
    expect(name).to_be_focused()
    load_plain(frontend)
    frontend.page.locator(".iteris-merge-these").click()
    frontend.page.wait_for_function(f"({ONE})('IterISMerge')")
    frontend.settle(60)
    expect(name).not_to_be_focused()
    assert frontend.errors == []


def test_compare_draws_with_what_comes_into_the_samplers_subgraph(frontend):
    """A subgraph's own widgets say the prompt and the steps, and nodes of one value the rest."""
    load_plain(frontend)
    within = [ENCODER, SAMPLER]
    subgraph = frontend.into_subgraph(*within, show=True)
    frontend.page.evaluate(
        """([id, encoder, sampler, latent]) => {
            const outer = app.graph.getNodeById(id);
            const promote = (inner, name, value) => {
                const node = outer.subgraph.getNodeById(inner);
                const input = node.inputs.find((each) => each.widget?.name === name);
                outer.subgraph.addInput(name, input.type).connect(input, node);
                if (value !== undefined) outer.widgets.find((widget) => widget.name === name).value = value;
            };
            promote(encoder, "text", "demo2, demo1");
            promote(sampler, "steps", 5);
            promote(sampler, "seed");
            const primitive = (type, name, target, values) => {
                const node = LiteGraph.createNode(type);
                node.pos = [0, 2000];
                app.graph.add(node);
                node.connect(0, target, target.inputs.findIndex((input) => input.name === name));
                node.widgets[0].value = values;
            };
            app.canvas.setGraph(app.graph);
            primitive("PrimitiveInt", "seed", outer, 42);
            primitive("PrimitiveNode", "width", app.graph.getNodeById(latent), 128);
            primitive("PrimitiveInt", "height", app.graph.getNodeById(latent), 192);
        }""",
        [subgraph, *within, LATENT],
    )
    merge_these(frontend)
    nodes = frontend.prompt().values()
    (compare,) = (node["inputs"] for node in nodes if node["class_type"] == "IterISCompare")
    drawn = {"prompt": "demo2, demo1", "steps": 5, "seed": 42, "width": 128, "height": 192}
    drawn["negative_prompt"] = "rain"
    assert {name: compare[name] for name in drawn} == drawn
    assert frontend.errors == []


def test_two_loaders_become_merges_whose_links_and_files_are_apart(in_renderer, picture):
    frontend = in_renderer
    load_plain(frontend)
    frontend.page.evaluate(
        """() => {
            const second = LiteGraph.createNode("IterISLoad");
            second.pos = [360, 700];
            app.graph.add(second);
            for (const slot of [0, 1]) app.graph.getNodeById("1").connect(slot, second, second.inputs.findIndex(
                ({ name }) => name === ["model", "clip"][slot]));
            second.widgets.find(({ name }) => name === "loras").value = "<lora:first:1>\\n<lora:second:1>";
        }"""
    )
    frontend.settle()
    before = set(map(tuple, frontend.overlaps()))
    for count in (1, 2):
        frontend.page.locator(".iteris-merge-these").first.press("Enter")
        frontend.page.wait_for_function(
            "count => app.graph.nodes.filter(({ type }) => type === 'IterISCompare').length === count",
            arg=count,
        )
        frontend.settle(60)
    frontend.page.evaluate("app.canvas.ds.scale = 0.25")
    frontend.settle()
    picture(frontend, "two_merges")
    assert [each for each in frontend.page.evaluate(HIDDEN) if each.startswith(OF_MERGES)] == []
    assert min(frontend.page.evaluate(LANES)) >= 10
    saves = [node for node in frontend.prompt().values() if node["class_type"] == "IterISSave"]
    names = sorted(node["inputs"]["file_name"] for node in saves)
    assert names == ["first+second", "first+second_02"]
    assert set(map(tuple, frontend.overlaps())) <= before
    assert frontend.errors == []


def saved(frontend, *, of="Merge", is_cached=False, file="first", is_again=False, prompt=""):
    """Let the page believe that a merge was saved, as a file that is there; return the button that loads it.

    A merge that the server's cache has is told after what was saved of it.
    """
    merge, save = (frontend.page.evaluate(f"({ONE})('IterIS{each}').id") for each in (of, "Save"))
    told = "name => fetch(`/iteris/lora?name=${name}`).then((answer) => answer.json())"
    name = f"{file}.safetensors"
    file = {"merge": str(merge), "name": name, "listed_as": name}
    file |= {"mb": 3, "ranks": [8, 8], "words": ["sks"]} | ({"prompt": prompt} if prompt else {})
    file["hash"] = frontend.page.evaluate(told, file["name"])["hash"]
    load = frontend.page.locator(".iteris-report .iteris-load")
    lines = [f"/loras/{file['name']}", "read back", "3 MB"]
    events = [
        (merge, REPORTED),
        (save, {"text": lines, "iteris_saved": [file]}),
    ]
    for node, output in reversed(events) if is_cached else events:
        assert is_again or load.count() == 0
        frontend.executed(node, output)
    frontend.show(merge, left=300, top=150, scale=0.5)
    if not is_again:  # Nodes 2.0 of 0.3.75 gives nodes that are new other heights
        frontend.keep()
    return load


def press_load(frontend, load, *, keep=True):
    load.press("Enter")
    frontend.page.wait_for_function(f"({ONE})('IterISLoad')")
    frontend.settle(40)
    if keep:
        frontend.keep()


@pytest.mark.parametrize("panel", ["report", "saved-as"])
def test_a_saved_merge_becomes_a_loader_of_its_file(panel, in_renderer, picture):
    """By a button on the merge, or on what has saved it."""
    frontend = in_renderer
    load_plain(frontend)
    before = frontend.prompt()
    merge_these(frontend)
    merged = kinds(frontend)
    saved(frontend)
    save = frontend.page.evaluate(f"({ONE})('IterISSave').id")
    if panel == "saved-as":
        frontend.show(save, left=500, top=150)
    load = frontend.page.locator(f".iteris-{panel} .iteris-load")
    picture(frontend, f"load_this_{panel}")
    told = load.locator("..").bounding_box()
    assert load.bounding_box()["y"] < told["y"] + 8, "beside the first words"
    press_load(frontend, load)
    frontend.page.get_by_text("Ctrl+Z brings the merge back").last.wait_for()
    picture(frontend, "loaded")
    after = frontend.prompt()
    (loader,) = (key for key, node in after.items() if node["class_type"] == "IterISLoad")
    expected = {"model": ["1", 0], "clip": ["1", 1], "loras": "<lora:first:1>"}
    assert after.pop(loader)["inputs"] == expected
    del before[LOADER]
    assert json.dumps(after) == json.dumps(before).replace(f'["{LOADER}",', f'["{loader}",')
    assert frontend.page.evaluate("app.graph.reroutes.size") == 0
    frontend.undo()
    assert kinds(frontend) == merged, "in one step"
    assert frontend.errors == []


def test_a_merge_for_video_is_seen_and_loaded_like_any_but_not_that_of_a_pair(in_renderer, picture):
    frontend = in_renderer
    inputs = {"merged": [LOADER, 3], "file_name": "x", "overwrite": False}
    graph = plain("IterISMergeVideo") | {"9": {"class_type": "IterISSave", "inputs": inputs}}
    load_placed(frontend, graph, "video", PLACES | {LATENT: [340, 1200], "9": [1590, 300]})
    load, seen = saved(frontend, of="MergeVideo"), frontend.page.locator(".iteris-see")
    change = "id => { const merge = app.graph.getNodeById(id); (%s); }"
    both = change % "app.graph.getNodeById(1).connect(0, merge, 'model_low_noise')"
    one = change % "merge.disconnectInput(merge.findInputSlot('model_low_noise'))"
    for way, count in ((both, 0), (one, 1)):
        frontend.page.evaluate(way, LOADER)
        expect(load).to_have_count(count)
        expect(seen).to_have_count(count)
    picture(frontend, "merge_for_video")
    frontend.keep()
    seen_queued(frontend)
    assert {"IterISMergeVideo", "IterISCompare"} <= set(kinds(frontend))
    press_load(frontend, load)
    assert not {"IterISMergeVideo", "IterISCompare"} & set(kinds(frontend))
    assert frontend.errors == []


@pytest.mark.parametrize("panel", ["report", "saved-as"])
def test_a_file_that_is_another_ones_since_is_not_loaded(panel, in_renderer):
    """Which no event tells where another window or a program has saved over it."""
    frontend = in_renderer
    answer, known = {"hash": "mine"}, "**/iteris/lora?name=mine*"
    frontend.page.route(known, lambda route: route.fulfill(json=answer))
    frontend.load_template(1)
    saved(frontend, file="mine")
    if panel == "saved-as":
        frontend.show(frontend.page.evaluate(f"({ONE})('IterISSave').id"), left=500, top=150)
    loads = frontend.page.locator(".iteris-load")
    expect(loads).to_have_count(2)
    before = frontend.prompt()
    answer.update(hash="another's")
    frontend.page.locator(f".iteris-{panel} .iteris-load").press("Enter")
    gone = frontend.page.locator(
        ".iteris-file", has_text="mine.safetensors was saved here, and has"
    )
    expect(gone).to_have_count(2)
    expect(loads).to_have_count(0)
    assert frontend.prompt() == before
    answer.update(hash="mine")
    frontend.page.evaluate("app.refreshComboInNodes()")
    expect(loads).to_have_count(2)
    frontend.page.unroute(known)
    assert frontend.errors == []


def test_the_whole_name_of_a_saved_file_is_read(in_renderer, picture):
    frontend = in_renderer
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "a long name")
    frontend.show(1)
    name = "iteris_merged_of_a_robot_and_an_owl_in_a_blueprint_style_04"
    saved = {"merge": "2", "name": f"{name}.safetensors", "words": []}
    text = [f"/loras/{name}.safetensors", "read back", "3 MB"]
    frontend.executed(1, {"text": text, "iteris_saved": [saved]})
    line = frontend.page.locator(".iteris-saved-as")
    picture(frontend, "saved_long_name")
    assert name in line.inner_text().replace("\n", "")
    assert line.evaluate("all => all.scrollWidth <= all.clientWidth")
    width = frontend.page.evaluate("app.graph.getNodeById(1).size[0]")
    assert width == pytest.approx(340, abs=1), "as wide as in the templates"
    assert frontend.errors == []


def test_what_saves_a_merge_loads_it_as_long_as_that_is_linked(in_renderer):
    """Also through a reroute."""
    frontend = in_renderer
    frontend.load_template(1)
    saved(frontend)
    save = frontend.page.evaluate(f"({ONE})('IterISSave').id")
    frontend.show(save, left=500, top=150)
    load = frontend.page.locator(".iteris-saved-as .iteris-load")
    for way, is_there in (([], False), (["Reroute"], True), (["IterISMerge"], False)):
        frontend.page.evaluate(
            f"""([before]) => {{
                const [merge, save] = ["IterISMerge", "IterISSave"].map({ONE});
                const place = save.inputs.findIndex(({{ name }}) => name === "merged");
                save.disconnectInput(place);
                if (!before) return;
                const from = LiteGraph.createNode(before);
                app.graph.add(from);
                const merged = merge.outputs.findIndex(({{ type }}) => type === "ITERIS_MERGED");
                if (before === "Reroute") merge.connect(merged, from, 0);
                from.connect(before === "Reroute" ? 0 : merged, save, place);
            }}""",
            way,
        )
        frontend.keep()
        expect(load).to_be_visible(visible=is_there)
    assert frontend.errors == []


def test_a_group_that_grew_for_a_merge_is_as_before_once_a_loader_takes_its_place(frontend):
    frontend.load_template(11)
    (sampler,) = (key for key, each in frontend.prompt().items() if "cfg" in each["inputs"])
    frontend.set_widgets(int(sampler), cfg=1)  # Merge settings comes, too, and has no room
    frontend.page.evaluate("app.graph.getNodeById(1).pos = [12, 800]")
    frontend.set_widgets(2, loras=ROWS)
    frontend.keep()
    sizes = "app.graph.groups.map(({ size }) => [...size])"
    before = frontend.page.evaluate(sizes)
    merge_these(frontend)
    after = frontend.page.evaluate(sizes)
    assert (len(after), after[:-1] == before) == (len(before) + 1, False), "one is new"
    frontend.load(frontend.workflow(), "saved and opened")
    grown = frontend.page.evaluate(sizes)
    frontend.page.evaluate(
        """() => {  // what a group that has grown may cover in part
            const { pos: [left, top], size: [, height] } = app.graph.groups.at(-1);
            const note = LiteGraph.createNode("Note");
            Object.assign(note, { pos: [left, top + height], size: [200, 100] });
            app.graph.add(note);
        }"""
    )
    merge = frontend.page.evaluate(f"({ONE})('IterISMerge').id")
    long = {"warnings": ["a word " * 100] * 10}
    frontend.executed(merge, {"iteris_report": [REPORTED["iteris_report"][0] | long]})
    frontend.show(merge, left=300, top=150, scale=0.5)
    frontend.settle(40)
    assert frontend.page.evaluate(sizes) != grown, "with its report, see test_panels.py"
    press_load(frontend, saved(frontend))
    assert frontend.page.evaluate(sizes) == before
    assert frontend.errors == []


def test_where_nothing_draws_a_loader_comes_with_what_does(in_renderer, picture):
    frontend = in_renderer
    frontend.load_template(1)
    compare = frontend.page.evaluate(f"({ONE})('IterISCompare').id")
    frontend.set_widgets(compare, seed=7, steps=3, sampler="heun", negative_prompt="rain")
    settings = """([type, name, value]) => {
        const settings = LiteGraph.createNode(type);
        settings.pos = [0, -900];
        app.graph.add(settings);
        settings.widgets.find((widget) => widget.name === name).value = value;
        settings.connect(0, app.graph.nodes.find((node) => node.type === "IterISMerge"), "settings");
    }"""
    frontend.page.evaluate(settings, ["IterISSettings", "resolution", 448])
    frontend.keep()
    load = saved(frontend, is_cached=True)
    before, then = frontend.prompt(), how_laid_out(frontend)
    press_load(frontend, load, keep=False)  # Nodes 2.0 of 0.3.75 gives new nodes other heights
    picture(frontend, "loaded_beside")
    assert new_in(frontend, then) == [set()] * 3
    places = (
        "(([merge, { pos }]) => [pos[0] - merge.pos[0], pos[1] - merge.pos[1] - merge.size[1]])"
    )
    right, down = frontend.page.evaluate(f"{places}(['IterISMerge', 'IterISLoad'].map({ONE}))")
    assert 0 < right < 100, "its links only go down beside the merge"
    assert down < 300, "the merge has its report already"
    after = frontend.prompt()
    assert {key: after.pop(key) for key in before} == before
    keys = {node["class_type"]: key for key, node in after.items()}
    new = {node["class_type"]: node["inputs"] for node in after.values()}
    loader = keys["IterISLoad"]
    assert new["IterISLoad"] == {"model": ["1", 0], "clip": ["1", 1], "loras": "<lora:first:1>"}
    sampler = new["KSampler"]
    # of Compare, and where that has none, of the settings, what suits the model, and the file's words
    expected = {"seed": 7, "steps": 3, "sampler_name": "heun", "cfg": 7, "model": [loader, 0]}
    assert {name: sampler[name] for name in expected} == expected
    texts = [after[sampler[name][0]]["inputs"] for name in ("positive", "negative")]
    assert texts == [{"text": text, "clip": [loader, 1]} for text in ("sks", "rain")]
    titles = [after[sampler[name][0]]["_meta"]["title"] for name in ("positive", "negative")]
    assert titles == ["Prompt", "Negative prompt"]
    assert new["EmptyLatentImage"] == {"width": 448, "height": 448, "batch_size": 1}
    assert new["VAEDecode"] == {"samples": [keys["KSampler"], 0], "vae": ["1", 2]}
    assert new["SaveImage"]["images"] == [keys["VAEDecode"], 0]
    control = "id => app.graph.getNodeById(id).widgets.find(({ name }) => name.startsWith('control_')).value"
    seeds = frontend.page.evaluate(control, int(keys["KSampler"]))
    assert seeds == "fixed", "another one after a run would be another step of Undo"
    if not frontend.settings["Comfy.VueNodes.Enabled"]:  # which gives nodes heights of its own
        size = frontend.page.evaluate(f"[...({ONE})('SaveImage').size]")
        assert min(size) >= 270, "to grow for a picture would be another step of Undo"
    titles = "app.graph.groups.map(({ title }) => title)"
    assert frontend.page.evaluate(titles)[-1] == "Draw with first"

    load.press("Enter")
    frontend.settle(40)
    assert set(frontend.prompt()) == {*before, *after}, "it is there already"
    selected = "[...app.canvas.selectedItems].map(({ id }) => String(id))"
    assert frontend.page.evaluate(selected) == [loader]
    saved(frontend, file="second", is_again=True)
    load.press("Enter")
    frontend.page.wait_for_function(
        "id => app.graph.getNodeById(id).widgets.some(({ value }) => value === '<lora:second:1>')",
        arg=loader,
    )
    frontend.settle(40)
    assert set(frontend.prompt()) == {*before, *after}, "the next merge's file takes its place"
    assert frontend.page.evaluate(titles)[-1] == "Draw with second"
    frontend.undo()
    assert frontend.page.evaluate(titles)[-1] == "Draw with first"
    frontend.undo()
    assert frontend.prompt() == before, "each in one step"
    assert frontend.page.evaluate("app.graph.groups.length") == 3
    frontend.page.evaluate(
        f"""() => {{
            for (const kind of ['IterISCompare', 'IterISSave']) app.graph.remove(({ONE})(kind));
            app.graph.remove(app.graph.groups.at(-1));
        }}"""
    )
    press_load(frontend, load, keep=False)
    tops = f"['IterISMerge', 'IterISLoad'].map((kind) => ({ONE})(kind).pos[1])"
    merge, loader = frontend.page.evaluate(tops)
    assert loader == pytest.approx(merge, abs=1), "level with it, where there is room"
    assert frontend.errors == []


def test_what_draws_a_file_gets_the_words_that_compare_would_draw(frontend):
    """Of several subjects, whose trigger words alone are no prompt; Compare may have run on others."""
    frontend.load_template(1)
    compare = frontend.page.evaluate(f"({ONE})('IterISCompare').id")
    drawn = {"pictures": 9, "seconds": 90, "steps": 3, "size": [0, 0], "own": 9, "line": 5}
    frontend.executed(compare, {"iteris_drawn": [drawn | {"words": "a bird and a fish"}]})
    load = saved(frontend, prompt="a sks dog and a cat")
    press_load(frontend, load)
    texts = "app.graph.nodes.filter((node) => node.title === 'Prompt').map(({ widgets }) => widgets[0].value)"
    assert frontend.page.evaluate(texts) == ["a sks dog and a cat"]
    assert frontend.errors == []


def test_a_model_of_videos_gets_a_loader_alone(frontend):
    frontend.load_template(1)
    load = saved(frontend)
    before = kinds(frontend)
    known = {"family": "Wan", "fits": ["Wan"], "guidance": 5, "resolution": 480}
    asked = "**/iteris/model?name=wan.safetensors"
    frontend.page.route(asked, lambda route: route.fulfill(json=known))
    frontend.set_widgets(1, ckpt_name="wan.safetensors")
    press_load(frontend, load)
    frontend.page.unroute(asked)
    assert kinds(frontend) == sorted([*before, "IterISLoad"])
    assert frontend.errors == []


def test_what_else_is_needed_or_pinned_stays_when_a_merge_goes(frontend):
    frontend.load_template(1)
    frontend.page.evaluate(
        f"""() => {{
            const [merge, compare, save] = ["Merge", "Compare", "Save"].map((name) => ({ONE})(`IterIS${{name}}`));
            const [shows, draws] = ["PreviewImage", "KSampler"].map((type) => LiteGraph.createNode(type));
            for (const node of [shows, draws]) app.graph.add(node);
            compare.connect(0, shows, 0);
            merge.connect(0, draws, 0);
            for (const node of [merge, save]) node.pin(true);
        }}"""
    )
    press_load(frontend, saved(frontend))
    types = frontend.page.evaluate("app.graph.nodes.map(({ type }) => type)")
    assert {"IterISCompare", "IterISSave", "PreviewImage"} < set(types)
    assert "IterISMerge" not in types
    assert frontend.page.evaluate(f"({ONE})('IterISLoad').pinned"), "as the merge was"
    assert frontend.errors == []


@pytest.mark.parametrize("template", [1, 4])
def test_settings_of_a_merge_are_a_click_away(in_renderer, picture, template):
    frontend = in_renderer
    frontend.load_template(template)
    page = frontend.page
    then = how_laid_out(frontend)
    page.locator(".iteris-settings").click()
    wait_until_seen(frontend, "IterISSettings")
    frontend.still("JSON.stringify([app.graph.serialize(), app.canvas.ds.state])")
    picture(frontend, f"settings_{template}")
    hidden, *others = new_in(frontend, then)
    assert others == [set()] * 2
    assert len(set(page.evaluate(GROUPS)[1])) == 1, "they grow together"
    assert template == 4 or not hidden  # a long link touches the edge of a node
    added = page.evaluate("app.graph.serialize()")
    page.locator(".iteris-settings").press("Enter")
    frontend.settle()
    assert page.evaluate("app.graph.serialize()") == added, "it is there already"
    frontend.undo()
    assert "IterISSettings" not in page.evaluate("app.graph.nodes.map(({ type }) => type)")
