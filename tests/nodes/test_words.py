"""Help pages and translations: all there, for every node."""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from iteris_pack.nodes import IterisExtension
from iteris_pack.nodes.merge import NOT_BEGUN

from iteris_core.diffusion.stages import DENOISER, POLISH, SAMPLING

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "zh", "ja")


@pytest.fixture
def schemas(replace_host):
    """Return what the nodes declare, in the shape of a locale file."""
    replace_host(
        lora_names=list,
        sampler_names=list,
        scheduler_names=list,
        note_prompts=lambda: None,
        answer_at=lambda *route: None,
        picture_at=lambda *route: None,
    )
    # in a thread of its own, since Playwright's loop may run in this one
    with ThreadPoolExecutor(1) as thread:
        nodes = thread.submit(asyncio.run, IterisExtension().get_node_list()).result()
    return {
        schema.node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                input.id: {"name": input.display_name or input.id, "tooltip": input.tooltip}
                for input in schema.inputs
            },
            "outputs": {str(i): words_of(output) for i, output in enumerate(schema.outputs)},
        }
        for schema in (node.define_schema() for node in nodes)
    }


def words_of(output):
    tooltip = {"tooltip": output.tooltip} if output.tooltip else {}
    return {"name": output.display_name, **tooltip}


def read(language: str, name: str):
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def shape(value):
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else None


def texts(value):
    return (
        [text for item in value.values() for text in texts(item)]
        if isinstance(value, dict)
        else [value]
    )


def test_english_is_what_the_schemas_say(schemas):
    assert read("en", "nodeDefs") == schemas


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_complete_and_the_frontend_can_read_them(language):
    nodes = read(language, "nodeDefs")
    main = read(language, "main")
    assert shape(nodes) == shape(read("en", "nodeDefs"))
    assert shape(main) == shape(read("en", "main"))
    for text in (*texts(nodes), *texts(main)):
        assert text.strip()
        assert not set("{}@|") & set(text), (
            f"the frontend's translations give these letters a meaning: {text}"
        )


def test_every_node_has_a_help_page_that_names_every_input(schemas):
    for name, node in schemas.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith("# ")
        missing = [key for key in node["inputs"] if f"**{key}**" not in page]
        assert not missing, f"web/docs/{name}.md says nothing about {', '.join(missing)}"


PAGES = sorted((ROOT / "web" / "docs").glob("*/*.md"))


def test_every_help_page_is_translated(schemas):
    expected = {(name, language) for name in schemas for language in LANGUAGES if language != "en"}
    assert {(path.parent.name, path.stem) for path in PAGES} == expected


def test_a_translated_help_page_names_every_input_and_has_every_example(schemas):
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        english = path.parent.with_suffix(".md").read_text(encoding="utf-8")
        missing = [key for key in schemas[path.parent.name]["inputs"] if f"**{key}**" not in page]
        assert not missing, f"{path} says nothing about {', '.join(missing)}"
        for part in (r"^## ", r"^    \S"):  # headings, examples
            counts = [len(re.findall(part, text, re.MULTILINE)) for text in (page, english)]
            assert counts[0] == counts[1], path


def test_the_page_knows_which_stages_come_after_the_sampling_runs():
    source = (ROOT / "web" / "progress.js").read_text(encoding="utf-8")
    assert f"AFTER_SAMPLING = {json.dumps([DENOISER, POLISH])};" in source
    assert f'name === "{SAMPLING}"' in source


def test_the_page_knows_how_a_merge_says_that_another_node_tells_why():
    """The server passes on words alone."""
    assert f'"{NOT_BEGUN}"' in (ROOT / "web" / "run_events.js").read_text(encoding="utf-8")
