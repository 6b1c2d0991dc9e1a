"""The command `iteris merge t5` on the golden folders and on tiny models."""

import json
import os
from pathlib import Path

import every_option
import pytest
import tiny_language
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration
from typer.testing import CliRunner

from iteris_core.cli.main import app
from iteris_core.files import peft
from iteris_core.language.job import PeftMergeResult

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def in_process(*arguments, app=app):
    return CliRunner().invoke(
        app,
        list(map(str, arguments)),
        env={"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"},
    )


FOLDER = GOLDEN / "input_mix_manual"


def golden_arguments(output, *more):
    settings = json.loads((FOLDER / "settings.json").read_text())
    arguments = ["t5", "--base", FOLDER / "t5-tiny", "--output", output]
    arguments += ["--samples", FOLDER / "golden.safetensors"]
    for number in range(settings["ntask"]):
        arguments += ["--adapter", FOLDER / f"lora{number}"]
    arguments += ["--ridge", "paper", "--balance", "full", "--reproduce", "delta"]
    arguments += ["--smoothing", settings["reg"], "--input-mix", settings["reg_ceof"]]
    return [*arguments, "--weights", ",".join(map(str, settings["manual_ceof"])), *more]


def test_the_command_gives_what_the_published_code_gives(tmp_path):
    """As peft reads the adapter, at every layer of the encoder. All folders: tests/core/test_golden."""
    report = tmp_path / "report.json"
    done = in_process(*golden_arguments(tmp_path / "out", "--json", report), app=every_option.app)
    assert (done.exit_code, done.stderr) == (0, "")
    tensors = load_file(FOLDER / "golden.safetensors")
    last = max(int(key.split(".")[0][4:]) for key in tensors if key.startswith("iter"))
    base = T5ForConditionalGeneration.from_pretrained(FOLDER / "t5-tiny")
    model = tiny_language.peft(base, tmp_path / "out").base_model.model
    merged = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    layers = {path: module for path, module in merged.items() if path.startswith("encoder.")}
    expected = [key for key in tensors if key.startswith(f"iter{last}.encoder.")]
    assert len(layers) == len(expected)
    assert len(merged) == len(json.loads(report.read_text())["layers"])
    for path, module in layers.items():
        wanted = tensors[f"iter{last}.{path}.delta"]
        assert (module.get_delta_weight("default") - wanted).norm() < 1e-5 * wanted.norm(), path


@pytest.fixture(scope="module")
def texts(t5_folder, tmp_path_factory):
    """A base with a tokenizer beside it, and two files of samples."""
    tiny_language.word_tokenizer().save_pretrained(t5_folder / "base")
    folder = tmp_path_factory.mktemp("texts")
    (folder / "one.txt").write_text("w1 w2 w3\nw4 w5\n\nw6 w7 w8 w9\n")
    (folder / "two.jsonl").write_text(
        '{"input": "w1 w9", "target": "w3 w4"}\n{"input": "w20 w21 w22", "target": "w5"}\n'
    )
    yield folder
    for path in (t5_folder / "base").glob("*tokenizer*"):
        path.unlink()


def arguments_on_texts(t5_folder, texts, output):
    tasks = ["--adapter", t5_folder / "one", "--samples", texts / "one.txt"]
    tasks += ["--adapter", t5_folder / "two", "--samples", texts / "two.jsonl"]
    return ["merge", "t5", "--base", t5_folder / "base", "--output", output, *tasks]


