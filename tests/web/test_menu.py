"""Merge these LoRAs: loaders become one merge, nothing else is touched, and Undo takes it back."""

import json
import re

import pytest
from playwright.sync_api import expect

MODEL = {"model": ["1", 0], "clip": ["1", 1]}
SAMPLER = "6"
SAMPLING = {"seed": 1, "steps": 2, "denoise": 1, "cfg": 7}
SAMPLING |= {"sampler_name": "euler", "scheduler": "normal"}
PLACES = {"1": [0, 100], "11": [340, 0], "12": [700, 0], "13": [1060, 0], "3": [1460, 0]}
PLACES |= {"4": [1460, 260], "5": [340, 500], SAMPLER: [1920, 0], "7": [2250, 0], "8": [2510, 0]}
IN_ROWS = "<lora:first:0.8:0.5>\n# <lora:second:0.8:0>\n<lora:third:0.8:0.5>"
ENTRY = "Merge these LoRAs (IterIS)"
NEW = {"IterISMerge", "IterISCompare", "IterISSave"}


def loader(kind, name, model, **clip):
    strengths = {"strength_model": 0.8} | ({"strength_clip": 0.5} if clip else {})
    inputs = {"lora_name": f"{name}.safetensors", "model": model, **strengths, **clip}
    return {"class_type": kind, "inputs": inputs}


def drawn_with(loaders, model, clip):
    """Return a workflow that draws a picture with loaders of LoRAs, whose last ends these are."""
    sampled = {"positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    size = {"width": 512, "height": 512, "batch_size": 1}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "checkpoint.safetensors"}),
        "3": ("CLIPTextEncode", {"text": "demo1, demo2", "clip": clip}),
        "4": ("CLIPTextEncode", {"text": "rain", "clip": clip}),
        "5": ("EmptyLatentImage", size),
        SAMPLER: ("KSampler", {"model": model, **sampled, **SAMPLING}),
        "7": ("VAEDecode", {"samples": [SAMPLER, 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "x"}),
    }
    made = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    return made | loaders


def load_placed(frontend, graph, name):
    frontend.load(graph, name)
    workflow = frontend.workflow()
    for node in workflow["nodes"]:
        node["pos"] = PLACES[str(node["id"])]
    # Nodes 2.0 of older frontends draws a node where it was added
    frontend.load(workflow, name)
    frontend.show(11, left=300, top=200, scale=0.7)


def load_chain(frontend):
    """Load a picture drawn with loaders of single LoRAs: 11, 12 for the model alone, bypassed, and 13."""
    chain = {
        "11": loader("LoraLoader", "first", ["1", 0], clip=["1", 1]),
        "12": loader("LoraLoaderModelOnly", "second", ["11", 0]),
        "13": loader("LoraLoader", "third", ["12", 0], clip=["11", 1]),
    }
    load_placed(frontend, drawn_with(chain, ["13", 0], ["13", 1]), "loaders")
    frontend.page.evaluate("app.graph.getNodeById(12).mode = 4")


def choose_in_menu(frontend, node_id, picture=None):
    """Choose our entry in the menu of a loader."""
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
        picture(frontend, f"menu_{node_id}")
    item = page.get_by_text(ENTRY)
    if is_vue and not item.count():
        pytest.skip("the menu of older frontends has no entries of others in Nodes 2.0")
    item.click()


def placed(frontend):
    """Return place and size of each node that is not ours."""
    found = frontend.page.evaluate(
        "app.graph.nodes.map(({ id, type, pos, size }) => [id, type, [...pos], [...size]])"
    )
    return {key: (pos, size) for key, kind, pos, size in found if kind not in NEW}


def made_in(frontend):
    """Return the prompt, and the merge in it with its number."""
    frontend.page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'IterISSave')")
    frontend.settle()
    sent = frontend.prompt()
    ((key, merge),) = (
        (key, node["inputs"]) for key, node in sent.items() if node["class_type"] == "IterISMerge"
    )
    return sent, key, merge


@pytest.mark.parametrize("clicked", ["11", "13"])
def test_a_chain_of_loaders_becomes_a_merge_in_one_step(in_renderer, picture, clicked):
    frontend = in_renderer
    load_chain(frontend)
    before, places = frontend.prompt(), placed(frontend)
    choose_in_menu(frontend, clicked, picture)
    sent, key, merge = made_in(frontend)
    picture(frontend, f"merged_these_{clicked}")
    assert {"loras": IN_ROWS, **MODEL}.items() <= merge.items()
    assert sent[SAMPLER]["inputs"]["model"] == [key, 0]
    assert [sent[text]["inputs"]["clip"] for text in ("3", "4")] == [[key, 1]] * 2
    new = {node["class_type"]: node["inputs"] for node in sent.values()}
    assert new["IterISCompare"].items() >= {"merged": [key, 3], "vae": ["1", 2]}.items()
    assert new["IterISSave"]["merged"] == [key, 3]
    assert placed(frontend).items() <= places.items(), "nothing else is moved"
    ours = frontend.page.evaluate(
        "app.graph.nodes.filter(({ type }) => type.startsWith('IterIS')).map(({ pos }) => [...pos])"
    )
    (_, compare, save) = ours
    assert ours[0] == PLACES["11"]
    lowest = max(pos[1] + size[1] for pos, size in placed(frontend).values())
    assert min(compare[1], save[1]) > lowest
    told = frontend.page.locator(".p-toast-message", has_text="Merge LoRAs is in the place")
    told.get_by_role("button").click()
    frontend.undo()
    assert frontend.prompt() == before
    assert frontend.errors == []


