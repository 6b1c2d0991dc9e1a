"""Make the workflows that ComfyUI's template browser lists, and the pictures of the documentation,
in the real frontend.

    python tests/web/make_pictures.py workflows [NAME ...]
    python tests/web/make_pictures.py walkthrough

The first makes workflows/*.json and *.jpg from workflows/api/*.json, the second docs/img/*.jpg.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import browser
from PIL import Image
from safetensors.torch import load_file, save_file
from workflow_files import list_transformer
from workflow_notes import NOTES

from iteris_core.cli.demo import server as demo_server
from iteris_core.cli.demo.checkpoint import write_checkpoint, write_lora
from iteris_core.cli.demo.server import ComfyServer, cache_folder, find_comfyui

ROOT = Path(__file__).resolve().parents[2]
PACK = "iteris-lora-merge"  # the folder that git clone makes
GAP_X = 80
GAP_Y = 60
TITLE = 30
WIDTHS = {
    "IterISMerge": 400,
    "IterISLora": 340,
    "CLIPTextEncode": 300,
    "IterISScene": 320,
    "IterISSave": 300,
    "IterISStack": 320,
    "IterISSettings": 280,
    "IterISRecipe": 340,
    "IterISReport": 300,
    "CheckpointLoaderSimple": 280,
    "UNETLoader": 280,
    "DualCLIPLoader": 280,
    "VAELoader": 280,
    "LoraLoader": 280,
    "SaveImage": 300,
}
NOTE_WIDTH = 340
NOTE_LINE = 14
NOTE_LETTERS = 46
# for what comes with a run: a report, pictures, or a few lines of text; and for inputs that a newer
# ComfyUI adds
ROOM_BELOW = {"IterISMerge": 260, "IterISReport": 420, "TrainLoraNode": 200} | dict.fromkeys(
    ("IterISSave", "IterISStack", "IterISModelLoras", "IterISScene", "IterISTrainedLora"), 110
)
MOST_BYTES = {"workflows": 195_000, "walkthrough": 145_000}
READABLE = 0.6  # of the frontend's own size: titles can still be read


def columns(prompt: dict) -> dict[str, int]:
    """Return each node's column: what ends a branch right behind what it needs, the rest right
    before what it is for.
    """
    edges = [
        (value[0], key, steps(node["class_type"], name))
        for key, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    ]

    def earliest(key: str) -> int:
        return max(
            (earliest(source) + step for source, user, step in edges if user == key), default=0
        )

    def column(key: str) -> int:
        return min(
            (column(user) - step for source, user, step in edges if source == key),
            default=earliest(key),
        )

    return {key: column(key) for key in prompt}


def steps(class_type: str, name: str) -> int:
    """Return how many columns an input's node stands before its user: LoRAs of a chain in one,
    right before their merge.
    """
    if name == "previous":
        return 0
    return 1


def arrange(frontend: browser.Frontend, prompt: dict) -> None:
    """Put the nodes into columns, from left to right as the data goes."""
    sizes = frontend.page.evaluate(
        """widths => Object.fromEntries(app.graph.nodes.map((node) => {
            const [width, height] = node.computeSize();
            node.setSize([Math.max(width, widths[node.type] ?? 0, 10 * node.title.length + 60), height]);
            return [node.id, [...node.size]];
        }))""",
        WIDTHS,
    )
    column_of = columns(prompt)
    places = {}
    x = 0.0
    for column in range(min(column_of.values()), max(column_of.values()) + 1):
        members = sorted((key for key, value in column_of.items() if value == column), key=int)
        y = 0.0
        for key in members:
            places[key] = [x, y]
            y += sizes[key][1] + TITLE + GAP_Y + ROOM_BELOW.get(prompt[key]["class_type"], 0)
        x += max((sizes[key][0] for key in members), default=-GAP_X) + GAP_X
    frontend.page.evaluate(
        "places => app.graph.nodes.forEach((node) => { node.pos = places[node.id]; })", places
    )
    frontend.settle()


def add_note(frontend: browser.Frontend, text: str) -> None:
    """Put a note to the left of everything, as high as its text."""
    lines = sum(1 + len(line) // NOTE_LETTERS for line in text.splitlines())
    frontend.page.evaluate(
        """([text, size, gap]) => {
            const note = LiteGraph.createNode('MarkdownNote');
            note.title = 'What this does';
            note.widgets[0].value = text;
            note.pos = [Math.min(...app.graph.nodes.map(({ pos }) => pos[0])) - size[0] - gap, 0];
            app.graph.add(note);
            note.setSize(size);
        }""",
        [text, [NOTE_WIDTH, NOTE_LINE * lines], GAP_X],
    )
    frontend.settle()


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


def save(picture: bytes, path: Path, most_bytes: int, width: int = 1500) -> None:
    """Save a screenshot as JPEG, in the best quality that fits."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.LANCZOS)
    for quality in range(90, 30, -5):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size < most_bytes:
            return
    raise SystemExit(f"{path} does not fit into {most_bytes} bytes")


