"""The paper's diffusion protocol: concepts in one picture, judged by CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..devices import with_smaller_calls
from ..errors import ConfigError
from ..files.tensors import check_readable
from .clip_alignment import CLIPSCORE_PREFIX, Clip, image_alignment, load_clip, text_alignment
from .drawing import Sampling, draw, load_pipeline, wearing_lora
from .language import BASE, Scores
from .predictions import file_fingerprint
from .text_metrics import EvaluationError

StageProgress = Callable[[str, int, int], None]
VIT_L = "openai/clip-vit-large-patch14"
CONCEPTS = "{concepts}"
# Eight as in the paper, in words of ours: its tables do not have its own.
PROMPTS = (
    "a photo of {concepts}",
    "{concepts} on a wooden table",
    "{concepts} in a garden",
    "{concepts} on a beach",
    "{concepts} in the snow",
    "{concepts} in front of a brick wall",
    "{concepts} in a living room",
    "a watercolour painting of {concepts}",
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Concept:
    """What one LoRA learned.

    Args:
        name: An ordinary word, as in the paper's tables; CLIP reads "a" and this name.
        photos: Folder of photos of it.
        words: What prompts call it, with its trigger words; None: "a" and the name.
    """

    name: str
    photos: Path
    words: str | None = None

    @property
    def in_prompts(self) -> str:
        return self.words or f"a {self.name}"

    def files(self) -> list[Path]:
        """Return the photos.

        Raises:
            EvaluationError: There are none.
        """
        found = sorted(file for file in self.photos.glob("*") if file.suffix.lower() in _PICTURES)
        if not found:
            raise EvaluationError(
                f"{self.photos}: there are no pictures ({', '.join(_PICTURES)}) in this folder; "
                f"{self.name!r} needs photos, such as those that its LoRA was trained on"
            )
        return found


@dataclass(frozen=True)
class PictureRun:
    """What draws, with which LoRAs, and where the pictures go.

    Args:
        base: A diffusers folder, a checkpoint, or a name on the hub.
        loras: Files; each is one row of the table.
        output: Folder for the pictures.
        with_base: Whether the base model without a LoRA is a row, too.
        config: For a checkpoint, see `drawing.load_pipeline`.
        embeddings: Learned tokens that the prompts use.
        clip: Folder or hub name of the judge.
        batch: Pictures of one call.
        dtype: In which the base runs.
        device: Where everything runs.
    """

    base: str
    loras: tuple[Path, ...]
    output: Path
    with_base: bool = True
    config: str | None = None
    embeddings: tuple[Path, ...] = ()
    clip: str = VIT_L
    batch: int = 4
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}; it must be 1 or more")
        names = [file.stem for file in self.loras]
        if len(set(names)) < len(names) or BASE in names:
            raise ConfigError(
                f"the LoRAs are called {', '.join(names)}; every row needs a name of its own, none "
                f"of them {BASE}"
            )
        if not self.loras and not self.with_base:
            raise ConfigError("there is nothing to evaluate; give a LoRA, or let the base run")


def read_prompts(path: Path) -> list[str]:
    """Read prompt templates, one a line, with ``{concepts}`` where the concepts go.

    Raises:
        EvaluationError: There are none, or one is without the place.
    """
    try:
        lines = [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); give a text file with one prompt a line"
        ) from error
    wrong = [line for line in lines if CONCEPTS not in line]
    if wrong or not lines:
        problem = (
            f"the prompt {wrong[0]!r} has no {CONCEPTS}" if wrong else "there are no prompts in it"
        )
        raise EvaluationError(f"{path}: {problem}; write one a line, such as {PROMPTS[1]}")
    return lines


def evaluate_pictures(
    run: PictureRun,
    concepts: Sequence[Concept],
    sampling: Sampling | None = None,
    prompts: Sequence[str] = PROMPTS,
    progress: StageProgress | None = None,
) -> list[Scores]:
    """Draw every prompt with all concepts in it, bare and with each LoRA, and let CLIP compare.

    Scores are ``image_1``, ``image_2`` ... (`image_alignment` of each concept) and ``text``
    (`text_alignment` with the prompt in ordinary words).

    Args:
        run: Model, LoRAs, place.
        concepts: In the order in which prompts name them.
        sampling: How pictures are drawn; None: as in the paper.
        prompts: Templates with ``{concepts}``.
        progress: Told about pictures; may raise to cancel.

    Raises:
        IterisError: A model, file or folder that cannot be used.
    """
    sampling = sampling or Sampling()
    _check_concepts(concepts)
    for file in (*run.loras, *run.embeddings):
        check_readable(file)  # a wrong one is said before anything is drawn
    photos = [concept.files() for concept in concepts]
    clip = load_clip(run.clip, run.device)
    known = [clip.of_pictures(files) for files in photos]
    wanted = {
        "config": run.config,
        "embeddings": run.embeddings,
        "dtype": run.dtype,
        "device": run.device,
    }
    pipeline = load_pipeline(run.base, sampling, **wanted)
    drawn = [
        prompt.replace(CONCEPTS, " and ".join(concept.in_prompts for concept in concepts))
        for prompt in prompts
    ]
    plain = [
        prompt.replace(CONCEPTS, " and ".join(f"a {concept.name}" for concept in concepts))
        for prompt in prompts
    ]
    texts = clip.of_texts([CLIPSCORE_PREFIX + text for text in plain])
    scores = []
    rows: list[tuple[str, Path | None]] = [(file.stem, file) for file in run.loras]
    for row, file in ([(BASE, None)] if run.with_base else []) + rows:
        files = _drawn(run, pipeline, row, file, drawn, sampling, progress)
        values = _judged(
            clip, files, known, texts, partial(progress, f"{row}: CLIP") if progress else None
        )
        scores.append(
            Scores(
                row, "+".join(concept.name for concept in concepts), sum(map(len, files)), values
            )
        )
    return scores


def _check_concepts(concepts: Sequence[Concept]) -> None:
    names = [concept.name for concept in concepts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"the concepts are {', '.join(names) or 'none'}; give one or more, each once"
        )


def _drawn(
    run: PictureRun,
    pipeline: Any,
    row: str,
    lora: Path | None,
    prompts: Sequence[str],
    sampling: Sampling,
    progress: StageProgress | None,
) -> list[list[Path]]:
    settings = {name: value for name, value in asdict(sampling).items() if name != "count"}
    made_by = {"base": run.base, "dtype": str(run.dtype), **settings, "prompts": list(prompts)}
    with wearing_lora(pipeline, lora):
        made_by["lora"] = None if lora is None else file_fingerprint(lora)
        made_by["embeddings"] = [file_fingerprint(file) for file in run.embeddings]
        tell = partial(progress, f"{row}: pictures") if progress else lambda done, total: None
        return with_smaller_calls(
            lambda size: draw(pipeline, run.output / row, made_by, prompts, sampling, size, tell),
            run.batch,
            "drawing",
        )


def _judged(
    clip: Clip,
    files: Sequence[Sequence[Path]],
    photos: Sequence[torch.Tensor],
    texts: torch.Tensor,
    progress: Callable[[int, int], None] | None,
) -> Mapping[str, float]:
    flat = [file for of_prompt in files for file in of_prompt]
    pictures = clip.of_pictures(flat, progress=progress or (lambda done, total: None))
    own = texts.repeat_interleave(len(files[0]), dim=0)
    images = {
        f"image_{number}": image_alignment(pictures, photo)
        for number, photo in enumerate(photos, 1)
    }
    return {**images, "text": text_alignment(pictures, own)}
