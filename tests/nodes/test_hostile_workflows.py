"""Workflows and recipes of strangers: what a node makes of them is its result or an error that says
what is wrong, and never anything else.

    ITERIS_CASES=5000 pytest tests/nodes/test_hostile_workflows.py

tries 5000 of each kind.
"""

import itertools
import json
import math
import os
import time
import types
from dataclasses import asdict

import pytest
import torch
from fake_host import use
from fuzz_files import JSON
from hypothesis import HealthCheck, given, settings
from iteris_pack.nodes.compare import Compare
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.recipe import LoadRecipe
from iteris_pack.nodes.save import SaveMergedLora
from iteris_pack.nodes.settings import Settings
from iteris_pack.nodes.sockets import ChosenLora, MergedLora
from safetensors.torch import save_file

from iteris_core import Adapter, ConfigError, IterisError, MergeConfig, MergeReport
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.lora_use import MOST_LORAS
from iteris_core.diffusion.presets import Changes
from iteris_core.diffusion.recipe import Recipe, recipe_of
from iteris_core.files.metadata import RECIPE_KEY
from iteris_core.progress import nobody

CASES = int(os.environ.get("ITERIS_CASES", "60"))
SECONDS = 5.0  # of the processor, for a case
MANY = settings(
    max_examples=CASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NODES = [LoraToMerge, Settings, Merge, Compare, LoadRecipe]
LORA = "folder/cat.safetensors"


class WorkBegins(Exception):
    """The inputs were accepted, and the model would be asked now."""


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def endless():
    value = []
    value += [value, value]
    return value


class Strange:
    """An object that answers nothing."""

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    __float__ = __len__ = __bool__


def chain(*names):
    return tuple(ChosenLora(use(name, (f"a {name}",), file=LORA)) for name in names)


def patcher():
    return types.SimpleNamespace(model=None, patches={}, patcher=None, cond_stage_model=None)


class Model:
    """A base model that is asked for something."""

    def __getattr__(self, name):
        raise WorkBegins


def merged():
    """A merge of LoRAs that nothing is read of before the model is asked."""
    loras = tuple(LoadedLora(lora.use, Adapter("", {})) for lora in chain("cat", "dog"))
    return MergedLora(Adapter("merged", {}), Model(), "{}", loras)


# Things that another node might put onto a link, or a program into a workflow.
HOSTILE = {
    "none": None,
    "empty": "",
    "word": "cat",
    "long": "a " * 60_000,
    "half a character": "a photo of \ud800",
    "up": "../../checkpoints/model.safetensors",
    "not listed": "notes.txt",
    "markup": "<lora:cat:1e999> <lora:cat:nan:nan> {trigger} {0.__class__} %s ${x}",
    "open tags": "<lora:" * 5_000,
    "nan": math.nan,
    "inf": math.inf,
    "10^400": 10**400,
    "10^5000": 10**5000,
    "minus one": -1,
    "complex": 1j,
    "names": ["cat", "cat"],
    "pair": ("cat", 10**400, math.nan),
    "entry": [["cat", "1e999", None], {"lora": "cat", "strength": 10**400}],
    "odd keys": {1: 2, None: [3], (4,): "cat"},
    "switch": {"on": Strange(), "lora": "cat"},
    "100,000 deep": deep(100_000),
    "endless": endless(),
    "wide": [["cat", 1.0, 1.0]] * 5_000,
    "huge range": range(10**12),
    "bytes": b"cat",
    "object": Strange(),
    "function": chain,
    "tensor": torch.ones(3),
    "picture": torch.zeros(0, 8, 8, 3),
    "state": {"x": 1},
    "chain": chain("cat", "dog"),
    "long chain": chain(*["cat"] * (MOST_LORAS + 1)),
    "calibration": Calibration(),
    "changes": Changes({"trajectories": 3}),
    "recipe": Recipe((), Calibration(), MergeConfig(), {}),
    "rows": f"<lora:{LORA}:0.5> style priority=2 | a cat\n# <lora:no such file>",
    "many rows": "<lora:cat>\n" * 10_000,
    "odd rows": '<lora:cat:1> called="{trigger} without=* | {a|b} \\| " priority=1e999',
    "many layers": "<lora:cat> " + "without=a " * 15_000,
    "many prompts": "<lora:cat> " + "|{" * 50_000,
    "merged": MergedLora(Adapter("none", {}), None, ""),
    "report": MergeReport(()),
}

GOOD = {
    "lora_name": LORA,
    "lora_stack": [(LORA, 1.0, 1.0)],
    "prompts": "a cat",
    "more_loras": chain("cat", "dog"),
    "model": patcher(),
    "clip": patcher(),
    "vae": types.SimpleNamespace(decode=None),
    "merged": merged(),
    "seed": 0,
}

# in errors
CALLED = {"protected_prompts": "preserve_captions", "lora_stack": "the stack"}
CALLED |= {"loras": "Row "}


def good_inputs(node):
    inputs = {}
    for item in node.define_schema().inputs:
        if item.id == "loras" and item.io_type == "STRING":
            inputs["loras"] = "<lora:cat:0.5> style | a cat"
        elif item.id in GOOD:
            inputs[item.id] = GOOD[item.id]
        elif not item.optional:
            inputs[item.id] = item.more.get("default", "")
    return inputs


@pytest.fixture
def host(replace_host, tmp_path, monkeypatch):
    """The nodes in a host with one LoRA, and with whatever else a test writes into its folder."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("secret")
    tensors = {"lora_unet_q.lora_up.weight": torch.ones(4, 2)}
    tensors["lora_unet_q.lora_down.weight"] = torch.ones(2, 4)
    save_file(tensors, tmp_path / LORA, {"modelspec.trigger_phrase": "sks cat"})

    def names():
        return [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors")]

    def find(name):
        return tmp_path / name if name in names() else None

    def found(name):
        if find(name) is None:
            raise IterisError(f"no {name!r:.40}")
        return find(name)

    def begin(*_, **__):
        raise WorkBegins

    replace_host(
        lora_names=names,
        sampler_names=lambda: ["euler"],
        scheduler_names=lambda: ["simple"],
        find_lora=find,
        lora_path=found,
        stage_progress=lambda node_id: nobody,
        ComfyModel=begin,
        heed_cancel=lambda: None,
    )
    hidden = types.SimpleNamespace(unique_id="1", prompt={})
    for node in NODES:
        monkeypatch.setattr(node, "hidden", hidden, raising=False)
    return tmp_path


def outcome(node, inputs):
    """Return "done" or the error that a node names; a fingerprint is asked for first, as by the host."""
    start = time.thread_time()
    try:
        if hasattr(node, "fingerprint_inputs"):
            node.fingerprint_inputs(**inputs)
        node.execute(**inputs)
        return "done"
    except WorkBegins:
        return "begins"
    except IterisError as error:
        assert str(error).strip()
        assert len(str(error)) < 5_000
        str(error).encode("utf-8", "backslashreplace")
        return str(error)
    finally:
        assert time.thread_time() - start < SECONDS


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_node_does_its_work_with_good_inputs(host, node):
    """Otherwise no hostile input would get as far as it can."""
    said = outcome(node, good_inputs(node))
    reaches = {Merge: "begins", Compare: "begins", LoadRecipe: "has no recipe"}
    assert reaches.get(node, "done") in said


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_any_value_on_any_input_is_used_or_named(host, node, monkeypatch):
    good = good_inputs(node)
    schema = node.define_schema()  # each call makes it anew, which takes most of the time
    monkeypatch.setattr(node, "define_schema", lambda: schema)
    for item, name in itertools.product(node.define_schema().inputs, HOSTILE):
        try:
            said = outcome(node, good | {item.id: HOSTILE[name]})
        except Exception as error:
            raise AssertionError(f"{name} on {item.id}") from error
        if "it must be" in said:
            assert item.id in said or CALLED.get(item.id, item.id) in said, name


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_missing_input_is_named(host, node):
    for item in node.define_schema().inputs:
        if not item.optional:
            inputs = good_inputs(node)
            del inputs[item.id]
            with pytest.raises(ConfigError, match=f"^{item.id} is None"):
                node.execute(**inputs)


def test_only_a_merged_lora_is_saved():
    for name in HOSTILE.keys() - {"merged"}:
        with pytest.raises(ConfigError, match=r"^merged is "):
            SaveMergedLora.execute(merged=HOSTILE[name], file_name="loras/x", overwrite=False)


@MANY
@given(JSON)
def test_any_stack_is_read_or_named(host, stack):
    outcome(Merge, good_inputs(Merge) | {"lora_stack": stack})


def recipe(**more):
    used = [use("cat", ("a sks cat",), file=LORA, sha256="1f")]
    return json.loads(json.dumps(recipe_of(used, Calibration(), MergeConfig()))) | more


def load(host, text):
    tensors = {"lora_unet_q.lora_up.weight": torch.ones(4, 2)}
    save_file(tensors, host / "recipe.safetensors", {RECIPE_KEY: text})
    return outcome(LoadRecipe, {"lora_name": "recipe.safetensors", "check_files": False})


def test_a_good_recipe_is_loaded(host):
    assert load(host, json.dumps(recipe())) == "done"


@pytest.mark.parametrize("name", ["/", "a/", ".", "safetensors", "cat", "s"])
def test_a_recipe_hashes_few_files_whatever_it_names(host, monkeypatch, name):
    for number in range(40):
        (host / f"cats{number}.safetensors").write_bytes(b"x")
    hashed = []
    monkeypatch.setattr("iteris_core.files.tensors.sha256", lambda path: hashed.append(path) or "")
    lora = asdict(use("cat", file=name, sha256="1f"))
    assert "is not in the loras folders" in load(host, json.dumps(recipe(loras=[lora])))
    assert len(hashed) <= 16
