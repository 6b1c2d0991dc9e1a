"""The merge node and `iteris merge sd15` make the same adapter, notes and recipe."""

import json
import types

import pytest
import tiny_diffusers
import torch
from iteris_pack.nodes.host.other_nodes import BaseChanges
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.settings import Settings
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from iteris_core.cli.main import app
from iteris_core.diffusion.loading import load_diffusers, read_lora
from iteris_core.diffusion.recipe import metadata_of_merge
from iteris_core.files import kohya
from iteris_core.files.families import FAMILIES
from iteris_core.memory import Room
from iteris_core.progress import nobody

# it loads diffusers
pytestmark = pytest.mark.slow
FILES = ("one.safetensors", "two.safetensors", "one.safetensors", "idle.safetensors")
PROMPTS = ("a {trigger}", "", "a {trigger} mat", "a bat")
STRENGTHS = ((1.0, 1.0), (0.8, 0.5), (0.5, 0.25), (0.0, 0.0))
WEIGHTS = (1.0, 2.0, 1.0, 1.0)
# Widget of Merge settings -> option of the command line, and the value of both.
SETTINGS = {
    "sample_runs": ("--sample-runs", 2),
    "sampling_steps": ("--sampling-steps", 3),
    "resolution": ("--resolution", 64),
    "cfg": ("--cfg", 2.0),
    "seed": ("--seed", 5),
    "quality_kept": ("--quality-kept", 0.9),
    "polish_steps": ("--polish-steps", 2),
}
# What the two faces know about where they run.
OWN = ("base", "comfyui_version")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    host = tiny_diffusers.model()
    tiny_diffusers.save_folder(host, folder / "base")
    for seed, (name, trigger) in enumerate((("one", "cat"), ("two", "hat"), ("idle", "bat")), 1):
        adapter = tiny_diffusers.adapter(host, seed)
        metadata = {"modelspec.trigger_phrase": trigger}
        path = folder / f"{name}.safetensors"
        tiny_diffusers.save_in_diffusers_style(host, adapter, path, metadata)
    return folder


class ComfyModel:
    """A diffusers model in the place of `nodes.host.ComfyModel`."""

    def __init__(self, model, clip, start):
        self.model = model.model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def make_room(self, shape, samples, largest):
        return Room(4, None, 0), self

    def adapter(self, use, tensors, metadata):
        return read_lora(
            self.model, self.model.loras / use.file, use.strength_model, use.strength_clip
        )

    def prove_reading(self, use, adapter, tensors):
        pass

    references = 0

    def is_for_editing(self, texts):
        return False

    def patched(self, adapter):
        return None, None

    def fresh(self):
        return self

    def lora_model_tensors(self, adapter):
        return {}


@pytest.fixture
def node(world, replace_host, monkeypatch, widgets):
    """Return a function that merges with the nodes: (tensors, notes, recipe, what the file says)."""
    replace_host(
        ComfyModel=ComfyModel,
        start_of=lambda conditioning: {},
        lora_names=lambda: list(dict.fromkeys(FILES)),
        lora_path=lambda name: world / name,
        patches_of=lambda model, clip: {},
        base_changes=lambda model, clip: BaseChanges(),
        stage_progress=lambda node_id: nobody,
        model_files=lambda names: [],
        version=lambda: "0.3.75",
    )
    hidden = types.SimpleNamespace(unique_id="1", prompt={})
    for kind in (LoraToMerge, Merge):
        monkeypatch.setattr(kind, "hidden", hidden, raising=False)

    def merge():
        model = load_diffusers(str(world / "base"), FAMILIES["SD1.5"])
        model.loras = world
        patcher = types.SimpleNamespace(model=model, patches={})
        clip = types.SimpleNamespace(patcher=patcher, cond_stage_model=None)
        chain = ()
        for file, prompts, strengths, weight in zip(
            FILES, PROMPTS, STRENGTHS, WEIGHTS, strict=True
        ):
            (chain,) = LoraToMerge.execute(
                lora_name=file,
                strength_model=strengths[0],
                strength_clip=strengths[1],
                prompts=prompts,
                priority=weight,
                previous=chain,
            ).args
        said = {name: value for name, (_, value) in SETTINGS.items()}
        (settings,) = Settings.execute(**widgets(Settings, **said)).args
        output = Merge.execute(
            model=patcher, clip=clip, more_loras=chain, settings=settings, **widgets(Merge)
        )
        merged = output.args[3]
        keys = model.keys
        metadata = metadata_of_merge("merged", merged.loras, merged.recipe)
        tensors, said = kohya.file_of(merged.adapter, keys, metadata)
        return tensors, output.ui["iteris"][0]["notes"], json.loads(merged.recipe), said

    return merge


def command(world, output):
    options = {"--precision": "float16", "--json": output / "report.json"}
    options |= {"--output": output / "merged.safetensors", "--base": world / "base"}
    options |= dict(SETTINGS.values())
    flags = [name for name, value in options.items() if value is True]
    arguments = [part for name in options if name not in flags for part in (name, options[name])]
    for file, prompts, (of_model, of_clip), weight in zip(
        FILES, PROMPTS, STRENGTHS, WEIGHTS, strict=True
    ):
        row = f"<lora:{world / file}:{of_model}:{of_clip}> priority={weight} | {prompts}"
        arguments += ["--lora", row]
    environment = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    done = CliRunner().invoke(app, ["merge", "sd15", *flags, *map(str, arguments)], env=environment)
    assert done.exit_code == 0, done.output
    report = json.loads((output / "report.json").read_text())
    with safe_open(output / "merged.safetensors", "pt") as file:
        said = file.metadata()
    return load_file(output / "merged.safetensors"), report, report["settings"], said


def without_place(recipe):
    return {key: value for key, value in recipe.items() if key not in OWN}


def test_both_faces_make_the_same_adapter_notes_and_recipe(world, node, tmp_path):
    tensors, notes, recipe, said = node()
    same_tensors, same_report, same_recipe, same_said = command(world, tmp_path)
    assert set(tensors) == set(same_tensors)
    assert all(torch.equal(tensors[key], same_tensors[key]) for key in tensors)
    assert without_place(json.loads(json.dumps(recipe))) == without_place(same_recipe)
    told = [(note["code"], note["text"]) for note in notes]
    assert told == [(note["kind"], note["text"]) for note in same_report["notes"]]
    # another second, compared above, and what writing adds
    for one in (said, same_said):
        for volatile in ("iteris.recipe", "format"):
            one.pop(volatile, None)
    assert said == same_said
    assert said["modelspec.trigger_phrase"] == "cat, hat"  # and not that of the idle one
    # a LoRA that is given twice is merged once, with its trigger words in its prompts
    one, two, idle = recipe["loras"]
    assert (idle["name"], idle["strength_model"]) == ("idle", 0.0)
    assert (one["name"], one["strength_model"], one["strength_clip"]) == ("one", 1.5, 1.25)
    assert one["prompts"] == ["a cat", "a cat mat"]
    assert one["prompts_from"] == "modelspec.trigger_phrase"
    assert two["prompts"] == ["a photo of hat", "hat", "hat, outdoors"]
    assert (two["weight"], two["strength_clip"]) == (2.0, 0.5)
    assert [note["code"] for note in notes].count("repeated") == 1
    assert recipe["config"]["kept_energy"] == 0.9
