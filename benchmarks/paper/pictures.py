"""The paper's diffusion protocol: concepts in one picture, judged by CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from iteris_core.errors import ConfigError
from iteris_core.files.tensors import read_header
from iteris_core.language.pictures import SUFFIXES, pictures_in
from iteris_core.memory import with_smaller_calls
from iteris_core.progress import Progress, Stage, StageProgress, nobody
from iteris_core.settings import MOST_AT_ONCE, checked

from .clip_alignment import CLIPSCORE_PREFIX, Clip, image_alignment, load_clip, text_alignment
from .drawing import Sampling, draw, load_pipeline, wearing_lora
from .errors import EvaluationError
from .language import BASE, Scores, check_row_names
from .predictions import file_fingerprint

VIT_L = "openai/clip-vit-large-patch14"
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


@dataclass(frozen=True)
class Concept:
    """The concept that one LoRA learned.

    Args:
        name: Ordinary word for the concept, as in the paper's tables; CLIP reads "a" and this name.
        photos: Folder of photos of the concept.
        words: Phrase for the concept in prompts, with the LoRA's trigger words; None: "a" and the
            name.
    """

    name: str
    photos: Path
    words: str | None = None

    @property
    def in_prompts(self) -> str:
        return self.words or f"a {self.name}"

    def files(self) -> list[Path]:
        """Return the photos; `EvaluationError` where there are none."""
        files = pictures_in(self.photos)
        if not files:
            raise EvaluationError(
                f"{self.photos}: there are no pictures ({', '.join(SUFFIXES)}) in this folder; "
                f"{self.name!r} needs photos, such as the ones that its LoRA was trained on"
            )
        return files


@dataclass(frozen=True)
class PictureRun:
    """The model, LoRAs and folder of an evaluation by pictures.

    Args:
        base: A diffusers folder, a checkpoint, or a name on the hub.
        loras: LoRA files; each is one row of the table.
        output: Folder for the pictures.
        config: Settings of a checkpoint's model, see `loading.load_pipeline`.
        clip: Folder of the CLIP model that judges, or its name on the hub.
        dtype: Precision of the base model.
        device: Device to run everything on.
    """

    base: str
    loras: tuple[Path, ...]
    output: Path
    config: str | None = None
    clip: str = VIT_L
    batch: int = 4
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        checked("batch", self.batch, Annotated[int, Field(ge=1, le=MOST_AT_ONCE)])
        check_row_names([file.stem for file in self.loras])


def evaluate_pictures(
    run: PictureRun,
    concepts: Sequence[Concept],
    sampling: Sampling | None = None,
    progress: StageProgress = nobody,
) -> list[Scores]:
    """Draw every prompt with all concepts in it, bare and with each LoRA, and let CLIP compare.

    Scores are ``image_1``, ``image_2`` ... (`image_alignment` of each concept) and ``text``
    (`text_alignment` with the prompt in ordinary words).

    Args:
        run: Model, LoRAs, place.
        concepts: Concepts in the order that prompts name them.
        sampling: Settings for drawing; None: the paper's.
        progress: Listener for (stage, pictures done, pictures in all); may raise to cancel.

    Raises:
        IterisError: A model, file or folder cannot be used.
    """
    sampling = sampling or Sampling()
    _check_concepts(concepts)
    for file in run.loras:
        read_header(file)  # a wrong one is named before anything is drawn
    photos = [concept.files() for concept in concepts]
    clip = load_clip(run.clip, run.device)
    photo_features = [clip.of_pictures(files) for files in photos]
    pipeline = load_pipeline(run.base, sampling, run.config, run.dtype, run.device)
    drawn = _filled_in([concept.in_prompts for concept in concepts])
    plain = _filled_in([f"a {concept.name}" for concept in concepts])
    texts = clip.of_texts([CLIPSCORE_PREFIX + text for text in plain])
    rows = [(BASE, None), *((file.stem, file) for file in run.loras)]
    names = "+".join(concept.name for concept in concepts)
    scores = []
    for row, lora in rows:
        told = partial(progress, Stage(f"{row}: pictures"))
        files = _drawn(run, pipeline, lora, drawn, sampling, told)
        judged = partial(progress, Stage(f"{row}: CLIP"))
        values = _judged(clip, files, photo_features, texts, judged)
        scores.append(Scores(row, names, sum(map(len, files)), values))
    return scores


def _filled_in(names: Sequence[str]) -> list[str]:
    return [prompt.format(concepts=" and ".join(names)) for prompt in PROMPTS]


def _check_concepts(concepts: Sequence[Concept]) -> None:
    names = [concept.name for concept in concepts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"the concepts are {', '.join(names) or 'none'}; give one or more, each once"
        )


def _drawn(
    run: PictureRun,
    pipeline: Any,
    lora: Path | None,
    prompts: Sequence[str],
    sampling: Sampling,
    progress: Progress,
) -> list[list[Path]]:
    """Return the files of every prompt's pictures with a LoRA; None: of the bare base model."""
    settings = {name: value for name, value in asdict(sampling).items() if name != "count"}
    made_by = {
        "base": run.base,
        "dtype": str(run.dtype),
        **settings,
        "prompts": list(prompts),
        "lora": None if lora is None else file_fingerprint(lora),
    }
    folder = run.output / (BASE if lora is None else lora.stem)
    with wearing_lora(pipeline, lora):
        return with_smaller_calls(
            lambda size: draw(pipeline, folder, made_by, prompts, sampling, size, progress),
            run.batch,
            "drawing",
        )


def _judged(
    clip: Clip,
    files: Sequence[Sequence[Path]],
    photos: Sequence[torch.Tensor],
    texts: torch.Tensor,
    progress: Progress,
) -> Mapping[str, float]:
    flat = [file for of_prompt in files for file in of_prompt]
    pictures = clip.of_pictures(flat, progress=progress)
    own = texts.repeat_interleave(len(files[0]), dim=0)
    images = {
        f"image_{number}": image_alignment(pictures, photo)
        for number, photo in enumerate(photos, 1)
    }
    return {**images, "text": text_alignment(pictures, own)}
