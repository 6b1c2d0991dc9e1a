"""CLIP's judgement of pictures: likeness to photos of a concept, and likeness to a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from iteris_core.base_models import load_processor, placed, whole_model
from iteris_core.language.pictures import open_picture
from iteris_core.progress import Progress, nobody

# CLIPScore (Hessel et al. 2021) is 2.5 max(cos, 0), with these words before the text.
CLIPSCORE_SCALE = 2.5
CLIPSCORE_PREFIX = "A photo depicts "


@dataclass(frozen=True)
class Clip:
    """A `CLIPModel` of transformers and its processor."""

    model: Any
    processor: Any

    def of_pictures(
        self,
        files: Sequence[Path],
        batch: int = 16,
        progress: Progress = nobody,
    ) -> Tensor:
        """Return the pictures' features (pictures, width), each of length 1.

        Args:
            files: Files of the pictures.
            batch: Pictures of one call.
            progress: Listener for (pictures done, pictures in all); may raise to cancel.

        Raises:
            CalibrationError: A file is not a picture.
        """
        features = []
        for start in range(0, len(files), batch):
            pictures = [open_picture(file) for file in files[start : start + batch]]
            pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                seen = self.model.vision_model(
                    pixel_values=pixels.to(self.model.device, self.model.dtype)
                ).pooler_output
                features.append(
                    functional.normalize(self.model.visual_projection(seen).float(), dim=-1).cpu()
                )
            progress(min(start + batch, len(files)), len(files))
        return torch.cat(features)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the texts' features (texts, width), each of length 1; long texts are cut."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.no_grad():
            read = self.model.text_model(**ids.to(self.model.device)).pooler_output
            return functional.normalize(self.model.text_projection(read).float(), dim=-1).cpu()


def load_clip(source: str, device: str = "cpu") -> Clip:
    """Load a CLIP model from a folder or by its name on the hub; raises `ConfigError`."""
    from transformers import CLIPModel

    model = whole_model(CLIPModel, source, "a CLIP model")
    return Clip(placed(model, device), load_processor(source))


def image_alignment(pictures: Tensor, photos: Tensor) -> float:
    """Return the mean cosine of every picture with every photo, both (n, width) of length 1."""
    return float((pictures @ photos.T).mean())


def text_alignment(pictures: Tensor, texts: Tensor) -> float:
    """Return the mean CLIPScore, ``2.5 max(cos, 0)``, of each picture with its own text."""
    return float(CLIPSCORE_SCALE * (pictures * texts).sum(-1).clamp_min(0).mean())
