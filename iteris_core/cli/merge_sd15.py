"""The command `iteris merge sd15`: LoRA files of Stable Diffusion merged into one, without
ComfyUI.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..config import MergeConfig
from ..diffusion.calibration import Calibration
from ..diffusion.held_out import with_held_out
from ..diffusion.loading import load_diffusers
from ..diffusion.loras import Style, read_lora, save_lora
from ..diffusion.pipeline import DiffusersStableDiffusion
from ..diffusion.recipe import METADATA_KEY, UsedLora, with_recipe
from ..diffusion.samples import PromptedAdapter
from ..diffusion.stable_diffusion import StageProgress, merge_stable_diffusion
from ..diffusion.stages import numbered, stages_of
from ..errors import ConfigError
from ..files.diffusers import kohya_warning
from ..files.metadata import merged_metadata
from ..files.tensors import sha256
from ..files.trigger_words import default_prompts, trigger_words
from ..merging import MergeResult
from ..settings import setting
from . import options as options
from .options import Placement
from .paths import Places
from .terminal import progress_bars, quiet_libraries

SD15_HELP = """Merge LoRA files of Stable Diffusion 1.5 into one LoRA file.

Every LoRA is run on its own prompts. The merged one is solved for, layer by layer, so that it \
does the same.

Example:

    iteris merge sd15 --base stable-diffusion-v1-5/ --output merged.safetensors
        --lora dog.safetensors --prompts "a photo of sks dog\\n sks dog on a beach"
        --lora ink.safetensors --prompts "a castle, xyz ink drawing" --strength 1,0.8

Prompts are split at \\n, and have the trigger words in them; --prompts-file takes a text file \
with one a line. Without any (or with --prompts "") they are made of the trigger words in the \
file's metadata. The base is a diffusers folder, a .safetensors checkpoint or a name on the hub. A \
checkpoint also needs SD1.5's settings and tokenizer: from the hub, or from the folder --config.

LoRAs in the spelling of kohya, LyCORIS, diffusers, PEFT and ComfyUI are read. Strengths are baked \
into the result: load it at 1. It has kohya's key names, which ComfyUI, A1111 and diffusers load; \
--style diffusers writes those of diffusers.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""


@dataclass(frozen=True)
class Saving:
    """How the result is saved."""

    style: Style = setting("kohya", "Spelling of the result's key names.")


@options.command(
    "iteris merge sd15",
    "diffusion",
    calibration=Calibration(),
    settings=MergeConfig(samples_per_chunk=4, output_dtype=torch.float16),
    placement=Placement(),
    saving=Saving(),
)
def merge_sd15_command(
    *,
    base: Annotated[
        str,
        typer.Option(
            help="Stable Diffusion 1.5: a diffusers folder, a .safetensors, or a name on the hub."
        ),
    ],
    lora: Annotated[list[Path], typer.Option(help="A LoRA file, .safetensors; one or more.")],
    output: Annotated[Path, typer.Option(help="The merged LoRA, .safetensors.")],
    prompts: Annotated[
        list[str] | None, typer.Option(help="A LoRA's prompts; one per --lora, in order.")
    ] = None,
    prompts_file: Annotated[
        list[Path] | None, typer.Option(help="The same from files, instead of --prompts.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="For a checkpoint: a folder with its settings; SD1.5's if left out."),
    ] = None,
    strength: Annotated[
        str | None, typer.Option(help="Strength of each LoRA, such as 1,0.8; 1 if left out.")
    ] = None,
    strength_text: Annotated[
        str | None,
        typer.Option(help="Strength of the text encoder parts; that of --strength if left out."),
    ] = None,
    weights: options.WeightsSetting = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="What scenes call a LoRA; one per --lora, in order.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="subject or style, for scenes; one per --lora, in order."),
    ] = None,
    correct_strength: Annotated[
        bool,
        typer.Option(
            "--correct-strength", help="Scale the result by what the check of --held-out measures."
        ),
    ] = False,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
    calibration: Calibration,
    settings: MergeConfig,
    placement: Placement,
    saving: Saving,
) -> None:
    Places(
        files={"--output": output, "--json": report},
        inputs={"--base": [base], "--lora": lora, "--prompts-file": prompts_file or ()},
    ).check()
    _check(output, overwrite, correct_strength, calibration)
    options.check_used(settings)
    chosen = _per_lora(lora, prompts, prompts_file, strength, strength_text, weights, trigger, kind)
    with _loaded(base, config, placement) as model, progress_bars() as progress:
        read, result = _merged(
            model, chosen, base, calibration, settings, correct_strength, progress
        )
    _write(model, read, result, output, saving.style, overwrite)
    options.tell(result.adapter.name, result.report, output, report)


