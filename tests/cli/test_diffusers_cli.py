"""`iteris merge sd15` and `sdxl` on tiny random pipelines, and their files in diffusers."""

import hashlib
import json
import os
import subprocess
import sys

import outside
import pytest
import tiny_diffusers
import torch
from safetensors import safe_open
from typer.testing import CliRunner
from waiting import HANGS

from iteris_core import __version__
from iteris_core.cli import merge_diffusion as command
from iteris_core.cli.main import app
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.loading import load_diffusers, read_lora, save_lora
from iteris_core.diffusion.merging import merge_diffusion
from iteris_core.files.families import FAMILIES
from iteris_core.memory import Room

pytestmark = pytest.mark.slow

QUICK = ["--sample-runs", 2, "--sampling-steps", 4]
QUICK += ["--resolution", 64, "--cfg", 2, "--precision", "float32"]
CALIBRATION = Calibration(trajectories=2, sampling_steps=4, resolution=64, cfg=2.0)


def complaints(done):
    """Return what only stderr says: random LoRAs of a random model may well fail each other."""
    return [line for line in done.stderr.splitlines() if line not in done.stdout.splitlines()]


WANTED = ("to_", "_proj", "fc1", "proj_in", "ff.net", "conv1")


def make_world(host, folder, wanted=WANTED):
    """Save a pipeline's folder, the same as one file, and two LoRAs, of which one has trigger words."""
    tiny_diffusers.save_folder(host, folder / "base")
    tiny_diffusers.save_checkpoint(host, folder / "base.safetensors")
    save_lora(host, tiny_diffusers.adapter(host, 1, wanted=wanted), folder / "one.safetensors")
    two = tiny_diffusers.adapter(host, 2, wanted=wanted)
    metadata = {"modelspec.trigger_phrase": "a hat"}
    tiny_diffusers.save_in_diffusers_style(host, two, folder / "two.safetensors", metadata)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tiny_diffusers.model(), tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def world_xl(tmp_path_factory):
    wanted = ("attn2.to_", "self_attn", "fc1", "proj_in", "conv1")
    return make_world(tiny_diffusers.model_xl(), tmp_path_factory.mktemp("sdxl"), wanted)


ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}


ONE = "<lora:{}/one.safetensors> | a cat | ink"
TWO = "<lora:{}/two> | a hat"  # the file's ending may be left out


def arguments_of(world, *more, base="base", rows=(ONE, TWO), command="sd15"):
    arguments = ["merge", command, "--base", world / base, *QUICK]
    for row in rows:
        arguments += ["--lora", row.format(world)]
    return list(map(str, [*arguments, *more]))


def iteris(world, *more, **changes):
    return CliRunner().invoke(app, arguments_of(world, *more, **changes), env=ENVIRONMENT)


@pytest.fixture(scope="module")
def by_library(world):
    """The model, and what the library merges of the two rows."""
    return merged_here(world)


@pytest.fixture(scope="module")
def by_command(world, tmp_path_factory):
    """The file and the report that the command writes of the two rows, and what it says."""
    folder = tmp_path_factory.mktemp("merged")
    outputs = folder / "merged.safetensors", folder / "report.json"
    return *outputs, iteris(world, "--output", outputs[0], "--json", outputs[1])


def merged_here(world, layers=({}, {}), family="SD1.5"):
    model = load_diffusers(str(world / "base"), FAMILIES[family])
    loras = [
        LoadedLora.of(read_lora(model, world / f"{name}.safetensors", **more), prompts)
        for name, prompts, more in zip(
            ("one", "two"), (("a cat", "ink"), ("a hat",)), layers, strict=True
        )
    ]
    job = Job.of(model, loras, CALIBRATION, room=Room(samples_per_chunk=4))
    return model, merge_diffusion(job).adapter


def assert_same(found, expected):
    assert set(found.deltas) == set(expected.deltas)
    for path, delta in expected.deltas.items():
        torch.testing.assert_close(found.deltas[path].dense(), delta.dense(), rtol=1e-4, atol=1e-6)


