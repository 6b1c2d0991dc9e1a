"""The commands `iteris merge sd15` and `iteris merge sdxl`: LoRA files of Stable Diffusion merged
into one, without ComfyUI.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
import typer
from pydantic import Field

from ..adapters import Adapter
from ..config import UNIT_GAIN, MergeConfig
from ..devices import device_of, free_bytes
from ..diffusion.calibration import DEFAULT_PRESET, PRESETS, Calibration, Preset
from ..diffusion.job import Job, MergeSettings
from ..diffusion.loading import load_diffusers
from ..diffusion.lora_files import Style, check_style, read_lora, save_lora
from ..diffusion.lora_use import Kind, LoraUse, load_each_once, with_prompts
from ..diffusion.merging import merge_and_check
from ..diffusion.pipeline import DiffusersModel
from ..diffusion.recipe import metadata_of_merge
from ..errors import ConfigError
from ..files.diffusers import kohya_warning
from ..files.families import FAMILIES, Family
from ..files.tensors import sha256
from ..files.trigger_words import lora_header
from ..files.writing import check_free, under_free_name
from ..processes import Processes
from ..rivals.registry import check_used
from ..settings import settings
from . import options
from .options import Spread
from .paths import Places
from .terminal import progress_bars, quiet_libraries

T = TypeVar("T")

_HELP = """Merge LoRA files of {full_name} into one LoRA file.

Every LoRA is run on its own prompts. The merged one is solved for, layer by layer, so that it \
does the same.

Example:

    iteris merge {name} --base {folder}/ --output merged.safetensors
        --lora dog.safetensors --prompts "a photo of sks dog\\n sks dog on a beach"
        --lora ink.safetensors --prompts "a castle, xyz ink drawing" --strength 1,0.8

Prompts are split at \\n, and have the trigger words in them; --prompts-file takes a text file \
with one a line. Without any (or with --prompts "") they are made of the trigger words in the \
file's metadata. The base is a diffusers folder, a .safetensors checkpoint or a name on the hub. A \
checkpoint also needs {family}'s settings and tokenizer: from the hub, or from the folder \
--config. Unless --resolution and --cfg say otherwise, the LoRAs are run on pictures of \
{side} x {side} pixels with guidance {guidance:g}.

LoRAs in the spelling of kohya, LyCORIS, diffusers, PEFT and ComfyUI are read. Strengths are baked \
into the result: load it at 1. It has kohya's key names, which ComfyUI, A1111 and diffusers load; \
--style diffusers writes those of diffusers.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""


@dataclass(frozen=True)
class MergeCommand:
    """A family of base models with a command of its own.

    Args:
        name: What the user types behind ``iteris merge``.
        family: The family.
        full_name: Its name in the help.
        folder: Folder of a base model, for the example.
    """

    name: str
    family: Family
    full_name: str
    folder: str

    @property
    def help(self) -> str:
        """What ``--help`` says."""
        return _HELP.format(
            name=self.name,
            full_name=self.full_name,
            folder=self.folder,
            family=self.family.name,
            side=self.family.measured_at,
            guidance=self.family.guidance,
        )


COMMANDS = (
    MergeCommand("sd15", FAMILIES["SD1.5"], "Stable Diffusion 1.5", "stable-diffusion-v1-5"),
    MergeCommand(
        "sdxl",
        FAMILIES["SDXL"],
        "SDXL (also Pony, Illustrious and NoobAI)",
        "stable-diffusion-xl-base-1.0",
    ),
)


@settings
class Saving:
    """How the result is saved."""

    style: Annotated[Style, Field(description="Spelling of the result's key names.")] = "kohya"
    large_layers: Annotated[
        Literal["low_rank", "difference"],
        Field(
            description="Layers whose two factors take more room than the weight itself: as "
            "factors, or as the full difference, which is smaller and which some programs do not "
            "read."
        ),
    ] = "low_rank"

    def __post_init__(self) -> None:
        if self.large_layers == "difference" and self.style != "kohya":
            raise ConfigError(
                f"--large-layers difference cannot be saved with --style {self.style}; save in the "
                "style kohya, or leave it out"
            )


