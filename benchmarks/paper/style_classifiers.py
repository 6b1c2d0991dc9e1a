"""A classifier of caption styles, trained on labelled captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data_files import read_rows
from .errors import EvaluationError

_FOLDS = 5


@dataclass(frozen=True)
class TrainedStyles:
    """A classifier of styles, and its accuracy.

    Args:
        classify: Function from texts to style names.
        styles: Styles that it knows.
        held_out: Accuracy on captions that it was not trained on, 0 to 1.
    """

    classify: Callable[[Sequence[str]], Sequence[str]]
    styles: tuple[str, ...]
    held_out: float

    def accuracy(self, captions: Sequence[str], style: str) -> float:
        """Return the share of captions that are taken for captions of a style."""
        return sum(name == style for name in self.classify(captions)) / len(captions)


def train_style_classifier(path: Path) -> TrainedStyles:
    """Train logistic regression on the TF-IDF of words and word pairs. Its accuracy is measured by
    cross-validation.

    Args:
        path: File (`read_rows`) with ``text`` and ``label``, the caption and its style, at least
            two of each of at least two styles.

    Raises:
        EvaluationError: There are too few captions, or rows without these fields.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    rows = read_rows(path)
    if not all(isinstance(row.get(field), str) for row in rows for field in ("text", "label")):
        raise EvaluationError(
            f'{path}: some row has no texts "text" and "label"; give captions such as '
            '{"text": "a lovely dog", "label": "positive"}'
        )
    texts = [row["text"] for row in rows]
    styles = [row["label"].lower() for row in rows]
    counts = Counter(styles)
    if len(counts) < 2 or min(counts.values()) < 2:
        raise EvaluationError(
            f"{path}: has the styles {dict(counts)}; a classifier needs two or more captions of two "
            "or more styles"
        )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    model = make_pipeline(words, LogisticRegression(max_iter=1000, C=10.0))
    held_out = cross_val_score(model, texts, styles, cv=min(_FOLDS, *counts.values())).mean()
    model.fit(texts, styles)

    def classify(captions: Sequence[str]) -> list[str]:
        return [str(name) for name in model.predict(list(captions))]

    return TrainedStyles(classify, tuple(sorted(counts)), float(held_out))
