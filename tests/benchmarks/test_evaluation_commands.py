"""`python -m benchmarks.paper t5|blip` from files to a table, on tiny models; what they write is what peft's
models write.
"""

import json

import pyarrow
import pytest
import tiny_language
import torch
from PIL import Image
from pyarrow import parquet
from transformers import (
    BlipForConditionalGeneration,
    BlipProcessor,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from benchmarks.paper.__main__ import app
from benchmarks.paper.text_metrics import caption_scores, classification_scores

pytestmark = pytest.mark.nightly


TEXTS = ["w1 w2 w3", "w40", "w7 w7 w8 w9 w10 w11", "w30 w5", "w12 w13 w14 w15"]


def iteris(*arguments):
    environment = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(app, list(map(str, arguments)), env=environment)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny T5 with a tokenizer of its own, whose words are w0 to w56, and two adapters."""
    folder = tmp_path_factory.mktemp("eval-t5")
    tiny_language.t5().save_pretrained(folder / "base")
    tiny_language.word_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two"), 1):
        tiny_language.adapter(folder / "base", folder / name, seed, ("q", "k", "v", "o"))
    return folder


def answers_of(base, adapter, beams=1):
    """Return what peft's own model answers to each text alone, without any padding."""
    model = T5ForConditionalGeneration.from_pretrained(base / "base").eval()
    model = tiny_language.peft(model, base / adapter).eval() if adapter else model
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base / "base")
    found = []
    for text in TEXTS:
        with torch.no_grad():
            written = model.generate(
                **tokenizer(text, return_tensors="pt"),
                max_new_tokens=3,
                num_beams=beams,
                do_sample=False,
            )
        found.append(tokenizer.decode(written[0], skip_special_tokens=True).strip())
    return found


@pytest.fixture(scope="module")
def emotions(base):
    """A set of instructions, in which adapter `one` is right on the first, third and fifth, and
    nobody on the others.
    """
    right = answers_of(base, "one")
    outputs = [right[i] if i % 2 == 0 else "joy" for i in range(len(TEXTS))]
    path = base / "tec.json"
    path.write_text(
        json.dumps([{"instruction": t, "output": o} for t, o in zip(TEXTS, outputs, strict=True)])
    )
    return path


def t5_arguments(base, output, *more):
    return [
        "t5",
        "--base",
        base / "base",
        "--output",
        output,
        "--max-new-tokens",
        3,
        "--batch",
        2,
        *more,
    ]


def predictions(path):
    return json.loads(path.read_text())["predictions"]


def test_a_table_of_base_and_adapters_beside_the_papers_figures(base, emotions, tmp_path):
    rte = tmp_path / "rte.jsonl"
    rte.write_text(
        "\n".join(json.dumps({"sentence1": t, "sentence2": "w1", "label": 0}) for t in TEXTS)
    )
    tasks = ["--task", f"tec={emotions}", "--task", f"rte={rte}", "--prompt", "rte={sentence1}"]
    adapters = ["--adapter", base / "one", "--adapter", base / "two"]
    done = iteris(
        *t5_arguments(base, tmp_path / "out", *adapters, *tasks, "--json", tmp_path / "scores.json")
    )
    assert (done.exit_code, done.stderr) == (0, "")
    expected = {name: answers_of(base, name) for name in ("", "one", "two")}
    assert len({tuple(found) for found in expected.values()}) == 3
    for name, found in expected.items():
        for task in ("tec", "rte"):
            assert predictions(tmp_path / "out" / (name or "base") / f"{task}.json") == found
    report = json.loads((tmp_path / "scores.json").read_text())
    scores = {(entry["row"], entry["task"]): entry["values"] for entry in report["scores"]}
    assert list(scores) == [
        (row, task) for row in ("base", "one", "two") for task in ("tec", "rte")
    ]
    outputs = [entry["output"] for entry in json.loads(emotions.read_text())]
    assert scores["one", "tec"]["accuracy"] == 0.6
    for name, found in expected.items():
        assert (
            scores[name or "base", "tec"].items() >= classification_scores(found, outputs).items()
        )
    assert scores["two", "rte"]["accuracy"] == 0
    assert report["prompts"] == {"tec": "{instruction}", "rte": "{sentence1}"}
    assert report["adapters"] == {"one": str(base / "one"), "two": str(base / "two")}
    assert [row["method"] for row in report["paper"]["tasks"]] == ["linear", "RegMean", "IterIS"]
    assert "tec: 5 examples, rte: 5 examples" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "paper, IterIS" in line]
    assert len(lines) == 1 and "0.547" in lines[0] and "0.804" in lines[0]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("│ one")]
    f1 = scores["one", "tec"]["macro_f1"]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "one",
        f"{f1:.3f}",
        "0.000",
        f"{f1 / 2:.3f}",
    ]


