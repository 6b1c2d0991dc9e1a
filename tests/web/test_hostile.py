"""Names and texts of strangers in the page: none runs as script, and all are read as they are."""

import json

import pytest
from safetensors.torch import load_file, save_file

from iteris_core.config import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.recipe import recipe_of
from iteris_core.files.metadata import RECIPE_KEY
from iteris_core.files.tensors import sha256


def attack(place):
    """Return a text that says where it came from if it runs as script; it is fit for a file name."""
    return f"a [[b|https:]] __LNK7__ &lt; www.b.example <img src=x onerror=\"(window.ran??=[]).push('{place}')\">"


NAME, PHRASE, TAG, PROMPT, RECIPE = map(attack, ("name", "phrase", "tag", "prompt", "recipe"))
PHRASE, TAG, PROMPT, RECIPE = (
    f"{text} https://b.example" for text in (PHRASE, TAG, PROMPT, RECIPE)
)
# but for those of core's own Preview as Text, which draws any text as markdown
LINKS = "[...document.querySelectorAll('a')].filter((a) => !a.closest('.comfy-markdown')).map((a) => a.href).filter((to) => to.includes('b.example'))"
CALLED = "<img src=x onerror=window.ran=['called']>"


@pytest.fixture(scope="module")
def hostile(server):
    """Write LoRAs of a hostile name, trigger phrase and tag, and one with a hostile recipe."""
    folder = server.log.parent / "models" / "loras"
    tensors = load_file(folder / "first.safetensors")
    tags = json.dumps({"1_x": {TAG: 3}})
    files = {
        f"{NAME}.safetensors": {},
        "phrase.safetensors": {"modelspec.trigger_phrase": PHRASE},
        "tags.safetensors": {"ss_tag_frequency": tags},
    }
    for name, metadata in files.items():
        save_file(tensors, folder / name, metadata)
    use = LoraUse(
        name="first",
        file="first.safetensors",
        sha256=sha256(folder / "first.safetensors"),
        strength_model=1.0,
        strength_clip=1.0,
        prompts=(RECIPE,),
    )
    settings = json.dumps(recipe_of([use], Calibration(), MergeConfig()))
    save_file(tensors, folder / "recipe.safetensors", {RECIPE_KEY: settings})
    yield
    for name in (*files, "recipe.safetensors"):
        (folder / name).unlink()


@pytest.fixture(scope="module")
def frontend(lent, hostile):
    """A page that has listed the hostile files."""
    with lent() as opened:
        yield opened


def lora(name, prompts, **more):
    strengths = {"strength_model": 1.0, "strength_clip": 1.0, "priority": 1.0}
    inputs = {"lora_name": name, **strengths, "prompts": prompts, **more}
    return {"class_type": "IterISLora", "inputs": inputs}


def nodes(priority):
    """Return nodes that tell such texts; the server does the work anew for each priority."""
    return {
        "1": lora(f"{NAME}.safetensors", PROMPT, priority=priority),
        "2": lora("phrase.safetensors", "", previous=["1", 0]),
        "3": lora("tags.safetensors", "", previous=["2", 0]),
        "5": {
            "class_type": "IterISRecipe",
            "inputs": {"lora_name": "recipe.safetensors", "check_files": priority < 2},
        },
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}},
    }


# Node -> what its text says, among other things.
SAID = {"1": (NAME, PROMPT), "2": (PHRASE,), "3": (TAG,), "5": (RECIPE,)}


SHOWN = "app.graph.nodes.flatMap(({ widgets }) => widgets).map((w) => w.element).filter(Boolean)"


def ran(frontend):
    frontend.settle()
    return frontend.page.evaluate("window.ran ?? []")


HOST_ALONE = pytest.param(False, marks=pytest.mark.nightly, id="host_alone")


@pytest.mark.parametrize("extension", [HOST_ALONE, pytest.param(True, id="with_extension")])
def test_texts_of_strangers_are_shown_and_do_not_run(request, hostile, picture, extension):
    """Without the pack's extension, the page shows none of these texts on nodes."""
    if extension:
        frontend = request.getfixturevalue("frontend")
    else:
        alone = {"Comfy_Extension_Disabled": ["IterIS.LoraMerge"]}
        frontend = request.getfixturevalue("open_frontend")(**alone)
    frontend.load(nodes(priority=1 + extension), f"hostile_{extension}")
    frontend.run_to_the_end()
    assert ran(frontend) == []
    shown = frontend.page.evaluate(f"{SHOWN}.map((e) => e.textContent)")
    for node, texts in SAID.items() if extension else ():
        # LoRA to merge shows what its file says, and not its own widgets
        for text in () if node == "1" else texts:
            assert any(text in whole for whole in shown), (node, text)
    assert frontend.page.evaluate(LINKS) == []
    picture(frontend, f"hostile_{extension}")
    assert frontend.errors == []


ESCAPED = PROMPT.replace("|", "\\|")
ROWS = f"""<lora:phrase:1> called="{CALLED}" | {ESCAPED}
<lora:first:1> {TAG}
# {RECIPE}
<lora:gone{PHRASE.replace("<", "").replace(">", "").replace(":", "")}:1>"""


def test_rows_of_strangers_texts_and_files_do_not_run(frontend, hostile, picture):
    inputs = {"loras": ROWS, "preset": "Balanced", "together": False, "size": "as is"}
    frontend.load({"1": {"class_type": "IterISMerge", "inputs": inputs}}, "hostile_rows")
    frontend.show(1, top=60)
    page = frontend.page
    page.locator(".iteris-opener").first.click()
    page.wait_for_selector(".iteris-row .iteris-chip")
    shown = page.eval_on_selector_all(
        ".iteris-rows, .iteris-rows :is(input, textarea)",
        "all => all.map(e => e.value ?? e.textContent)",
    )
    for text in (CALLED, PROMPT, TAG, RECIPE, PHRASE):
        assert any(text in whole for whole in shown), text
    page.locator(".iteris-add").click()
    option = page.locator(".iteris-option", has_text="(window.ran??=[]).push('name')")
    assert option.text_content() == NAME
    picture(frontend, "hostile_rows")
    option.click()  # no row can name a file with such letters
    assert NAME in page.locator(".iteris-choice > .iteris-quiet").inner_text()
    page.keyboard.press("Escape")
    assert frontend.prompt()["1"]["inputs"]["loras"] == ROWS
    page.locator(".iteris-other").click()
    assert ran(frontend) == []
    assert frontend.errors == []


def test_a_text_of_any_length_is_drawn_as_far_as_it_can_be(frontend):
    """The page would not come back from drawing all of it."""
    text = "\n".join(["<lora:first:1> | a photo"] * 20_000)
    inputs = {"loras": text, "preset": "Balanced", "together": False, "size": "as is"}
    frontend.load({"1": {"class_type": "IterISMerge", "inputs": inputs}}, "long_rows")
    frontend.show(1, top=60)
    frontend.page.wait_for_selector(".iteris-row")
    assert frontend.page.locator(".iteris-row").count() == 200
    assert "more rows than can be shown" in frontend.page.locator(".iteris-list").inner_text()
    frontend.page.locator(".iteris-toggle").first.click()
    assert frontend.prompt()["1"]["inputs"]["loras"] == f"# {text}"
    assert frontend.errors == []