def test_a_merge_of_the_whole_model_on_texts(t5_folder, texts, tmp_path):
    more = ["--reproduce", "delta", "--rank", "5", "--precision", "bfloat16"]
    arguments = [*arguments_on_texts(t5_folder, texts, tmp_path / "out"), *more]
    done = in_process(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"saved to {tmp_path / 'out'}" in done.stdout
    loaded = tiny_language.peft(tiny_language.t5(), tmp_path / "out")
    layers = [module for module in loaded.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 2 * 6 + 2 * 10
    assert {module.r["default"] for module in layers} == {
        3,
        5,
    }  # k, o, wi and wo are changed by one adapter of rank 3 only
    assert (
        load_file(tmp_path / "out" / "adapter_model.safetensors").popitem()[1].dtype
        == torch.bfloat16
    )
    again = in_process(*arguments)
    assert again.exit_code == 2
    assert (
        again.stderr
        == f"iteris merge t5: {tmp_path / 'out'} exists already; choose another name, or allow "
        "overwriting\n"
    )


def written(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_adapter_takes_the_place_of_an_adapter_alone(t5_folder, texts, tmp_path):
    folder = written(tmp_path / "docs", {"README.md": b"mine", peft.WEIGHTS_FILE: b"old"})
    arguments = arguments_on_texts(t5_folder, texts, folder)
    done = in_process(*arguments)
    assert done.exit_code == 2
    assert f"{folder} exists already" in done.stderr
    assert in_process(*arguments, "--overwrite").exit_code == 0
    found = contents(folder)
    assert set(found) == {"README.md", peft.CONFIG_FILE, peft.WEIGHTS_FILE}
    assert found["README.md"] == b"mine"
    assert found[peft.WEIGHTS_FILE] != b"old"


def test_a_report_takes_no_place_unasked(t5_folder, texts, tmp_path):
    report = tmp_path / "report.json"

    def merged(*more):
        arguments = arguments_on_texts(t5_folder, texts, tmp_path / "out")
        return in_process(*arguments, "--json", report, *more)

    report.write_bytes(b"a LoRA")
    done = merged()
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert str(report) in done.stderr
    assert report.read_bytes() == b"a LoRA"
    assert not (tmp_path / "out").exists()  # it was refused before the work
    assert merged("--overwrite").exit_code == 0
    assert json.loads(report.read_text())["adapter"]


WRONG = [  # options, what the message names
    ("--method magic", "method is 'magic'; it must be 'iteris' or 'average'"),
    ("--method ties --layer-gain 3", "--layer-gain is for the method iteris; ties does not use it"),
    ("--weights 1,x", "--weights is '1,x'; write one number per adapter, such as 1,0.5"),
    ("--protect-base 0.5", "--protect-base needs --preserve"),
    ("--json {output}", "--json is {output}, as is --output"),
    ("--json {texts}/one.txt", "which would take the place of --samples {texts}/one.txt"),
    ("--json /proc/iteris/report.json", "nothing can be written into /proc"),
    ("--output {base} --overwrite", "which would take the place of --base {base}"),
    ("--adapter /nowhere", "3 adapters and samples for 2; give each its own"),
    ("--weights 1,2,3", "2 adapters and --weights for 3; give each its own"),
    ("--prompt x", "--prompt is for the captions of BLIP"),
    ("--device tpu9", "device 'tpu9' cannot be used"),
    ("--base /nowhere", "/nowhere: there is no such folder"),
]


def test_errors_are_one_line_and_exit_code_2(t5_folder, texts, tmp_path):
    places = {"texts": texts, "output": tmp_path / "out", "base": t5_folder / "base"}
    for more, said in WRONG:
        options = [part.format(**places) for part in more.split()]
        done = in_process(*arguments_on_texts(t5_folder, texts, tmp_path / "out"), *options)
        assert done.exit_code == 2
        assert done.stderr.startswith("iteris merge t5: ")
        assert said.format(**places) in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


BAD_NAMES = ["a" * 300, "b/" + "a" * 300 + "/c", "\udcff", "a\nb"]


@pytest.mark.parametrize(
    "command",
    [
        "merge t5 --adapter x --samples i --output",
        "merge blip --adapter x --samples i --output",
        "merge sdxl --lora x --output o.safetensors --json",
    ],
)
def test_a_name_that_no_file_can_have_is_refused_before_any_work(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    option = command.split()[-1]
    for name in BAD_NAMES:
        done = in_process(*command.split(), name, "--base", "nowhere")
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert f"{option}: '" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_merge_is_not_lost_when_its_name_is_taken_meanwhile(tmp_path, monkeypatch):
    save = PeftMergeResult.save

    def late(self, folder, *, overwrite=False):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "other").touch()
        save(self, folder, overwrite=overwrite)

    monkeypatch.setattr(PeftMergeResult, "save", late)
    done = in_process(*golden_arguments(tmp_path / "out"), app=every_option.app)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"another program wrote {tmp_path / 'out'}, which is untouched" in done.stdout
    assert f"saved to {tmp_path / 'out_02'}" in done.stdout
    assert os.listdir(tmp_path / "out") == ["other"]
    assert (tmp_path / "out_02" / peft.WEIGHTS_FILE).is_file()