def make_workflows(chromium: object, address: str, names: list[str]) -> None:
    frontend = browser.Frontend(chromium, address, width=3200, height=1500)
    for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
        if names and path.stem not in names:
            continue
        prompt = json.loads(path.read_text(encoding="utf-8"))
        frontend.load(prompt, path.stem)
        fixed_seeds(frontend)
        whole(frontend)  # what is out of sight has no height
        frontend.words_shown()
        arrange(frontend, prompt)
        add_note(frontend, NOTES[path.stem])
        place = whole(frontend)
        frontend.settle()
        width = round(place["width"] * READABLE / frontend.page.evaluate("app.canvas.ds.scale"))
        picture = frontend.page.screenshot(clip=place)
        save(
            picture,
            ROOT / "workflows" / f"{path.stem}.jpg",
            MOST_BYTES["workflows"],
            max(1500, width),
        )
        frontend.show(int(min(prompt, key=int)), left=150, top=200)
        text = json.dumps(frontend.workflow(), indent=1, ensure_ascii=False)
        (ROOT / "workflows" / path.name).write_text(text + "\n", encoding="utf-8")
        print(path.stem, place)


def add_settings(frontend: browser.Frontend, merge: int) -> int:
    """Connect Merge settings to a merge, out of sight, and return its node."""
    return frontend.page.evaluate(
        """(merge) => {
            const node = LiteGraph.createNode('IterISSettings');
            node.pos = [0, -2000];
            app.graph.add(node);
            node.connect(0, app.graph.getNodeById(merge), 'settings');
            return node.id;
        }""",
        merge,
    )


def make_walkthrough(chromium: object, address: str, names: list[str]) -> None:
    """Take the pictures of a first merge, from the template to the report."""
    frontend = browser.Frontend(chromium, address, width=1500, height=900)
    page = frontend.page
    folder = ROOT / "docs" / "img"
    folder.mkdir(exist_ok=True)
    if (news := page.get_by_text("Introducing Nodes 2.0")).count():
        news.locator("xpath=ancestor::*[count(.//button) > 1][1]//button").last.click()

    def shoot(name: str, **options: object) -> None:
        frontend.settle(40)
        save(
            page.screenshot(**options),
            folder / f"{name}.jpg",
            MOST_BYTES["walkthrough"],
            width=1300,
        )
        print(name)

    page.get_by_role("button", name="Templates").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(PACK, exact=True).click()
    dialog.get_by_text("merge_two_loras").first.wait_for()
    frontend.pictures_shown()
    shoot("1_template")
    dialog.get_by_text("merge_two_loras").first.click()
    page.wait_for_function("app.graph.nodes.some((node) => node.type === 'IterISMerge')")
    frontend.words_shown()
    shoot("2_workflow", clip=whole(frontend))
    merge = 5
    prompt = 7
    frontend.set_widgets(merge, loras="<lora:sks_dog:1>\n<lora:ink_wash:1> style")
    frontend.set_widgets(prompt, text="a photo of sks dog in a garden, ink wash style")
    frontend.show(merge, left=430, top=130)
    shoot("3_loras")
    few = {"sample_runs": 5, "latents_per_run": 2, "sampling_steps": 4, "resolution": 128}
    frontend.set_widgets(add_settings(frontend, merge), **few)
    frontend.set_widgets(9, width=64, height=64)
    frontend.set_widgets(10, steps=2)
    page.mouse.move(750, 850)
    frontend.run()
    page.wait_for_function(
        "app.graph.getNodeById(5).widgets.some((widget) => widget.name.includes('text-preview'))"
    )
    frontend.show(merge, left=330, top=130)
    page.locator(".iteris-block").nth(5).wait_for()
    shoot("4_running")
    page.wait_for_selector(".iteris-file")
    page.wait_for_selector(".iteris-text >> text=read back")
    page.locator(".p-toast-message").first.wait_for(state="hidden")
    frontend.show(merge, left=330, top=90)
    page.locator(".iteris-details summary").click()
    frontend.show(merge, left=330, top=-200)
    page.locator('.iteris-block[data-block="MID"]').hover()
    shoot("5_report")


def main() -> None:
    what, *names = sys.argv[1:]
    demo_server.PACK_NAME = PACK
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_checkpoint(base / "models" / "checkpoints" / "checkpoint.safetensors")
        list_transformer(base / "models")
        loras = base / "models" / "loras"
        for seed, name in enumerate(("first", "second", "third"), start=1):
            write_lora(loras / f"{name}.safetensors", seed=seed)
        for name, phrase in (("sks_dog", "sks dog"), ("ink_wash", "ink wash style")):
            tensors = load_file(loras / f"{'first' if name == 'sks_dog' else 'second'}.safetensors")
            save_file(
                tensors,
                loras / f"{name}.safetensors",
                {"modelspec.trigger_phrase": phrase, "ss_base_model_version": "sd_v1"},
            )
        with (
            ComfyServer(
                find_comfyui(cache_folder()),
                base,
                base / "server.log",
                device="cpu",
            ) as server,
            browser.chromium(browser.find_chromium()) as chromium,
        ):
            {"workflows": make_workflows, "walkthrough": make_walkthrough}[what](
                chromium, server.address, names
            )


if __name__ == "__main__":
    main()