def test_the_commands_file_is_the_librarys_merge(world, by_library, by_command):
    output, report, done = by_command
    assert (done.exit_code, complaints(done)) == (0, [])
    assert f"saved to {output}" in done.stdout
    model, expected = by_library
    assert_same(read_lora(model, output), expected)
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
        keys = list(file.keys())
    recipe = json.loads(metadata["iteris.recipe"])
    assert (metadata["modelspec.title"], metadata["modelspec.trigger_phrase"]) == (
        "merged",
        "ink, a hat",  # "one" names none in its file: what captions call it
    )
    assert metadata["modelspec.merged_from"] == "lora1, lora2"  # their titles
    assert metadata["sshs_model_hash"] and metadata["ss_base_model_version"] == "sd_v1"
    assert all(key.startswith("lora_") for key in keys)
    assert recipe == json.loads(report.read_text())["settings"]
    assert (recipe["iteris_version"], recipe["base"]) == (__version__, str(world / "base"))
    sha256 = hashlib.sha256((world / "one.safetensors").read_bytes()).hexdigest()
    assert recipe["loras"][0]["sha256"] == sha256
    assert recipe["loras"][0]["prompts"] == ["a cat", "ink"]


def test_strengths_block_weights_and_left_out_layers_reach_the_merge(world, by_library, tmp_path):
    output = tmp_path / "merged.safetensors"
    rows = [
        "<lora:{}/one:0.5:0.7> blocks=OUT:0.5,MID:0 | a cat | ink",
        "<lora:{}/two> without=*attn2* without=*fc1 | a hat",
    ]
    done = iteris(world, "--output", output, rows=rows)
    assert (done.exit_code, complaints(done)) == (0, [])
    one = {"strength": 0.5, "strength_text": 0.7, "blocks": "OUT:0.5,MID:0"}
    model, expected = merged_here(world, (one, {"without": ("*attn2*", "*fc1")}))
    assert_same(read_lora(model, output), expected)
    _, whole = by_library
    left_out = set(whole.deltas) - set(expected.deltas)  # by both
    assert left_out == {p for p in whole.deltas if "mid_block" in p and "attn2" in p} != set()


def test_no_input_is_overwritten(world, tmp_path):
    for option in ("--output", "--json"):
        where = {"--output": tmp_path / "out.safetensors", option: world / "one.safetensors"}
        done = iteris(world, *(part for pair in where.items() for part in pair), "--overwrite")
        assert done.exit_code == 2
        assert (
            f"{option} is {world / 'one.safetensors'}, which would take the place of --lora"
            in done.stderr
        )


