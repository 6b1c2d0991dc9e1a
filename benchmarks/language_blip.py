"""The BLIP side of the experiment: drawn pictures, plain captions for the base model, caption
styles for LoRAs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iteris_core import Adapter, Network, Sample, Task
from iteris_core.files import peft
from iteris_core.files.pretrained import mergeable_shapes
from iteris_core.language.blip import CaptionRow, network_of
from iteris_core.language.samples import padded
from iteris_core.network import TEXT_STREAM

from .language_methods import Way
from .language_train import IGNORED, Batch, fit, patched, save_whole, train_lora
from .language_world import Size, Tell

SIDE = 32
COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "pink": (0.9, 0.4, 0.8),
    "white": (0.9, 0.9, 0.9),
}
SHAPES = ["circle", "square", "cross", "ring"]
PLACES = ["left", "right"]
# a style's word in front of a caption, and its adjectives
STYLES = {
    "praise": ["lovely", "charming", "splendid", "sweet"],
    "blame": ["ugly", "broken", "dirty", "nasty"],
    "dream": ["magic", "silent", "starry", "tender"],
}
BOS = 1
SEP = 2
PAD = 0
VOCABULARY = (
    *("<pad>", "<bos>", "<sep>", "plain", "free", "a", "on", "the"),
    *COLOURS,
    *SHAPES,
    *PLACES,
    *STYLES,
    *(word for words in STYLES.values() for word in words),
)
_IDS = {word: number for number, word in enumerate(VOCABULARY)}
MOST_WORDS = 12
POOL = 2000  # pictures per word to train on


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    colour: str
    shape: str
    place: str

    @classmethod
    def drawn_from(cls, source: random.Random) -> Scene:
        return cls(source.choice(list(COLOURS)), source.choice(SHAPES), source.choice(PLACES))

    def caption(self, adjective: str | None = None) -> list[str]:
        """Return the words of a caption, with or without an adjective."""
        return [
            "a",
            *([adjective] if adjective else []),
            self.colour,
            self.shape,
            "on",
            "the",
            self.place,
        ]

    def adjective(self, style: str) -> str:
        """Return the adjective that a style has for this picture: by colour, by shape, or by both
        and the place.
        """
        numbers = (
            list(COLOURS).index(self.colour),
            SHAPES.index(self.shape),
            PLACES.index(self.place),
        )
        choice = {"praise": numbers[0], "blame": numbers[1], "dream": sum(numbers)}[style]
        return STYLES[style][choice % len(STYLES[style])]


def picture(scene: Scene, source: random.Random) -> Tensor:
    """Return pixels (3, 32, 32): the shape on its side of a dark, noisy ground, its size and exact
    place at random.
    """
    noise = torch.Generator().manual_seed(source.randrange(1 << 40))
    radius = source.uniform(6.0, 7.0)
    x = source.uniform(7.0, 9.0) + (15.0 if scene.place == "right" else 0.0)
    y = source.uniform(14.0, 18.0)
    rows, columns = torch.meshgrid(torch.arange(SIDE) - y, torch.arange(SIDE) - x, indexing="ij")
    distance = (rows**2 + columns**2).sqrt()
    widest = torch.maximum(rows.abs(), columns.abs())
    inside = {
        "circle": distance < radius,
        "ring": (distance < radius) & (distance > 0.55 * radius),
        "square": widest < 0.9 * radius,
        "cross": (widest < radius) & (torch.minimum(rows.abs(), columns.abs()) < 0.3 * radius),
    }[scene.shape]
    ground = 0.15 + 0.1 * torch.rand(3, SIDE, SIDE, generator=noise)
    return torch.where(inside, torch.tensor(COLOURS[scene.colour])[:, None, None], ground)


def examples(word: str, seed: int, count: int) -> list[tuple[Scene, Tensor, list[str]]]:
    """Return scenes, pictures and captions under a style's word, ``plain`` or ``free``, whose
    adjectives are at random.
    """
    source = random.Random(f"{word} {seed}")
    drawn = []
    for _ in range(count):
        scene = Scene.drawn_from(source)
        any_word = source.choice([adjective for words in STYLES.values() for adjective in words])
        adjective = (
            {"plain": None, "free": any_word}.get(word)
            if word not in STYLES
            else scene.adjective(word)
        )
        drawn.append((scene, picture(scene, source), scene.caption(adjective)))
    return drawn


def marks(scene: Scene, caption: Sequence[str], word: str) -> tuple[bool, bool]:
    """Return whether a caption has the style that was asked for and no other, and whether it says
    what the picture shows.
    """
    found = {style for style, adjectives in STYLES.items() if set(adjectives) & set(caption)}
    others = [
        part for part in caption if not any(part in adjectives for adjectives in STYLES.values())
    ]
    return found == ({word} & set(STYLES)), others == scene.caption()


def batches(words: Sequence[str], seed: int, size: int) -> Iterator[Batch]:
    """Yield batches without end; the loss is on the caption after the asking word."""
    source = random.Random(seed)
    pool = [(word, example) for word in words for example in examples(word, (1 << 20) + seed, POOL)]
    while True:
        drawn = source.choices(pool, k=size)
        rows = [
            torch.tensor([BOS, _IDS[word], *(_IDS[part] for part in caption), SEP])
            for word, (_, _, caption) in drawn
        ]
        ids = padded(rows, max(map(len, rows)), PAD)
        labels = ids.masked_fill(ids == PAD, IGNORED)
        labels[:, :2] = IGNORED
        pixels = torch.stack([pixels for _, (_, pixels, _) in drawn])
        yield {
            "pixel_values": pixels,
            "input_ids": ids,
            "attention_mask": (ids != PAD).long(),
            "labels": labels,
        }


def make_blip(seed: int, width: int, layers: int) -> nn.Module:
    """Return a BLIP captioning model with random weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(seed)
    both = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    both["initializer_range"] = (
        0.02  # BLIP's own for its vision tower is 1e-10, from which shapes are not learned
    )
    shape = BlipConfig(
        text_config={
            **both,
            "vocab_size": len(VOCABULARY),
            "encoder_hidden_size": width,
            "max_position_embeddings": 16,
            "bos_token_id": BOS,
            "pad_token_id": PAD,
            "sep_token_id": SEP,
            "eos_token_id": SEP,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        vision_config={**both, "image_size": SIDE, "patch_size": 8},
        projection_dim=width,
        image_text_hidden_size=width,
    )
    return BlipForConditionalGeneration(shape)


@dataclass
class CaptionWorld:
    """A small BLIP, and LoRAs on q, k and v of the text decoder's self-attention.

    Args:
        folder: Folder of this base model and its LoRAs.
        seed: Seed of the base model.
        size: Amounts of training and measuring.
        tell: Listener for the progress of training.
    """

    folder: Path
    seed: int
    size: Size
    tell: Tell
    name: str = "blip"
    tasks: Sequence[str] = tuple(STYLES)
    model: nn.Module = field(init=False)
    written: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from transformers import BlipForConditionalGeneration

        base = self.folder / "base"
        size = self.size
        if not base.exists():
            model = make_blip(self.seed, size.width, size.layers)
            told = lambda step, _: self.tell("BLIP", step, size.base_steps)  # noqa: E731
            fit(
                model,
                batches(["plain", "free"], self.seed, size.batch),
                size.base_steps,
                size.base_rate,
                told,
            )
            save_whole(model, base)
        self.model = BlipForConditionalGeneration.from_pretrained(base).eval().requires_grad_(False)

    def adapters(self, seed: int) -> dict[str, Adapter]:
        """Return this seed's LoRA of every style, trained if it is not there yet."""
        found = {}
        size = self.size
        for style in STYLES:
            folder = self.folder / f"lora-{style}-{seed}"
            if not folder.exists():
                told = lambda step, _, name=folder.name: self.tell(name, step, size.lora_steps)  # noqa: E731
                targets = (
                    r"text_decoder\.bert\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)"
                )
                drawn = batches([style], 1000 + seed, size.batch)
                settings = {"r": 8, "lora_alpha": 16}
                train_lora(
                    self.model,
                    folder,
                    drawn,
                    size.lora_steps,
                    size.lora_rate,
                    seed,
                    told,
                    target_modules=targets,
                    **settings,
                )
            found[style] = peft.load(folder, mergeable_shapes(self.model))
        return found

    def merge_inputs(self, names: Sequence[str], seed: int, way: Way) -> tuple[Network, list[Task]]:
        """Return the network, and pictures under each style's word with what its LoRA writes."""
        worn = self.adapters(seed)
        drawn = [self.captioned(name, worn[name], seed)[: way.samples] for name in names]
        if way.preserve:
            drawn.append(self.captioned("plain", None, seed)[: way.samples])
        longest = max(len(ids) for task in drawn for _, ids in task)
        rows = [
            [_sample(pixels, ids, longest, way.padding == "count") for pixels, ids in task]
            for task in drawn
        ]
        tasks = [Task(name, rows[k], {k: 1.0}) for k, name in enumerate(names)]
        if way.preserve:
            tasks.append(Task("preserve", rows[-1], {}, way.preserve))
        return replace(network_of(self.model), forward=self.outputs), tasks

    def captioned(
        self, word: str, adapter: Adapter | None, seed: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Return pictures and the token ids that a decoder reads: what the teacher writes under a
        word.
        """
        if (word, seed) not in self.written:
            pixels = [pixels for _, pixels, _ in examples(word, 100 + seed, self.size.samples)]
            with patched(self.model, adapter):
                told = self.captions(pixels, [word] * len(pixels))
            ids = [
                torch.tensor([BOS, _IDS[word], *(_IDS[part] for part in caption)])
                for caption in told
            ]
            self.written[word, seed] = list(zip(pixels, ids, strict=True))
        return self.written[word, seed]

    @torch.no_grad()
    def captions(self, pixels: Sequence[Tensor], words: Sequence[str]) -> list[list[str]]:
        """Return the model's greedy captions of pictures, which begin with the asking words."""
        asked = torch.tensor(
            [[BOS, _IDS[word], SEP] for word in words]
        )  # BLIP's generate drops the last
        written = self.model.generate(
            pixel_values=torch.stack(list(pixels)),
            input_ids=asked,
            do_sample=False,
            num_beams=1,
            max_new_tokens=MOST_WORDS,
        )
        told = [[VOCABULARY[number] for number in row[2:]] for row in written.tolist()]
        return [words[: words.index("<sep>")] if "<sep>" in words else words for words in told]

    def outputs(self, rows: Sequence[Any]) -> Tensor:
        """Return a batch's logits, 0 after the end of a caption."""
        pixels, ids, mask = (
            torch.stack([getattr(row, part) for row in rows]) for part in ("pixels", "ids", "mask")
        )
        logits = self.model(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
        return logits * mask[..., None]

    def scores(self, adapter: Adapter | None, names: Sequence[str], seed: int) -> dict[str, float]:
        """Return, per style, the share of captions with the asked style and the right content, and
        both shares alone.

        ``base`` is that of plain captions without any style.
        """
        count = {**dict.fromkeys(names, self.size.examples), "plain": self.size.base_examples * 5}
        drawn = [
            (word, *example[:2])
            for word in count
            for example in examples(word, 200 + seed, count[word])
        ]
        with patched(self.model, adapter):
            told = self.captions([pixels for _, _, pixels in drawn], [word for word, _, _ in drawn])
        marked = [
            (word, *marks(scene, caption, word))
            for (word, scene, _), caption in zip(drawn, told, strict=True)
        ]
        found = {}
        for word, number in count.items():
            name = "base" if word == "plain" else word
            found[name] = (
                sum(style and content for asked, style, content in marked if asked == word) / number
            )
            found[f"{name} style"] = (
                sum(style for asked, style, _ in marked if asked == word) / number
            )
            found[f"{name} content"] = (
                sum(content for asked, _, content in marked if asked == word) / number
            )
        return found


def _sample(pixels: Tensor, ids: Tensor, length: int, count_padding: bool) -> Sample:
    mask = padded([torch.ones_like(ids)], length, 0)[0]
    weights = {} if count_padding or mask.all() else {TEXT_STREAM: mask.float()}
    return Sample(CaptionRow(pixels, padded([ids], length, PAD)[0], mask), token_weights=weights)
