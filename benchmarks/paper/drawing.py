"""Pictures that a `StableDiffusionPipeline` draws once and keeps in a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.nn.functional import pad

from iteris_core.adapters import Adapter, LowRankDelta
from iteris_core.base_models import first_line
from iteris_core.diffusion import loading
from iteris_core.diffusion.diffusers_model import DiffusersModel
from iteris_core.diffusion.loading import read_lora
from iteris_core.errors import AdapterError, ConfigError
from iteris_core.files import peft
from iteris_core.files.families import FAMILIES
from iteris_core.files.writing import whole_file, write_tensors
from iteris_core.progress import Progress
from iteris_core.settings import MOST_SEEDS, settings

from .errors import EvaluationError
from .predictions import keep, kept

Scheduler = Literal["ddpm", "model"]
SETTINGS_FILE = "settings.json"


@settings
class Sampling:
    """How pictures are drawn, by default as in the paper, each from its seed with every LoRA."""

    count: Annotated[int, Field(ge=1, le=100_000, description="Pictures per prompt.")] = 50
    steps: Annotated[int, Field(ge=1, le=1000, description="Steps of the sampler.")] = 100
    guidance: Annotated[
        float, Field(ge=0, le=100, description="Classifier-free guidance scale.")
    ] = 12.0
    size: Annotated[
        int, Field(ge=8, le=4096, multiple_of=8, description="Side of a picture in pixels.")
    ] = 512
    scheduler: Annotated[Scheduler, Field(description="DDPM, or the model's own scheduler.")] = (
        "ddpm"
    )
    seed: Annotated[
        int, Field(ge=0, le=MOST_SEEDS - 1, description="Seed of the first picture.")
    ] = 0

    def seed_of(self, prompt: int, number: int) -> int:
        """Return the seed of a prompt's picture; more pictures or prompts change no other's."""
        return self.seed * 1_000_003 + prompt * 10_007 + number


def load_pipeline(
    source: str,
    sampling: Sampling,
    config: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    """Load a `StableDiffusionPipeline`, without its safety checker.

    Args:
        source: A diffusers folder, a .safetensors checkpoint, or a name on the hub.
        sampling: Settings for drawing; the pipeline gets their scheduler.
        config: Settings of a checkpoint's model, see `loading.load_pipeline`.
        dtype: Precision of the model.
        device: Device to run on.

    Raises:
        IterisError: There is no such model, or a file or the device cannot be used.
    """
    from diffusers import DDPMScheduler

    pipeline = loading.load_pipeline(source, FAMILIES["SD1.5"], config)
    if sampling.scheduler == "ddpm":
        pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return _attempt(
        lambda: pipeline.to(device, dtype),
        f"device {device!r} cannot be used",
        "choose another --device",
    )


def _attempt(do: Callable[[], Any], problem: str, advice: str) -> Any:
    """Return the result of a call of diffusers; whatever it fails with is a `ConfigError`."""
    try:
        return do()
    except Exception as error:  # diffusers lets errors of every kind through
        raise ConfigError(f"{problem} ({first_line(error)}); {advice}") from error


@contextmanager
def wearing_lora(pipeline: Any, file: Path | None) -> Iterator[None]:
    """Let a pipeline draw with a LoRA file of any spelling at strength 1.

    diffusers passes over layers of a kohya file without a word (diffusers 0.42 with transformers 5:
    the text encoder's attention). So it gets the file in its own format, and the layers that it
    applies are counted.

    Args:
        pipeline: A pipeline, as `load_pipeline` returns it.
        file: File of the LoRA; None: no LoRA.

    Raises:
        AdapterError: The file cannot be read, or not all of it fits the model.
    """
    if file is None:
        yield
        return
    model = DiffusersModel.of(pipeline)
    adapter = read_lora(model, file)
    advice = "give a LoRA for this base model, or one that `iteris merge sd15` saved"
    lost = [*adapter.unmatched, *adapter.vectors]
    if lost:
        raise AdapterError(
            f"{file}: {lost[0]!r} (of {len(lost)}) would not be in the pictures; {advice}"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            tensors = peft.to_tensors(_of_one_rank(adapter), model.keys.kernels, prefix="")
            write_tensors(tensors, Path(folder) / "lora.safetensors", {})
            load = partial(
                pipeline.load_lora_weights,
                folder,
                weight_name="lora.safetensors",
                local_files_only=True,
            )
            _attempt(load, f"{file}: cannot be loaded by diffusers", advice)
        parts = (pipeline.unet, pipeline.text_encoder)
        applied = sum(hasattr(module, "lora_A") for part in parts for module in part.modules())
        if applied != len(adapter.deltas):
            raise AdapterError(
                f"{file}: diffusers applies {applied} of its {len(adapter.deltas)} layers; {advice}"
            )
        yield
    finally:
        pipeline.unload_lora_weights()


def _of_one_rank(adapter: Adapter) -> Adapter:
    """Return an adapter with factors filled up with zeros: diffusers takes one alpha for all."""
    rank = max((delta.rank for delta in adapter.deltas.values()), default=0)
    deltas = {}
    for path, delta in adapter.deltas.items():
        more = rank - delta.rank
        deltas[path] = LowRankDelta(pad(delta.up, (0, more)), pad(delta.down, (0, 0, 0, more)))
    return replace(adapter, deltas=deltas)


def draw(
    pipeline: Any,
    folder: Path,
    made_by: Mapping[str, Any],
    prompts: Sequence[str],
    sampling: Sampling,
    batch: int,
    progress: Progress,
) -> list[list[Path]]:
    """Return the files of every prompt's pictures.

    Pictures that exist are kept; the others are drawn.

    Args:
        pipeline: A pipeline, as `load_pipeline` returns it.
        folder: Folder of the pictures.
        made_by: Everything that a picture depends on, as JSON.
        prompts: Prompts; each is drawn `sampling.count` times.
        sampling: Settings for drawing.
        batch: Pictures of one call.
        progress: Listener for (pictures done, pictures in all); may raise to cancel.

    Raises:
        EvaluationError: The folder holds pictures that something else made; says what differs.
    """
    settings = folder / SETTINGS_FILE
    if kept(settings, made_by) is None:
        if any(folder.glob("*.png")):
            raise EvaluationError(
                f"{folder}: holds pictures, but no {SETTINGS_FILE} that says of what; choose "
                "another --output"
            )
        keep(settings, made_by)
    files = [
        [folder / f"{p:02d}-{n:04d}.png" for n in range(sampling.count)]
        for p in range(len(prompts))
    ]
    missing = [
        (p, n)
        for n in range(sampling.count)
        for p in range(len(prompts))
        if not files[p][n].exists()
    ]
    total = len(prompts) * sampling.count
    progress(total - len(missing), total)
    for start in range(0, len(missing), batch):
        group = missing[start : start + batch]
        pictures = pipeline(
            [prompts[p] for p, _ in group],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            width=sampling.size,
            height=sampling.size,
            generator=[
                torch.Generator("cpu").manual_seed(sampling.seed_of(p, n)) for p, n in group
            ],
        ).images
        for (p, n), picture in zip(group, pictures, strict=True):
            with whole_file(files[p][n], overwrite=True) as file:
                picture.save(file, format="PNG")
        progress(total - len(missing) + start + len(group), total)
    return files