def merge_command(command: MergeCommand) -> Callable[..., None]:
    """Return the function of a family's command, of which typer makes the options."""
    return options.command(
        f"iteris merge {command.name}",
        "diffusion",
        start=of_preset,
        calibration=Calibration(),
        solving=MergeConfig(samples_per_chunk=4, output_dtype=torch.float16, unit_gain=UNIT_GAIN),
        placement=Spread(),
        saving=Saving(),
    )(functools.partial(_merge, command.family))


def of_preset(given: Mapping[str, Any], start: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings as the preset has them."""
    changes = PRESETS[given["preset"]]
    return {
        **start,
        "calibration": replace(start["calibration"], **changes.calibration),
        "solving": replace(start["solving"], **changes.config),
    }


def _merge(
    family: Family,
    *,
    base: Annotated[
        str,
        typer.Option(help="The model: a diffusers folder, a .safetensors, or a name on the hub."),
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
        typer.Option(
            help="For a checkpoint: a folder with its settings; from the hub if left out."
        ),
    ] = None,
    strength: Annotated[
        str | None, typer.Option(help="Strength of each LoRA, such as 1,0.8; 1 if left out.")
    ] = None,
    strength_text: Annotated[
        str | None,
        typer.Option(help="Strength of the text encoder parts; as --strength if left out."),
    ] = None,
    weights: options.WeightsSetting = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="What scenes call a LoRA; one per --lora, in order.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="subject or style, for scenes; one per --lora, in order."),
    ] = None,
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights of a LoRA's blocks, such as OUTALL, IN01:0.5,MID:0 or 17 numbers; one "
            'per --lora, in order, "" for none.'
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers of a LoRA that are left out, such as *attn2*, between blanks; one per "
            '--lora, in order, "" for none.'
        ),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="How thorough; options below replace what it sets.")
    ] = DEFAULT_PRESET,
    correct_strength: Annotated[
        bool,
        typer.Option(
            "--correct-strength", help="Scale the result by what the check of --held-out measures."
        ),
    ] = False,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
    calibration: Calibration,
    solving: MergeConfig,
    placement: Spread,
    saving: Saving,
) -> None:
    Places(
        files={"--output": output, "--json": report},
        inputs={"--base": [base], "--lora": lora, "--prompts-file": prompts_file or ()},
    ).check()
    check_output(output, overwrite)
    told = options.ReportFile(report, overwrite)
    told.check()
    check_used(solving)
    how = MergeSettings(solving, correct_strength, made_on={"base": base})
    how = replace(how, **PRESETS[preset].merge)
    how.check(calibration)
    given = OncePerLora(
        lora,
        prompts,
        prompts_file,
        strength,
        strength_text,
        weights,
        trigger,
        kind,
        blocks,
        without,
    )
    uses = given.uses()
    with _loaded(base, config, placement, family) as model, progress_bars() as progress:
        loras, repeated = load_each_once(uses, Reader(model, uses, lora))
        check_style((one.adapter for one in loras), saving.style)
        job = Job.of(model, loras, calibration, replace(how, notes=tuple(repeated)))
        # with a device map, what is free while the model waits elsewhere is not known
        free = free_bytes(device_of(model.unet_model)) if placement.device_map == "none" else None
        job = job.within_free(free, model.unet_model.dtype.itemsize)
        result = merge_and_check(job, progress)
    if not Processes.current().is_first:
        return
    recipe = json.dumps(result.report.settings)

    def save(path: Path, overwrite: bool) -> None:
        metadata = metadata_of_merge(path.stem, job.loras, recipe)
        whole = saving.large_layers == "difference"
        save_lora(
            model, result.adapter, path, saving.style, metadata, whole=whole, overwrite=overwrite
        )

    saved = under_free_name(output, save, overwrite=overwrite)
    warning = kohya_warning(result.adapter) if saving.style == "kohya" else None
    if warning:
        typer.echo(f"note: {warning}")
    options.tell(result.adapter.name, result.report, saved, output, told)


@dataclass(frozen=True)
class OncePerLora:
    """Options that are given once for every ``--lora``, in its order, or not at all.

    Args:
        loras: The files.
        prompts: Prompts, those of one LoRA split at a backslash and an n.
        prompts_files: The same from files.
        strength: Strengths, such as ``1,0.8``.
        strength_text: Strengths of the text encoder parts.
        weights: Weights of the LoRAs' tasks.
        triggers: What scenes call the LoRAs.
        kinds: "subject" or "style".
        blocks: Weights of the LoRAs' blocks.
        without: Patterns of the LoRAs' layers that are left out, between blanks.
    """

    loras: Sequence[Path]
    prompts: Sequence[str] | None
    prompts_files: Sequence[Path] | None
    strength: str | None
    strength_text: str | None
    weights: str | None
    triggers: Sequence[str] | None
    kinds: Sequence[str] | None
    blocks: Sequence[str] | None
    without: Sequence[str] | None

    def uses(self) -> list[LoraUse]:
        """Return the LoRAs as they are to be used, with the trigger words of their files.

        Raises:
            AdapterError: A file cannot be read.
            CalibrationError: A LoRA without prompts, whose file names no trigger words.
            ConfigError: An option is there more or less often than LoRAs.
        """
        strengths = self._numbers("--strength", self.strength, 1.0)
        strengths_text = strengths
        if self.strength_text is not None:
            strengths_text = self._numbers("--strength-text", self.strength_text, 1.0)
        rows = zip(
            self.loras,
            self._prompts(),
            strengths,
            strengths_text,
            self._numbers("--weights", self.weights, 1.0),
            self._texts("--trigger", self.triggers, ""),
            self._texts("--kind", self.kinds, "subject"),
            self._texts("--blocks", self.blocks, ""),
            self._texts("--without", self.without, ""),
            strict=True,
        )
        uses = []
        for path, prompts, strength, of_text, weight, trigger, kind, blocks, without in rows:
            triggers = lora_header(path).triggers  # first, since it says what is wrong with a file
            use = LoraUse(
                name=path.stem,
                file=path.name,
                sha256=sha256(path),
                strength_model=strength,
                strength_clip=of_text,
                prompts=prompts,
                weight=weight,
                trigger=trigger,
                kind=cast(Kind, kind),
                blocks=blocks,
                without=tuple(without.split()),
            )
            uses.append(with_prompts(use, triggers))
        return uses

    def _prompts(self) -> Sequence[tuple[str, ...]]:
        if self.prompts and self.prompts_files:
            raise ConfigError(
                "there are both --prompts and --prompts-file; give one of them, once for every "
                "--lora"
            )
        if self.prompts_files:
            texts = [_lines(_text_of(file)) for file in self.prompts_files]
            return self._checked("--prompts-file", texts)
        texts = [_lines(text.replace("\\n", "\n")) for text in self.prompts or ()]
        return self._checked("--prompts", texts or [()] * len(self.loras))

    def _numbers(self, option: str, text: str | None, otherwise: float) -> Sequence[float]:
        numbers = options.numbers(option, text)
        return self._checked(option, numbers or [otherwise] * len(self.loras))

    def _texts(self, option: str, texts: Sequence[str] | None, otherwise: str) -> Sequence[str]:
        return self._checked(option, texts or [otherwise] * len(self.loras))

    def _checked(self, option: str, values: Sequence[T]) -> Sequence[T]:
        if len(values) != len(self.loras):
            raise ConfigError(
                f"there are {len(self.loras)} LoRAs and {len(values)} values of {option}; give "
                "each LoRA its own"
            )
        return values


class Reader:
    """Reads the weights of LoRAs from the files of which their uses were made."""

    def __init__(
        self, model: DiffusersModel, uses: Sequence[LoraUse], paths: Sequence[Path]
    ) -> None:
        self._model = model
        self._paths = {use.sha256: path for use, path in zip(uses, paths, strict=True)}

    def __call__(self, use: LoraUse) -> Adapter:
        path = self._paths[use.sha256]
        return read_lora(
            self._model,
            path,
            use.strength_model,
            use.strength_clip,
            blocks=use.blocks,
            without=use.without,
        )


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse an output that is not a LoRA file, or that is there already and may not be replaced.

    Raises:
        ConfigError, NameTakenError: See above.
    """
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output is {output}; its name must end in .safetensors")
    check_free(output, overwrite=overwrite)


@contextlib.contextmanager
def _loaded(
    base: str, config: str | None, placement: Spread, family: Family
) -> Iterator[DiffusersModel]:
    """Load the model, and keep what diffusers advises about its own settings off the terminal."""
    quiet_libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield load_diffusers(
            base,
            config,
            placement.dtype,
            placement.device,
            family=family,
            device_map=placement.device_map,
        )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: cannot be read as text ({error}); give a text file with one prompt a line"
        ) from error
