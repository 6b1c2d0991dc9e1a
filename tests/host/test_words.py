"""Help pages and translations: all there, for every node that the running host offers."""

import json
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.host
ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "zh", "ja")
ONLY_NEWER_HOSTS = [("IterISMerge", "more")]  # inputs that grow, from ComfyUI 0.8 on


@pytest.fixture(scope="module")
def schemas(host):
    """Return what the host tells about our nodes, in the shape of a locale file."""
    found = {}
    for name, node in host.client.object_info().items():
        if not name.startswith("IterIS"):
            continue
        inputs = {
            key: spec
            for part in ("required", "optional")
            for key, spec in node["input"].get(part, {}).items()
        }
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        found[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {
                key: {"name": key, "tooltip": options["tooltip"]}
                for key, (_, options) in inputs.items()
            },
            "outputs": {
                str(i): {"name": key} | ({"tooltip": tooltip} if tooltip else {})
                for i, (key, tooltip) in enumerate(outputs)
            },
        }
    assert len(found) >= 10
    return found


def read(language: str, name: str):
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def shape(value):
    """Return the keys of nested dicts."""
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else None


def texts(value):
    return (
        [text for item in value.values() for text in texts(item)]
        if isinstance(value, dict)
        else [value]
    )


def nodes_in(language: str, schemas):
    """Return a language's words for the nodes, without those for inputs that this host is too old
    for.
    """
    nodes = read(language, "nodeDefs")
    for name, key in ONLY_NEWER_HOSTS:
        if key not in schemas[name]["inputs"]:
            del nodes[name]["inputs"][key]
    return nodes


def test_english_is_what_the_schemas_say(schemas):
    assert nodes_in("en", schemas) == schemas


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_complete_and_the_frontend_can_read_them(schemas, language):
    nodes = nodes_in(language, schemas)
    main = read(language, "main")
    assert shape(nodes) == shape(schemas)
    assert shape(main) == shape(read("en", "main"))
    for text in (*texts(nodes), *texts(main)):
        assert text.strip()
        assert not set("{}@|") & set(text), (
            f"the frontend's translations give these letters a meaning: {text}"
        )


def test_the_host_serves_the_translations(host, schemas):
    with urllib.request.urlopen(f"http://{host.server.address}/i18n", timeout=10) as response:
        served = json.load(response)
    assert {
        language: served[language]["nodeDefs"].keys() >= schemas.keys() for language in LANGUAGES
    } == dict.fromkeys(LANGUAGES, True)


def test_every_node_has_a_help_page_that_names_every_input(schemas):
    for name, node in schemas.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith("# ")
        missing = [key for key in node["inputs"] if f"**{key}**" not in page]
        assert not missing, f"web/docs/{name}.md says nothing about {', '.join(missing)}"
