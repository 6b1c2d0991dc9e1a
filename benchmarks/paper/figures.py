"""The figures of the paper (IterIS, CVPR 2025, arXiv:2411.15231), to be shown next to ours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

# Table 1: pairs of concepts; image alignment of the first and second concept, and text alignment.
CONCEPT_PAIRS = (
    ("pot", "teddybear"),
    ("flower", "dog"),
    ("teddybear", "tortoise"),
    ("cat", "barn"),
    ("pot", "cat"),
    ("flower", "pot"),
    ("dog", "sunglasses"),
)
ALIGNMENTS: dict[str, dict[str, tuple[float, ...]]] = {
    "Custom Diffusion": {
        "image_1": (0.570, 0.603, 0.721, 0.898, 0.518, 0.703, 0.804),
        "image_2": (0.772, 0.768, 0.683, 0.587, 0.848, 0.635, 0.671),
        "text": (0.706, 0.710, 0.510, 0.542, 0.661, 0.643, 0.784),
    },
    "Textual Inversion": {
        "image_1": (0.523, 0.562, 0.694, 0.819, 0.492, 0.685, 0.823),
        "image_2": (0.793, 0.778, 0.677, 0.588, 0.751, 0.610, 0.624),
        "text": (0.691, 0.544, 0.614, 0.579, 0.641, 0.631, 0.754),
    },
    "linear": {
        "image_1": (0.549, 0.569, 0.700, 0.817, 0.536, 0.765, 0.832),
        "image_2": (0.802, 0.753, 0.698, 0.617, 0.755, 0.606, 0.643),
        "text": (0.685, 0.546, 0.600, 0.637, 0.668, 0.689, 0.758),
    },
    "IterIS": {
        "image_1": (0.554, 0.609, 0.700, 0.820, 0.537, 0.769, 0.833),
        "image_2": (0.807, 0.853, 0.702, 0.615, 0.759, 0.608, 0.643),
        "text": (0.691, 0.699, 0.601, 0.639, 0.670, 0.691, 0.769),
    },
}
# Table 1's column of means, as printed: image 1, image 2, text.
ALIGNMENT_MEANS = {
    "Custom Diffusion": (0.6881, 0.7091, 0.6509),
    "Textual Inversion": (0.6569, 0.6887, 0.6363),
    "linear": (0.6811, 0.6963, 0.6547),
    "IterIS": (0.6889, 0.7124, 0.6800),
}

# Table 2: accuracy on positive and negative captions; CIDEr and BLEU are of both styles together.
_STYLED = {
    "POS LoRA": ((0.848, 0.018), (0.654, 0.504, 0.309, 0.197, 0.126)),
    "NEG LoRA": ((0.138, 0.867), (0.667, 0.520, 0.322, 0.206, 0.133)),
    "linear": ((0.522, 0.557), (0.752, 0.535, 0.338, 0.218, 0.142)),
    "task arithmetic": ((0.522, 0.557), (0.667, 0.535, 0.338, 0.218, 0.142)),
    "TIES": ((0.468, 0.543), (0.739, 0.519, 0.330, 0.214, 0.141)),
    "hyper-linear": ((0.565, 0.539), (0.769, 0.535, 0.342, 0.223, 0.147)),
    "RegMean": ((0.624, 0.692), (0.790, 0.558, 0.355, 0.231, 0.150)),
    "IterIS": ((0.831, 0.781), (0.794, 0.551, 0.355, 0.231, 0.152)),
}
# Table 11: CIDEr of each style.
_CIDER = {
    "senticap-positive": {"linear": 0.771, "RegMean": 0.801, "IterIS": 0.794},
    "senticap-negative": {"linear": 0.733, "RegMean": 0.779, "IterIS": 0.794},
    "flickrstyle-humorous": {"linear": 0.504, "RegMean": 0.528, "IterIS": 0.530},
    "flickrstyle-romantic": {"linear": 0.487, "RegMean": 0.523, "IterIS": 0.524},
}

# Table 3: means over all pairs (GLUE, FLAN-T5-base) and all combinations (emotions, FLAN-T5-large);
# CoLA as (1 + MCC) / 2.
_EMOTIONS = ("emoint", "ec", "tec", "isear")
_GLUE = ("mnli", "cola", "qqp", "qnli", "mrpc", "sst2", "rte")
_MEANS = {
    "linear": ((0.724, 0.884, 0.491, 0.594), (0.731, 0.678, 0.827, 0.890, 0.781, 0.932, 0.786)),
    "RegMean": ((0.759, 0.921, 0.544, 0.630), (0.790, 0.652, 0.851, 0.916, 0.809, 0.945, 0.801)),
    "IterIS": ((0.795, 0.942, 0.547, 0.656), (0.807, 0.666, 0.853, 0.917, 0.818, 0.946, 0.804)),
}
# Tables 14 and 8 to 10: single pairs; CoLA here as the MCC itself.
_PAIRS: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("mrpc", "sst2"): {
        "task arithmetic": (0.806, 0.937),
        "TIES": (0.765, 0.943),
        "hyper-linear": (0.809, 0.933),
        "IterIS, no regulariser": (0.272, 0.177),
        "IterIS": (0.824, 0.951),
    },
    ("sst2", "qqp"): {
        "task arithmetic": (0.937, 0.841),
        "TIES": (0.944, 0.823),
        "hyper-linear": (0.931, 0.849),
        "IterIS": (0.947, 0.855),
    },
    ("qqp", "mrpc"): {
        "task arithmetic": (0.845, 0.811),
        "TIES": (0.846, 0.806),
        "hyper-linear": (0.846, 0.801),
        "IterIS": (0.855, 0.816),
    },
    ("cola", "mnli"): {
        "IterIS, no regulariser": (0.0, 0.0),
        "IterIS, no weights": (0.271, 0.728),
        "IterIS": (0.299, 0.780),
    },
    ("rte", "mrpc"): {"IterIS, no regulariser": (0.671, 0.667), "IterIS": (0.805, 0.814)},
    ("mnli", "sst2"): {"IterIS, no weights": (0.761, 0.945), "IterIS": (0.764, 0.945)},
    ("cola", "sst2"): {"IterIS, no weights": (0.356, 0.943), "IterIS": (0.360, 0.943)},
}


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper.

    Args:
        method: The paper's name of the method.
        source: Table of the paper, and what its figures are the means of.
        values: Task or metric -> figure, as in `language.Scores`.
    """

    method: str
    source: str
    values: dict[str, float]


