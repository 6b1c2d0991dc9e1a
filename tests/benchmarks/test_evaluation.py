"""The paper's scores against values computed by hand, and data sets in their public formats."""

import csv
import json
import math

import pyarrow
import pytest
from pyarrow import parquet
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from sklearn.metrics import f1_score

from benchmarks.paper.errors import EvaluationError
from benchmarks.paper.language import text_scores
from benchmarks.paper.language_tasks import TEXT_TASKS, read_text_task
from benchmarks.paper.text_metrics import caption_scores, classification_scores

pytestmark = pytest.mark.nightly


def test_accuracy_f1_and_matthews_correlation():
    scores = classification_scores(["A.", " a", "b", "c"], ["a", "a", "b", "b"])
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx(
        (1 + 2 / 3) / 2
    )  # c is wrong, but no class of its own
    assert (
        f1_score(["a", "a", "b", "b"], ["a", "a", "b", "c"], average="macro", zero_division=0)
        < scores["macro_f1"]
    )
    binary = text_scores(["yes", "no", "no", "no"], ["yes", "yes", "no", "no"])
    assert binary["matthews"] == pytest.approx(2 / math.sqrt(1 * 2 * 2 * 3))
    assert binary["scaled_matthews"] == pytest.approx((1 + 2 / math.sqrt(12)) / 2)
    assert classification_scores(["yes"] * 4, ["yes", "yes", "no", "no"])["matthews"] == 0
    with pytest.raises(EvaluationError, match="1 predictions for 2 examples"):
        classification_scores(["a"], ["a", "b"])
    with pytest.raises(EvaluationError, match="0 predictions"):
        classification_scores([], [])


def test_scores_are_the_librarys_on_tokenized_captions(capsys):
    captions = ["A dog's day on the beach.", "", "the man rides a big horse"]
    references = [["a dog on a beach", "The dog's day"], ["a car"], ["the man rides a horse", ""]]
    found = caption_scores(captions, references)
    assert capsys.readouterr().out == ""
    plain = {0: ["a dog 's day on the beach"], 1: [""], 2: [captions[2]]}
    wanted = {0: ["a dog on a beach", "the dog 's day"], 1: references[1], 2: references[2][:1]}
    bleu = Bleu(4).compute_score(wanted, plain, verbose=0)[0]
    assert [found[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(bleu)
    assert found["cider"] == pytest.approx(Cider().compute_score(wanted, plain)[0])


ROWS = [
    {"sentence1": 'He said "yes', "sentence2": "No.", "label": 1},
    {"sentence1": "A b", "sentence2": "c", "label": 0},
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            kind = (
                {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
                if path.suffix == ".tsv"
                else {}
            )
            table = csv.DictWriter(file, list(rows[0]), **kind)
            table.writeheader()
            table.writerows(rows)
    return path


def test_every_format_gives_the_same_examples(tmp_path):
    for suffix in (".jsonl", ".json", ".tsv", ".csv", ".parquet"):
        examples = read_text_task(TEXT_TASKS["rte"], write(tmp_path / f"rte{suffix}", ROWS))
        assert [example.answer for example in examples] == ["no", "yes"]
        assert 'First: He said "yes Second: No. ' in examples[0].prompt
        assert read_text_task(TEXT_TASKS["mrpc"], tmp_path / f"rte{suffix}")[0].answer == "yes"
