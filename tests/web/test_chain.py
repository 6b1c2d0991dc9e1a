"""What buttons change in the graph: nodes and links are laid out so that they can be read, and Undo takes it back."""

import json
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).parents[2] / "workflows"
LOADER, LATENT, ENCODER, SAMPLER = "2", "5", "3", "6"
MODEL = {"model": ["1", 0], "clip": ["1", 1]}
ROWS = "<lora:first:1>\n<lora:second:1>"
SAMPLING = {"seed": 1, "steps": 2, "cfg": 7, "denoise": 1}
SAMPLING |= {"sampler_name": "euler", "scheduler": "normal"}
PLACES = {"1": [0, 100], LOADER: [340, 0], ENCODER: [800, 0], "4": [800, 260], LATENT: [340, 300]}
PLACES |= {SAMPLER: [1260, 0], "7": [1590, 0], "8": [1850, 0]}
# the ends of links that seem to go to a node that they only go behind
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


def plain(loader):
    """Return a picture that is drawn with LoRAs: a loader of them, or a merge."""
    clip = {"clip": [LOADER, 1]}
    sampled = {"positive": [ENCODER, 0], "negative": ["4", 0], "latent_image": [LATENT, 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "checkpoint.safetensors"}),
        LOADER: (loader, MODEL | {"loras": ROWS}),
        ENCODER: ("CLIPTextEncode", {"text": "a", **clip}),
        "4": ("CLIPTextEncode", {"text": "", **clip}),
        LATENT: ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        SAMPLER: ("KSampler", {"model": [LOADER, 0], **sampled, **SAMPLING}),
        "7": ("VAEDecode", {"samples": [SAMPLER, 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "x"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def load_plain(frontend, loader="IterISLoad"):
    frontend.load(plain(loader), "plain")
    places = PLACES if loader == "IterISLoad" else PLACES | {LATENT: [340, 1200]}
    place = "places => Object.entries(places).forEach(([id, at]) => { app.graph.getNodeById(id).pos = at; })"
    frontend.page.evaluate(place, places)
    frontend.show(int(LOADER), left=300, top=150, scale=0.5)
    frontend.keep()


def kinds(frontend):
    return sorted(node["class_type"] for node in frontend.prompt().values())


def how_laid_out(frontend):
    """Return links behind nodes, nodes over a group's border, and nodes that cover one another."""
    hidden, over = frontend.page.evaluate(HIDDEN), frontend.page.evaluate(OVER_A_BORDER)
    return set(hidden), set(over), {tuple(pair) for pair in frontend.overlaps()}


def merge_these(frontend):
    frontend.page.locator(".iteris-merge-these").press("Enter")
    frontend.page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'IterISCompare')")
    frontend.settle(60)


@pytest.mark.parametrize("where", ["template", "plain"])
def test_a_loader_becomes_a_merge_whose_links_go_behind_no_node(in_renderer, picture, where):
    frontend = in_renderer
    if where == "template":
        (file,) = WORKFLOWS.glob("11 *.json")
        frontend.load(json.loads(file.read_text(encoding="utf-8")), file.stem)
        # all is seen in Nodes 2.0, which measures nothing else
        frontend.show(1, left=100, top=300, scale=0.5)
        frontend.keep()
    else:
        load_plain(frontend)
    # not all nodes of other packs have the room that Nodes 2.0 takes
    before, then = kinds(frontend), how_laid_out(frontend)
    merge_these(frontend)
    picture(frontend, f"merge_these_{where}")
    assert all(now <= then for now, then in zip(how_laid_out(frontend), then, strict=True))
    ends = "[...new Set(app.graph.groups.map(({ pos, size }) => Math.round(pos[1] + size[1])))]"
    assert len(frontend.page.evaluate(ends)) == (where == "template"), "groups end at one height"

    points = "app.graph.reroutes.size"
    merged = kinds(frontend), frontend.page.evaluate(points)
    assert "IterISMerge" in merged[0]
    frontend.undo()
    assert kinds(frontend) == before, "in one step"
    frontend.undo("redo")
    assert (kinds(frontend), frontend.page.evaluate(points)) == merged
    assert frontend.errors == []


def test_a_pinned_node_stays_where_it_is(frontend):
    load_plain(frontend)
    pinned = [LATENT, ENCODER]
    places = "ids => ids.map((id) => app.graph.getNodeById(id)).map(({ pos }) => [...pos])"
    frontend.page.evaluate(
        "ids => ids.forEach((id) => app.graph.getNodeById(id).pin(true))", pinned
    )
    before = frontend.page.evaluate(places, pinned)
    merge_these(frontend)
    assert frontend.page.evaluate(places, pinned) == before
    assert frontend.overlaps() == []
    assert frontend.errors == []


def test_a_save_at_a_click_is_one_step_with_the_seeds_of_its_run(in_renderer):
    frontend = in_renderer
    load_plain(frontend, "IterISMerge")
    verdict = {"layers": [], "fidelity": [], "unmatched": {}, "notes": []}
    frontend.executed(int(LOADER), {"iteris_report": [verdict]})
    frontend.settle(40)
    frontend.keep()
    seed = "app.graph.getNodeById('6').widgets.find(({ name }) => name === 'seed').value"
    before = kinds(frontend), frontend.page.evaluate(seed)
    answer = {"prompt_id": "saves", "number": 1, "node_errors": {}}
    frontend.page.route("**/prompt", lambda route: route.fulfill(json=answer))
    with frontend.page.expect_response("**/prompt"):
        frontend.page.locator(".iteris-file").get_by_role("button", name="Save").click()
    frontend.page.unroute("**/prompt")
    frontend.settle(40)
    frontend.keep()
    after = kinds(frontend), frontend.page.evaluate(seed)
    assert "IterISSave" in after[0]
    assert after[1] != before[1]
    # Nodes 2.0 of 0.3.75 moves the merge
    if not frontend.settings["Comfy.VueNodes.Enabled"]:
        assert "IterISSave merged" not in frontend.page.evaluate(HIDDEN)
    frontend.undo()
    assert (kinds(frontend), frontend.page.evaluate(seed)) == before
    frontend.undo("redo")
    assert (kinds(frontend), frontend.page.evaluate(seed)) == after
    assert frontend.errors == []
