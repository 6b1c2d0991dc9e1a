"""The BLIP side: drawn pictures, and LoRAs of caption styles on the decoder's q, k and v."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iteris_core import Adapter, Sample
from iteris_core.language.blip import caption_rows, network_of
from iteris_core.language.samples import EncodedSample, padded

from .world import IGNORED, Batch, Size, World

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
        """Return a style's adjective for this picture: by colour, shape, or both and place."""
        numbers = (
            list(COLOURS).index(self.colour),
            SHAPES.index(self.shape),
            PLACES.index(self.place),
        )
        choice = {"praise": numbers[0], "blame": numbers[1], "dream": sum(numbers)}[style]
        return STYLES[style][choice % len(STYLES[style])]


def picture(scene: Scene, source: random.Random) -> Tensor:
    """Return pixels (3, 32, 32): the shape somewhere on its side of a dark, noisy ground."""
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
    """Return scenes, pictures, and captions under a style's word, ``plain`` or ``free``."""
    source = random.Random(f"{word} {seed}")
    drawn = []
    for _ in range(count):
        scene = Scene.drawn_from(source)
        any_word = source.choice([adjective for words in STYLES.values() for adjective in words])
        adjective = (
            scene.adjective(word) if word in STYLES else any_word if word == "free" else None
        )
        drawn.append((scene, picture(scene, source), scene.caption(adjective)))
    return drawn


def is_right(scene: Scene, caption: Sequence[str], word: str) -> bool:
    """Return whether a caption says what the picture shows, in the style asked for and no other."""
    styles = {part: style for style, words in STYLES.items() for part in words}
    found = {styles[part] for part in caption if part in styles}
    content = [part for part in caption if part not in styles]
    return found == ({word} & set(STYLES)) and content == scene.caption()


class CaptionWorld(World):
    """A small BLIP."""

    name = "blip"
    tasks = tuple(STYLES)
    size = Size(width=64, base_steps=2000)
    model_class = "BlipForConditionalGeneration"
    network_of = network_of
    lora: ClassVar = {
        "target_modules": r"text_decoder\.bert\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)"
    }

    def new_model(self) -> nn.Module:
        from transformers import BlipConfig, BlipForConditionalGeneration

        both = {
            "hidden_size": self.size.width,
            "intermediate_size": 2 * self.size.width,
            "num_hidden_layers": self.size.layers,
            "num_attention_heads": 4,
            # BLIP's own for its vision tower is 1e-10, from which shapes are not learned
            "initializer_range": 0.02,
        }
        shape = BlipConfig(
            text_config={
                **both,
                "vocab_size": len(VOCABULARY),
                "encoder_hidden_size": self.size.width,
                "max_position_embeddings": 16,
                "bos_token_id": BOS,
                "pad_token_id": PAD,
                "sep_token_id": SEP,
                "eos_token_id": SEP,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            vision_config={**both, "image_size": SIDE, "patch_size": 8},
            projection_dim=self.size.width,
            image_text_hidden_size=self.size.width,
        )
        return BlipForConditionalGeneration(shape)

    def batches(self, task: str | None, seed: int) -> Iterator[Batch]:
        """Yield batches without end; the loss is on the caption after the asking word."""
        words = [task] if task else ["plain", "free"]
        source = random.Random(seed)
        pool = [
            (word, example) for word in words for example in examples(word, (1 << 20) + seed, POOL)
        ]
        while True:
            drawn = source.choices(pool, k=self.size.batch)
            rows = [torch.tensor([*_ids(word, caption), SEP]) for word, (_, _, caption) in drawn]
            ids, mask = padded(rows, PAD)
            labels = ids.masked_fill(ids == PAD, IGNORED)
            labels[:, :2] = IGNORED
            yield {
                "pixel_values": torch.stack([pixels for _, (_, pixels, _) in drawn]),
                "input_ids": ids,
                "attention_mask": mask,
                "labels": labels,
            }

    def written(self, task: str, adapter: Adapter | None, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Return pictures, and the token ids that a decoder reads: what the teacher writes."""
        pixels = [pixels for _, pixels, _ in examples(task, 100 + seed, self.size.samples)]
        with self.wearing(adapter):
            told = self.captions(pixels, [task] * len(pixels))
        ids = [torch.tensor(_ids(task, caption)) for caption in told]
        return list(zip(pixels, ids, strict=True))

    def ordinary(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        return self.written("plain", None, seed)

    def samples(self, written: Sequence[Sequence[Any]]) -> list[list[Sample]]:
        encoded = [[EncodedSample(pixels, ids) for pixels, ids in task] for task in written]
        return caption_rows(self.model, encoded)

    @torch.no_grad()
    def captions(self, pixels: Sequence[Tensor], words: Sequence[str]) -> list[list[str]]:
        """Return the model's greedy captions of pictures, which begin with the asking words."""
        written = self.model.generate(
            pixel_values=torch.stack(list(pixels)),
            input_ids=torch.tensor([[*_ids(word), SEP] for word in words]),  # the last is dropped
            do_sample=False,
            num_beams=1,
            max_new_tokens=MOST_WORDS,
        )
        told = [[VOCABULARY[number] for number in row[2:]] for row in written.tolist()]
        return [words[: words.index("<sep>")] if "<sep>" in words else words for words in told]

    def scores(self, adapter: Adapter | None, names: Sequence[str], seed: int) -> dict[str, float]:
        count = {**dict.fromkeys(names, self.size.examples), "plain": self.size.base_examples * 5}
        drawn = [
            (word, scene, pixels)
            for word in count
            for scene, pixels, _ in examples(word, 200 + seed, count[word])
        ]
        with self.wearing(adapter):
            told = self.captions([pixels for _, _, pixels in drawn], [word for word, _, _ in drawn])
        right = dict.fromkeys(count, 0)
        for (word, scene, _), caption in zip(drawn, told, strict=True):
            right[word] += is_right(scene, caption, word)
        shares = {word: right[word] / number for word, number in count.items()}
        return {**{name: shares[name] for name in names}, "base": shares["plain"]}


def _ids(word: str, caption: Sequence[str] = ()) -> list[int]:
    """Return the ids of a text that begins with the asking word."""
    return [BOS, _IDS[word], *(_IDS[part] for part in caption)]
