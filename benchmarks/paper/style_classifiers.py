"""Classifiers of caption styles, loaded from transformers or trained on labelled captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iteris_core.base_models import placed, whole_model
from iteris_core.language.loading import load_tokenizer

from .data_files import read_rows
from .errors import EvaluationError
from .text_metrics import StyleClassifier

_FOLDS = 5


@dataclass(frozen=True)
class TrainedStyles:
    """A classifier of styles, and its accuracy.

    Args:
        classify: Function from texts to style names.
        styles: Styles that it knows.
        held_out: Accuracy on captions that it was not trained on, 0 to 1; None: unknown.
    """

    classify: StyleClassifier
    styles: tuple[str, ...]
    held_out: float | None = None


def load_style_classifier(
    path: Path, labels: Mapping[str, str] | None = None, device: str = "cpu"
) -> TrainedStyles:
    """Load a sequence classifier from its folder, or train a classifier on a file of captions.

    Args:
        path: Folder that `save_pretrained` of transformers wrote, or a file (`read_rows`) with
            ``text`` and ``label``.
        labels: Style -> the classifier's name for it, such as ``positive`` -> ``LABEL_1``, where
            they differ.
        device: Device for a sequence classifier.

    Raises:
        ConfigError, EvaluationError: The classifier or the device cannot be used; says why.
    """
    trained = (
        _sequence_classifier(path, device)
        if path.is_dir()
        else train_style_classifier(read_captions(path))
    )
    styles = {name.lower(): name.lower() for name in trained.styles}
    for style, name in (labels or {}).items():
        if name.lower() not in styles:
            raise EvaluationError(
                f"{path}: knows no label {name!r}; its labels are {', '.join(trained.styles)}"
            )
        styles[name.lower()] = style.lower()

    def classify(texts: Sequence[str]) -> list[str]:
        return [styles[name.lower()] for name in trained.classify(texts)]

    return TrainedStyles(classify, tuple(styles.values()), trained.held_out)


def read_captions(path: Path) -> list[tuple[str, str]]:
    """Read (caption, style) from rows with ``text`` and ``label``, or raise `EvaluationError`."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str) or not isinstance(row.get("label"), str):
            raise EvaluationError(
                f'{path}, row {number}: has no texts "text" and "label" but '
                f'{", ".join(row)}; give captions such as {{"text": "a lovely dog", '
                f'"label": "positive"}}, or the folder of a classifier'
            )
    return [(row["text"], row["label"]) for row in rows]


def train_style_classifier(captions: Sequence[tuple[str, str]]) -> TrainedStyles:
    """Train logistic regression on the TF-IDF of words and word pairs.

    Its accuracy is measured by cross-validation.

    Args:
        captions: (text, style), at least two of each of at least two styles.

    Raises:
        EvaluationError: There are too few captions.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    counts = Counter(style for _, style in captions)
    if len(counts) < 2 or min(counts.values()) < 2:
        there = ", ".join(f"{count} {style}" for style, count in sorted(counts.items())) or "none"
        raise EvaluationError(
            f"labelled captions: there are {there}; a classifier needs two or more of two or more "
            "styles"
        )
    texts = [text for text, _ in captions]
    styles = [style for _, style in captions]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    model = make_pipeline(words, LogisticRegression(max_iter=1000, C=10.0))
    folds = min(_FOLDS, *counts.values())
    held_out = float(cross_val_score(model, texts, styles, cv=folds).mean())
    model.fit(texts, styles)
    return TrainedStyles(
        lambda batch: [str(name) for name in model.predict(list(batch))],
        tuple(sorted(counts)),
        held_out,
    )


def _sequence_classifier(folder: Path, device: str, size: int = 32) -> TrainedStyles:
    import torch
    from transformers import AutoModelForSequenceClassification

    # a folder of another model has no head that classifies; `whole_model` refuses to make one up
    model: Any = placed(
        whole_model(AutoModelForSequenceClassification, str(folder), "a sequence classifier"),
        device,
    )
    tokenizer = load_tokenizer(str(folder))
    names = model.config.id2label

    def classify(texts: Sequence[str]) -> list[str]:
        labels: list[str] = []
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(device)
            with torch.no_grad():
                labels.extend(names[int(label)] for label in model(**inputs).logits.argmax(-1))
        return labels

    return TrainedStyles(classify, tuple(names[i] for i in sorted(names)))