PROMPT = "w1 w2 w3"


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A tiny BLIP with a processor, an adapter, and four pictures as parquet and as JSON lines."""
    folder = tmp_path_factory.mktemp("eval-blip")
    tiny_language.blip(spread=0.3).save_pretrained(folder / "base")
    tiny_language.blip_processor().save_pretrained(folder / "base")
    kind = {"kind": BlipForConditionalGeneration, "task_type": None}
    tiny_language.adapter(folder / "base", folder / "one", 1, ("query", "key", "value"), **kind)
    rows = []
    lines = []
    for number in range(4):
        file = folder / f"{number}.png"
        Image.fromarray(torch.randint(0, 255, (20, 24, 3), dtype=torch.uint8).numpy()).save(file)
        references = [f"w{number} w5 w6 w7", f"w{number + 10} w8"]
        rows.append(
            {
                "image": {"bytes": file.read_bytes(), "path": file.name},
                "text": json.dumps(references),
            }
        )
        lines.append(json.dumps({"image": file.name, "references": references}))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "test.jsonl").write_text("\n".join(lines))
    labelled = [
        {"text": f"w{i} w{i + 1}", "label": "positive" if i % 2 else "negative"} for i in range(40)
    ]
    (folder / "styles.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    return folder


def captions_of(blip, adapter, prompt, beams):
    """Return what peft's own model writes about each picture alone."""
    model = BlipForConditionalGeneration.from_pretrained(blip / "base").eval()
    model = tiny_language.peft(model, blip / adapter).eval() if adapter else model
    processor = BlipProcessor.from_pretrained(blip / "base")
    found = []
    for number in range(4):
        inputs = processor(
            images=Image.open(blip / f"{number}.png").convert("RGB"),
            text=prompt,
            return_tensors="pt",
        )
        with torch.no_grad():
            written = model.generate(
                pixel_values=inputs["pixel_values"],
                input_ids=inputs["input_ids"],
                max_new_tokens=6,
                num_beams=beams,
                no_repeat_ngram_size=3,
                repetition_penalty=1.2,
                do_sample=False,
            )
        text = processor.decode(written[0], skip_special_tokens=True).removeprefix("[DEC]").strip()
        assert text.startswith(prompt)
        found.append(text.removeprefix(prompt).strip())
    return found


def blip_arguments(blip, output, *more):
    return [
        "blip",
        "--base",
        blip / "base",
        "--output",
        output,
        "--max-new-tokens",
        6,
        "--batch",
        3,
        *more,
    ]


def test_captions_are_what_peft_writes_and_scored_as_the_library_does(blip, tmp_path):
    tasks = [
        "--task",
        f"senticap-positive={blip / 'test.parquet'}",
        "--task",
        f"captions={blip / 'test.jsonl'}",
    ]
    more = ["--prompt", f"senticap-positive={PROMPT}", "--style-classifier", blip / "styles.jsonl"]
    more += ["--adapter", blip / "one", "--json", tmp_path / "scores.json"]
    done = iteris(*blip_arguments(blip, tmp_path / "out", *tasks, *more))
    assert (done.exit_code, done.stderr) == (0, "")
    references = [(f"w{number} w5 w6 w7", f"w{number + 10} w8") for number in range(4)]
    report = json.loads((tmp_path / "scores.json").read_text())
    scores = {(entry["row"], entry["task"]): entry["values"] for entry in report["scores"]}
    for row in ("base", "one"):
        adapter = "" if row == "base" else row
        for task, prompt in (("senticap-positive", PROMPT), ("captions", "")):
            found = predictions(tmp_path / "out" / row / f"{task}.json")
            assert found == captions_of(blip, adapter, prompt, beams=4)
            assert scores[row, task].items() >= caption_scores(found, references).items()
            assert ("style_accuracy" in scores[row, task]) == (task == "senticap-positive")
    assert captions_of(blip, "one", PROMPT, 4) != captions_of(blip, "", PROMPT, 4)
    assert "paper, IterIS" in done.stdout and "0.831" in done.stdout
    assert "the style classifier is right on" in done.stdout
    assert 0 <= report["style_classifier_held_out"] <= 1