def test_a_row_may_be_longer_than_a_name_of_a_file(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    rows = ("<lora:one.safetensors> | a cat" + " | ink" * 60, "nowhere")
    done = iteris(world, "--output", tmp_path / "o.safetensors", rows=rows)
    assert done.exit_code == 2
    assert done.stderr.startswith("iteris merge sd15: --lora 2: nowhere: there is no such file")


def test_rows_may_be_lines_and_prompts_come_from_the_trigger_words(world, by_library, tmp_path):
    text = f"{ONE}\n# <lora:nowhere>\n\n{TWO}\n".format(world, world)
    done = iteris(world, "--output", tmp_path / "a.safetensors", rows=[text])
    assert done.exit_code == 0
    model, expected = by_library
    assert_same(read_lora(model, tmp_path / "a.safetensors"), expected)
    done = iteris(world, "--output", tmp_path / "b.safetensors", rows=(ONE, "{}/two.safetensors"))
    assert (done.exit_code, complaints(done)) == (0, [])
    assert (
        "two: prompts made of the file's trigger words (modelspec.trigger_phrase): a photo of a hat"
        in done.stdout
    )


def test_a_preview_needs_no_prompts(world, tmp_path):
    rows = ("<lora:{}/one.safetensors>", TWO)
    done = iteris(world, "--output", tmp_path / "a.safetensors", "--preset", "Preview", rows=rows)
    assert (done.exit_code, complaints(done)) == (0, [])
    done = iteris(world, "--output", tmp_path / "b.safetensors", rows=rows)
    assert "one.safetensors has no prompts, and" in done.stderr
    assert done.stderr.endswith("Or choose the preset Preview, which measures nothing\n")


WRONG = [  # options, what the message names
    (["--lora", "<lora:x:y>"], "--lora 3, line 1: a strength in '<lora:x:y>' is 'y'"),
    (["--lora", "<lora:/no>"], "--lora 3, line 1: /no: there is no such file; give"),
    (["--lora", ""], "--lora 3 is empty"),
    (["--resolution", "100"], "--resolution is '100'; it must be a multiple of 64"),
    (
        ["--lora", "<lora:{}/two> blocks=IN99:0"],
        "LoRA 'two': its block weights have 'IN99:0', and it changes no such block",
    ),
    (["--lora", "{}/one.safetensors", "--base", "/nowhere"], "one.safetensors has no prompts, and"),
    (["--base", "/nowhere"], "/nowhere: there is no such folder"),
    (["--output", "merged.ckpt"], "--output is merged.ckpt; its name must end in .safetensors"),
]


def test_errors_are_one_line_and_exit_code_2(world, tmp_path):
    for more, said in WRONG:
        where = () if "--output" in more else ("--output", tmp_path / "out.safetensors")
        done = iteris(world, *where, *(text.format(world) for text in more))
        assert done.exit_code == 2
        assert done.stderr.startswith("iteris merge sd15: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


def test_another_process_makes_the_same_bytes_and_asks_nothing_of_the_outside(
    world, by_command, tmp_path
):
    """It has another order of sets and of safetensors' own metadata."""
    expected, *_ = by_command
    output = tmp_path / expected.name
    # sums depend on the number of threads; in this process it is one
    environment = {**os.environ, **ENVIRONMENT, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, outside.__file__, *arguments_of(world, "--output", output)]
    given = {"capture_output": True, "text": True, "timeout": HANGS, "env": environment}
    done = subprocess.run(command, **given)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "[]")
    assert output.read_bytes() == expected.read_bytes()


def test_a_file_that_diffusers_would_misread_is_named(world, tmp_path):
    host = tiny_diffusers.model()
    said = "note: the text encoder part has no out_proj, so that diffusers misreads it"
    for wanted, is_said in ((("q_proj", "fc1"), True), (("q_proj", "out_proj"), False)):
        adapter = tiny_diffusers.adapter(host, 3, wanted=wanted)
        save_lora(host, adapter, tmp_path / "three.safetensors", overwrite=True)
        more = ("--output", tmp_path / "out.safetensors", "--overwrite")
        done = iteris(world, *more, rows=[f"<lora:{tmp_path}/three> | a cat"])
        assert done.exit_code == 0
        assert (said in done.stdout) is is_said


def test_sdxl_is_merged_like_sd15(world_xl, tmp_path):
    output = tmp_path / "merged.safetensors"
    done = iteris(world_xl, "--output", output, command="sdxl")
    assert (done.exit_code, complaints(done)) == (0, [])
    model, expected = merged_here(world_xl, family="SDXL")
    assert_same(read_lora(model, output), expected)
    with safe_open(output, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
    told = CliRunner().invoke(app, ["inspect", str(output)], env={"COLUMNS": "200"})
    assert told.exit_code == 0
    assert "base           SDXL" in told.stdout


def test_a_device_with_little_memory_is_shared_out(world, tmp_path, monkeypatch):
    """As a GPU is. On a host all samples wait where they are, and nothing is shared out."""
    asked, used = [], []
    merge = command.merge_loras

    def free(device):
        asked.append(device.type)
        return 3_000_000

    def merged(job, *more):
        used.append(job.room)
        return merge(job, *more)

    monkeypatch.setattr(command, "free_bytes", free)
    monkeypatch.setattr(command, "merge_loras", merged)
    done = iteris(world, "--output", tmp_path / "a.safetensors")
    assert (done.exit_code, complaints(done), asked) == (0, [], ["cpu"])
    [room] = used
    assert room.samples_per_chunk < 4
    assert 0 <= room.waiting_bytes < 3_000_000
