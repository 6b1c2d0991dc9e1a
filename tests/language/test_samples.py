"""Samples of language models: files of texts and pictures, and the command for captions."""

import json
from dataclasses import replace

import language_families
import pytest
import tiny_language
import torch
from PIL import Image
from typer.testing import CliRunner

from iteris_core import CalibrationError, ConfigError
from iteris_core.base_models import load_processor
from iteris_core.cli.main import app
from iteris_core.language.blip import FAMILY, encoded
from iteris_core.language.samples import (
    Example,
    ReadingOptions,
    read_images,
    read_texts,
    read_token_ids,
)
from iteris_core.language.teachers import Teachers

pytestmark = pytest.mark.slow

QUERY = "text_decoder.bert.encoder.layer.0.attention.self.query"
READERS = {read_texts: ("input", "target"), read_images: ("image", "caption")}


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return language_families.make("BLIP", tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def processor(blip):
    return load_processor(str(blip.folder / "base"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures")
    (made / "plain").mkdir()
    for number in range(3):
        pixels = torch.randint(0, 255, (20, 24, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(made / "plain" / f"{number}.png")
    entries = [{"image": "plain/0.png", "caption": "w1 w2 w3"}, {"image": "plain/1.png"}]
    (made / "captions.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return made


def test_samples_are_read_from_lines(tmp_path):
    (tmp_path / "a.txt").write_text("first line\n\n second \n")
    assert read_texts(tmp_path / "a.txt") == [Example("first line"), Example("second")]
    (tmp_path / "a.jsonl").write_text('{"input": "x", "target": "y"}\n{"input": "z"}\n')
    assert read_texts(tmp_path / "a.jsonl") == [Example("x", "y"), Example("z")]
    (tmp_path / "b.jsonl").write_text('{"image": "x.png", "caption": "y"}\n{"image": "z"}\n')
    x, z = tmp_path / "x.png", tmp_path / "z"
    assert read_images(tmp_path / "b.jsonl") == [Example(x, "y"), Example(z)]


WRONG_LINES = dict(
    [
        ("", "there are no samples in it"),
        ("0.png", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ('\n{"FIRST": 3}', 'line 2: has no text "FIRST"'),
        ('["x"]', 'has no text "FIRST"'),
        ('{"FIRST": "x", "SECOND": 1}', 'line 1: "SECOND" is 1, not a text; write one, or leave'),
        ('{"FIRST": "x", "SECOND": ["a"]}', "not a text"),
        ('{"FIRST": "x", "SECOND": " "}', "\"SECOND\" is ' ', not a text"),
    ]
)


@pytest.mark.parametrize("read", READERS)
def test_wrong_lines_are_named(read, tmp_path):
    first, second = READERS[read]

    def filled(text):
        return text.replace("FIRST", first).replace("SECOND", second)

    for content, said in WRONG_LINES.items():
        (tmp_path / "a.jsonl").write_text(filled(content))
        with pytest.raises(CalibrationError) as error:
            read(tmp_path / "a.jsonl")
        assert filled(said) in str(error.value)


def test_files_that_are_not_there_are_named(tmp_path):
    for read in (read_texts, read_token_ids, read_images):
        with pytest.raises(CalibrationError, match=r"cannot be read|no such (file|folder or file)"):
            read(tmp_path / "nowhere.safetensors")
    with pytest.raises(CalibrationError, match="there are no pictures in this folder"):
        read_images(tmp_path)


def test_a_table_is_not_read_as_lines_of_text(tmp_path):
    (tmp_path / "a.CSV").write_text("input,target\nw1,w2\n")
    with pytest.raises(CalibrationError, match="a table, whose heading"):
        read_texts(tmp_path / "a.CSV")


@pytest.mark.parametrize(("name", "read"), list(zip(["a.jsonl", "a.JSONL"], READERS, strict=True)))
def test_lines_end_at_line_feeds_only_and_a_byte_order_mark_is_not_text(name, read, tmp_path):
    text = "one\u2028two\x85three"
    first, second = READERS[read]
    line = json.dumps({first: "0.png", second: text}, ensure_ascii=False)
    (tmp_path / name).write_text(f"\ufeff{line}\r\n", newline="")
    (sample,) = read(tmp_path / name)
    assert sample.target == text
    (tmp_path / "a.txt").write_text(f"\ufeff{text}\r\nfour\n", newline="")
    assert read_texts(tmp_path / "a.txt") == [Example(text), Example("four")]


def test_a_text_has_room_for_a_word():
    with pytest.raises(ConfigError, match="from 3 to"):
        ReadingOptions(max_length=0)


def test_captions_begin_with_the_models_start_token_and_have_no_end_token(processor, pictures):
    sample = read_images(pictures / "captions.jsonl")[0]
    model = tiny_language.blip()

    def ids(sample, **options):
        return encoded(sample, processor, model, replace(FAMILY.options, **options)).target.tolist()

    assert ids(sample) == [3, 7, 8, 9]
    assert ids(replace(sample, prompt=" w5 w6 ")) == [3, 11, 12, 7, 8, 9]
    assert ids(replace(sample, prompt="w5 w6"), max_length=6) == [3, 11, 12, 7, 8]
    with pytest.raises(CalibrationError, match="a caption is token ids and has the prompt 'w5'"):
        ids(Example(sample.input, torch.tensor([3]), "w5"))


def test_a_picture_comes_through_the_one_door(processor, tmp_path):
    """An EPS would start Ghostscript, whatever the file is called; see `test_pictures.py`."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EOF\n")
    with pytest.raises(CalibrationError, match="cannot be read as a picture"):
        (sample,) = read_images(tmp_path)
        encoded(sample, processor, tiny_language.blip(), FAMILY.options)


def test_captions_longer_than_the_decoder_reads_are_refused(processor):
    for caption, options, said in (
        (torch.full((41,), 3), {}, "a caption .* may have 41 tokens, but this model reads 40"),
        ("w1 " * 60, {}, "may have 61 tokens"),
        (None, {"max_new_tokens": 41}, "a caption with its prompt and max_new_tokens may have 41"),
    ):
        teachers = Teachers(tiny_language.blip(), [], [{}])
        samples = [[Example(torch.zeros(3, 16, 16), caption)]]
        with pytest.raises(ConfigError, match=said):
            FAMILY.prepare(teachers, samples, replace(FAMILY.options, **options), processor)


@pytest.fixture
def iteris(blip, pictures, tmp_path):
    def run(*more):
        one, two = blip.adapters
        images = (pictures / "plain", pictures / "captions.jsonl")
        pairs = ("--adapter", one, "--samples", images[0], "--adapter", two, "--samples", images[1])
        places = ("--output", tmp_path / "out", "--json", tmp_path / "report.json", "--overwrite")
        where = ("merge", "blip", "--base", blip.folder / "base")
        return CliRunner().invoke(app, list(map(str, (*where, *pairs, *places, *more))))

    return run


def test_pictures_are_merged_and_kept(blip, iteris, pictures, tmp_path):
    kept = ("--preserve", pictures / "captions.jsonl", "--protect-base", "0.5")
    done = iteris(*kept)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "layers merged" in done.stdout
    settings = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert (settings["samples"], settings["weights"]) == ([3, 2, 2], [1.0, 1.0, 0.5])
    adapted = blip.logits(tiny_language.peft(tiny_language.blip(), tmp_path / "out"))
    assert not torch.allclose(adapted, blip.logits(tiny_language.blip()), atol=1e-2)
    wrong = iteris("--samples", tmp_path / "nowhere")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("iteris merge blip: ")
    assert wrong.stderr.count("\n") == 1


def test_a_prompt_is_for_one_adapter_or_for_all(iteris, tmp_path):
    tokens = []
    for prompts in ([], ["--prompt", "w1 w2 w3"], ["--prompt", "w1 w2 w3", "--prompt", "w4"]):
        assert iteris("--max-new-tokens", 4, *prompts).exit_code == 0
        layers = json.loads((tmp_path / "report.json").read_text())["layers"]
        (layer,) = [layer for layer in layers if layer["path"] == QUERY]
        tokens.append([task["tokens"] for task in layer["tasks"]])
    assert tokens[1][1] >= tokens[0][1] + 3 and tokens[2][1] < tokens[1][1]
    wrong = iteris(*["--prompt", "w1"] * 3)
    assert wrong.exit_code == 2
    assert "there are 2 --samples and 3 --prompt; give one per adapter" in wrong.stderr
