"""Scores of answers (accuracy, F1, Matthews correlation) and of captions (BLEU, ROUGE-L, CIDEr).

The first are scikit-learn's, the others pycocoevalcap's. The tokenizer of pycocoevalcap is a Java
program. `tokenized` replaces it, with those Penn Treebank rules that captions need.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence

from .errors import EvaluationError

_WORD = re.compile(r"n['\u2019]t\b|['\u2019](?:s|m|d|ll|re|ve)\b|\w+(?=n['\u2019]t\b)|\w+(?:-\w+)*")


def classification_scores(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return accuracy, macro F1 over the classes of `answers`, and Matthews correlation.

    A prediction that is not one of these classes is wrong; it makes no class of its own in the F1.
    Case, outer spaces and a final full stop do not count.

    Args:
        predictions: Texts that a model wrote.
        answers: The right text for each.

    Raises:
        EvaluationError: There are no predictions, or not as many answers as predictions.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    _check_counts(predictions, answers)
    written = [_plain(text) for text in predictions]
    right = [_plain(text) for text in answers]
    classes = sorted(set(right))
    return {
        "accuracy": float(accuracy_score(right, written)),
        "macro_f1": float(
            f1_score(right, written, labels=classes, average="macro", zero_division=0)
        ),
        "matthews": float(matthews_corrcoef(right, written)),
    }


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".")


def tokenized(text: str) -> str:
    """Return a caption as its tokens with a space between: lower case, no punctuation, contractions
    cut in two.

    >>> tokenized("The dog's well-fed, isn't it?")
    "the dog 's well-fed is n't it"
    """
    return " ".join(_WORD.findall(text.lower()))


def caption_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return BLEU-1 to BLEU-4 of the whole corpus, and the means of ROUGE-L and CIDEr.

    CIDEr weighs n-grams by how few pictures' references have them, so that it needs many pictures.
    It is 0 for a single one.

    Args:
        captions: Captions to score, one per picture.
        references: Captions by people, at least one per picture.

    Raises:
        EvaluationError: There are no captions, or a picture has no reference.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    _check_counts(captions, references)
    written = {i: [tokenized(caption)] for i, caption in enumerate(captions)}
    right = {i: [tokenized(text) for text in texts] for i, texts in enumerate(references)}
    empty = next((i for i, texts in right.items() if not any(texts)), None)
    if empty is not None:
        raise EvaluationError(
            f"picture {empty + 1} has no reference caption; leave it out, or give it one or more"
        )
    right = {i: [text for text in texts if text] for i, texts in right.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its sums
        bleu = Bleu(4).compute_score(right, written)[0]
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
    return {
        **scores,
        "rouge_l": float(Rouge().compute_score(right, written)[0]),
        "cider": float(Cider().compute_score(right, written)[0]),
    }


def _check_counts(predictions: Sequence[object], examples: Sequence[object]) -> None:
    if len(predictions) != len(examples) or not predictions:
        raise EvaluationError(
            f"there are {len(predictions)} predictions for {len(examples)} examples; there must be "
            "one for each"
        )