def test_loaders_of_the_model_alone_leave_the_clip_to_the_texts(frontend):
    chain = {
        "11": loader("LoraLoaderModelOnly", "first", ["1", 0]),
        "12": loader("LoraLoaderModelOnly", "second", ["11", 0]),
    }
    load_placed(frontend, drawn_with(chain, ["12", 0], ["1", 1]), "model_alone")
    choose_in_menu(frontend, "12")
    sent, key, merge = made_in(frontend)
    assert merge["loras"] == "<lora:first:0.8:0>\n<lora:second:0.8:0>"
    assert {"model": ["1", 0], "clip": ["1", 1]}.items() <= merge.items()
    assert sent[SAMPLER]["inputs"]["model"] == [key, 0]
    assert sent["3"]["inputs"]["clip"] == ["1", 1]
    assert frontend.errors == []


def test_links_keep_the_reroutes_that_they_go_through(frontend):
    load_chain(frontend)
    add = """([node, slot]) => {
        const link = app.graph.getLink(app.graph.getNodeById(node).inputs[slot].link);
        return app.graph.createReroute([900, -200], link).id;
    }"""
    frontend.page.evaluate(add, [int(SAMPLER), 0])
    frontend.page.evaluate(add, [11, 0])
    choose_in_menu(frontend, "13")
    made_in(frontend)
    ways = """() => {
        const merge = app.graph.nodes.find(({ type }) => type === "IterISMerge");
        return [merge.inputs[0].link, app.graph.getNodeById(6).inputs[0].link]
            .map((id) => app.graph.getReroute(app.graph.getLink(id).parentId)?.pos);
    }"""
    found = frontend.page.evaluate(ways)
    assert [[*way.values()] if isinstance(way, dict) else way for way in found] == [[900, -200]] * 2
    assert frontend.errors == []


# a node of rgthree's instead of the three loaders
POWER = """(rows) => {
    class Power extends LiteGraph.LGraphNode {
        constructor() {
            super("Power Lora Loader (rgthree)");
            this.comfyClass = "Power Lora Loader (rgthree)";
            for (const type of ["MODEL", "CLIP"]) {
                this.addInput(type.toLowerCase(), type);
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
    for (const slot of [0, 1]) app.graph.getNodeById(1).connect(slot, node, slot);
    node.connect(0, app.graph.getNodeById(6), 0);
    for (const id of [3, 4]) node.connect(1, app.graph.getNodeById(id), 0);
    app.extensions.find(({ name }) => name === "IterIS.LoraMerge").nodeCreated(node);
    return node.id;
}"""


def test_a_loader_of_many_loras_becomes_a_merge(frontend):
    load_chain(frontend)
    rows = [{"on": True, "lora": "first.safetensors", "strength": 0.7, "strengthTwo": None}]
    rows += [{"on": False, "lora": "second.safetensors", "strength": 1, "strengthTwo": 0.5}]
    rows += [{"on": True, "lora": "third.safetensors", "strength": 1, "strengthTwo": None}]
    rows += [{"on": True, "lora": "None", "strength": 1, "strengthTwo": None}]
    choose_in_menu(frontend, frontend.page.evaluate(POWER, rows))
    sent, key, merge = made_in(frontend)
    text = "<lora:first:0.7>\n# <lora:second:1:0.5>\n<lora:third:1>"
    assert {"loras": text, **MODEL}.items() <= merge.items()
    assert sent[SAMPLER]["inputs"]["model"] == [key, 0]
    assert [sent[node]["inputs"]["clip"] for node in ("3", "4")] == [[key, 1]] * 2
    assert not any("LoraLoader" in node["class_type"] for node in sent.values())
    assert frontend.errors == []


LINKED = """() => {
    const said = LiteGraph.createNode("PrimitiveFloat");
    app.graph.add(said);
    const loader = app.graph.getNodeById(12);
    said.connect(0, loader, loader.inputs.findIndex(({ name }) => name === "strength_model"));
}"""
COLON = "app.graph.getNodeById(11).widgets.find(({ name }) => name === 'lora_name').value = 'a:b.safetensors'"
REFUSED = {
    "one is left": ("app.graph.getNodeById(13).mode = 4", "13", "One LoRA alone needs no merge"),
    "linked": (LINKED, "12", "Its file or a strength comes through a link"),
    "name": (COLON, "11", "A row cannot name a:b.safetensors"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_merged_is_left_and_the_page_says_why(frontend, why):
    load_chain(frontend)
    change, clicked, says = REFUSED[why]
    frontend.page.evaluate(change)
    before = frontend.workflow()
    choose_in_menu(frontend, clicked)
    told = frontend.page.locator(".p-toast-message", has_text=says)
    told.get_by_role("button").click()
    expect(told).to_be_hidden()
    assert json.dumps(frontend.workflow()["nodes"]) == json.dumps(before["nodes"])
    assert frontend.errors == []


def test_inside_a_subgraph_it_says_that_it_does_not_work_there(frontend):
    load_chain(frontend)
    frontend.into_subgraph(11, 12, 13, show=True)
    frontend.settle(20)
    frontend.page.evaluate(
        """() => {
            const options = [];
            app.canvas.graph.getNodeById(13).getExtraMenuOptions(app.canvas, options);
            options.find((option) => option?.content.startsWith("Merge these")).callback();
        }"""
    )
    expect(
        frontend.page.locator(".p-toast-message", has_text="Not inside a subgraph")
    ).to_be_visible()
    assert frontend.errors == []
