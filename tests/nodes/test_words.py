"""Help pages: all there, for every node."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from iteris_pack.nodes import IterisExtension

ROOT = Path(__file__).parents[2]


@pytest.fixture
def schemas(replace_host):
    """Return what each node declares."""
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
    return {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}


def test_every_node_has_a_help_page_that_names_every_input(schemas):
    for name, schema in schemas.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith("# ")
        missing = [item.id for item in schema.inputs if f"**{item.id}**" not in page]
        assert not missing, f"web/docs/{name}.md says nothing about {', '.join(missing)}"
