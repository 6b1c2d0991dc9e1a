"""`python -m benchmarks.paper t5|blip` from files to a table, on tiny models; what they write is what peft's
models write.
"""

import json

import pytest
import tiny_language
import torch
from transformers import (
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from benchmarks.paper.__main__ import app
from benchmarks.paper.text_metrics import classification_scores

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
    assert "tec: 5 examples, rte: 5 examples" in done.stdout
    assert "paper, IterIS" in done.stdout