def _merged(
    model: DiffusersStableDiffusion,
    chosen: Sequence[dict[str, Any]],
    base: str,
    calibration: Calibration,
    settings: MergeConfig,
    correct_strength: bool,
    progress: StageProgress,
) -> tuple[list[tuple[PromptedAdapter, UsedLora]], MergeResult]:
    """Return what was read of each LoRA, and the merge, checked on unseen samples, whose report has
    what was used.
    """
    read = [_read(model, **how) for how in chosen]
    loras = [adapter for adapter, _ in read]
    progress = numbered(progress, stages_of(model, loras, calibration))
    result = merge_stable_diffusion(model, loras, calibration, settings, progress)
    checked = {
        "correct_strength": correct_strength,
        "samples_per_chunk": settings.samples_per_chunk,
    }
    result = with_held_out(model, loras, result, calibration, progress=progress, **checked)
    return read, replace(
        result, report=with_recipe(result.report, [used for _, used in read], base=base)
    )


def _write(
    model: DiffusersStableDiffusion,
    read: Sequence[tuple[PromptedAdapter, UsedLora]],
    result: MergeResult,
    output: Path,
    style: Style,
    overwrite: bool,
) -> None:
    merged = result.adapter
    sources = [
        (lora.adapter.name, lora.adapter.metadata) for lora, _ in read if not lora.adapter.is_idle
    ]
    metadata = merged_metadata(output.stem, sources, datetime.now()) | {
        METADATA_KEY: json.dumps(result.report.settings)
    }
    metadata["modelspec.prediction_type"] = model.prediction_type
    save_lora(model, merged, output, style, metadata, overwrite=overwrite)
    warning = kohya_warning(merged) if style == "kohya" else None
    if warning:
        typer.echo(f"note: {warning}")


@contextlib.contextmanager
def _loaded(
    base: str, config: str | None, placement: Placement
) -> Iterator[DiffusersStableDiffusion]:
    """Load the model, and keep what diffusers advises about its own settings off the terminal."""
    quiet_libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield load_diffusers(base, config, placement.dtype, placement.device)


def _check(output: Path, overwrite: bool, correct_strength: bool, calibration: Calibration) -> None:
    if correct_strength and not calibration.held_out:
        raise ConfigError(
            "--correct-strength needs runs to measure it on; set --held-out to 1 or more"
        )
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output is {output}; its name must end in .safetensors")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already; choose another name, or allow overwriting")


def _per_lora(
    loras: Sequence[Path],
    prompts: Sequence[str] | None,
    files: Sequence[Path] | None,
    strength: str | None,
    strength_text: str | None,
    weights: str | None,
    triggers: Sequence[str] | None,
    kinds: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Return, per LoRA, what was asked for it.

    Raises:
        ConfigError: An option is there more or less often than LoRAs.
    """
    if prompts and files:
        raise ConfigError(
            "there are both --prompts and --prompts-file; give one of them, once for every --lora"
        )
    texts = [_lines(text.replace("\\n", "\n")) for text in prompts or ()]
    texts = texts or [_lines(_text_of(file)) for file in files or ()] or [()] * len(loras)
    strengths = options.numbers("--strength", strength) or [1.0] * len(loras)
    given = {
        "path": loras,
        "prompts": texts,
        "strength": strengths,
        "strength_text": options.numbers("--strength-text", strength_text) or strengths,
        "weight": options.numbers("--weights", weights) or [1.0] * len(loras),
        "trigger": triggers or [""] * len(loras),
        "kind": kinds or ["subject"] * len(loras),
    }
    for name, values in given.items():
        if len(values) != len(loras):
            what = name.replace("_", "-")
            raise ConfigError(
                f"there are {len(loras)} LoRAs and {len(values)} values of {what}; give each LoRA "
                "its own"
            )
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: cannot be read as text ({error}); give a text file with one prompt a line"
        ) from error


def _read(
    model: DiffusersStableDiffusion,
    path: Path,
    prompts: tuple[str, ...],
    strength: float,
    strength_text: float,
    weight: float,
    trigger: str,
    kind: str,
) -> tuple[PromptedAdapter, UsedLora]:
    """Return a LoRA with its prompts, those of its metadata if the user named none, and what is to
    be remembered of it.
    """
    adapter = read_lora(model, path, strength, strength_text)
    found = trigger_words(adapter.metadata)
    texts = prompts or default_prompts(found)
    if not texts:
        raise ConfigError(
            f"{path.name}: there are no trigger words in its metadata; name its prompts with "
            "--prompts"
        )
    source = "" if prompts else found.source
    used = UsedLora(
        adapter.name,
        path.name,
        sha256(path),
        strength,
        strength_text,
        texts,
        source,
        weight,
        trigger,
        kind,
    )
    return PromptedAdapter(adapter, texts, weight, trigger, kind), used