def text_figures(tasks: Collection[str]) -> list[PaperRow]:
    """Return the paper's figures for `TEXT_TASKS`, those of exactly this pair of tasks first."""
    rows = []
    for pair, methods in _PAIRS.items():
        if set(pair) == set(tasks):
            for method, figures in methods.items():
                scaled = {
                    task: (1 + value) / 2 if task == "cola" else value
                    for task, value in zip(pair, figures, strict=True)
                }
                rows.append(PaperRow(method, "this pair, tables 8 to 14", scaled))
    for method, groups in _MEANS.items():
        means = dict(zip(_EMOTIONS + _GLUE, groups[0] + groups[1], strict=True))
        known = {task: means[task] for task in tasks if task in means}
        if known:
            rows.append(PaperRow(method, "mean of all combinations, table 3", known))
    return rows


def caption_figures(task: str) -> list[PaperRow]:
    """Return the paper's figures for a task of `language_tasks.CAPTION_TASKS`."""
    own = [
        PaperRow(method, "table 11", {"cider": value})
        for method, value in _CIDER.get(task, {}).items()
    ]
    styles = ("senticap-positive", "senticap-negative")
    if task not in styles:
        return own
    metrics = ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4")
    return own + [
        PaperRow(
            method,
            "table 2; CIDEr and BLEU of both styles together",
            {
                "style_accuracy": accuracies[styles.index(task)],
                **dict(zip(metrics, texts, strict=True)),
            },
        )
        for method, (accuracies, texts) in _STYLED.items()
    ]


def picture_figures(concepts: Sequence[str]) -> list[PaperRow]:
    """Return the paper's figures for two concepts, of this pair or the means of all pairs."""
    if len(concepts) != 2:
        return []
    for pair in (tuple(concepts), tuple(reversed(concepts))):
        if pair in CONCEPT_PAIRS:
            column = CONCEPT_PAIRS.index(pair)
            names = ("image_1", "image_2") if pair == tuple(concepts) else ("image_2", "image_1")
            return [
                PaperRow(
                    method,
                    "this pair, table 1",
                    {
                        **{
                            name: figures[part][column]
                            for name, part in zip(names, ("image_1", "image_2"), strict=True)
                        },
                        "text": figures["text"][column],
                    },
                )
                for method, figures in ALIGNMENTS.items()
            ]
    return [
        PaperRow(
            method,
            "mean of its 7 pairs, table 1",
            dict(zip(("image_1", "image_2", "text"), means, strict=True)),
        )
        for method, means in ALIGNMENT_MEANS.items()
    ]
