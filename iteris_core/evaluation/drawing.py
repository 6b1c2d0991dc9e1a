"""Pictures by a `StableDiffusionPipeline`, drawn once and kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..diffusion.loras import read_lora, save_lora
from ..diffusion.pipeline import DiffusersStableDiffusion
from ..errors import AdapterError, ConfigError
from ..files.pretrained import loaded
from ..files.tensors import check_readable
from .text_metrics import EvaluationError

Scheduler = Literal["ddpm", "model"]
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; the defaults are the paper's.

    Args:
        count: Pictures per prompt.
        steps: Of the sampler.
        guidance: Classifier-free guidance scale.
        size: Side of a picture in pixels, a multiple of 8.
        scheduler: ``ddpm``, or the model's own.
        seed: Of the first picture; every picture has a seed of its own, the same with every LoRA.
    """

    count: int = 50
    steps: int = 100
    guidance: float = 12.0
    size: int = 512
    scheduler: Scheduler = "ddpm"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.size < 8 or self.size % 8:
            raise ConfigError(f"size is {self.size}; it must be a multiple of 8")
        if self.scheduler not in get_args(Scheduler):
            raise ConfigError(
                f"scheduler is {self.scheduler!r}; it can be "
                f"{' or '.join(map(repr, get_args(Scheduler)))}"
            )

    def seed_of(self, prompt: int, number: int) -> int:
        """Return the seed of a prompt's picture; more pictures or prompts do not change those of
        the others.
        """
        return self.seed * 1_000_003 + prompt * 10_007 + number


def load_pipeline(
    source: str,
    sampling: Sampling,
    *,
    config: str | None = None,
    embeddings: Sequence[Path] = (),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    """Load a `StableDiffusionPipeline`, without its safety checker.

    Args:
        source: A diffusers folder, a .safetensors checkpoint, or a name on the hub.
        sampling: Whose scheduler it gets.
        config: For a checkpoint: a diffusers folder (or hub name) with the settings and tokenizer
            of its kind of model.
        embeddings: Learned tokens of textual inversion, .safetensors.
        dtype: In which it runs.
        device: Where it runs.

    Raises:
        IterisError: There is none; a file cannot be used; the device cannot be used.
    """
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    path = Path(source)
    options = {"safety_checker": None, "requires_safety_checker": False}
    if path.suffix in (".safetensors", ".ckpt"):
        check_readable(path)
        pipeline = _attempt(
            lambda: StableDiffusionPipeline.from_single_file(str(path), config=config, **options),
            f"{source}: cannot be loaded as a Stable Diffusion checkpoint",
            "give --config a diffusers folder of the same kind of model, of which only the "
            "settings and the tokenizer are read",
        )
    else:
        options["use_safetensors"] = True
        pipeline = loaded(
            StableDiffusionPipeline.from_pretrained, source, "a diffusers pipeline", **options
        )
    if sampling.scheduler == "ddpm":
        pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for file in embeddings:
        check_readable(file)
        _attempt(
            lambda file=file: pipeline.load_textual_inversion(
                str(file.parent), weight_name=file.name, local_files_only=True
            ),
            f"{file}: cannot be loaded as a learned token",
            "give the file that the training of textual inversion wrote for this base model",
        )
    pipeline.set_progress_bar_config(disable=True)
    return _attempt(
        lambda: pipeline.to(device, dtype),
        f"device {device!r} cannot be used",
        "choose another --device",
    )


def _attempt(do: Callable[[], Any], problem: str, advice: str) -> Any:
    """Return what a call of diffusers returns; whatever a foreign file makes it raise becomes a
    `ConfigError`.
    """
    try:
        return do()
    except Exception as error:  # diffusers lets errors of every kind through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{problem} ({reason}); {advice}") from error


@contextmanager
def wearing_lora(pipeline: Any, file: Path | None) -> Iterator[None]:
    """Let a pipeline draw with a LoRA file of any spelling at strength 1; None: without.

    diffusers itself passes over layers of a kohya file without a word (diffusers 0.42 with
    transformers 5: the text encoder's attention), so it is handed the file in its own format, and
    what it applies is counted.

    Raises:
        AdapterError: The file cannot be read, or not all of it fits the model.
    """
    if file is None:
        yield
        return
    model = DiffusersStableDiffusion(
        pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler
    )
    adapter = read_lora(model, file)
    advice = "give a LoRA for this base model, or one that `iteris merge sd15` saved"
    left = [*adapter.unmatched, *adapter.vectors]
    if left:
        raise AdapterError(
            f"{file}: {left[0]!r} (of {len(left)}) would not be in the pictures; {advice}"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_lora(model, adapter, Path(folder) / "lora.safetensors", "diffusers")
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


def draw(
    pipeline: Any,
    folder: Path,
    made_by: Mapping[str, Any],
    prompts: Sequence[str],
    sampling: Sampling,
    batch: int,
    progress: Callable[[int, int], None],
) -> list[list[Path]]:
    """Return the files of every prompt's pictures; those that are there are kept, the others drawn.

    Args:
        pipeline: As `load_pipeline` returns it.
        folder: Of the pictures.
        made_by: Everything that a picture depends on, as JSON.
        prompts: Each is drawn `sampling.count` times.
        sampling: How.
        batch: Pictures of one call.
        progress: Told (done, total).

    Raises:
        EvaluationError: The folder holds pictures that something else made; says what differs.
    """
    _check_settings(folder, made_by)
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
            draft = files[p][n].with_suffix(".part")  # a stopped run leaves no half picture behind
            picture.save(draft, format="PNG")
            draft.replace(files[p][n])
        progress(total - len(missing) + start + len(group), total)
    return files


def _check_settings(folder: Path, made_by: Mapping[str, Any]) -> None:
    path = folder / SETTINGS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(folder.glob("*.png")):
            raise EvaluationError(
                f"{folder}: holds pictures, but no {SETTINGS_FILE} that says of what; choose "
                "another --output"
            )
        path.write_text(json.dumps(made_by, indent=2) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); delete the folder to begin again"
        ) from error
    different = [name for name in made_by if before.get(name) != made_by[name]]
    if different:
        first = different[0]
        raise EvaluationError(
            f"{folder}: holds pictures drawn with another {first} ({before.get(first)!r}, now "
            f"{made_by[first]!r}); choose another --output, or delete the folder to begin again"
        )
