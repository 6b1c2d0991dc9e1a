"""The commands `iteris merge sd15` and `iteris merge sdxl`: LoRA files of Stable Diffusion merged
into one, without ComfyUI.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..adapters import Adapter
from ..config import UNIT_GAIN, MergeConfig
from ..devices import device_of
from ..diffusion.calibration import Calibration
from ..diffusion.job import Job, MergeSettings
from ..diffusion.loaded_loras import load_each_once
from ..diffusion.loading import load_diffusers, read_lora, save_lora
from ..diffusion.lora_rows import Row, placed, read_rows
from ..diffusion.lora_use import LoraUse
from ..diffusion.merging import merge_loras
from ..diffusion.presets import DEFAULT_PRESET, PRESETS, Preset
from ..diffusion.recipe import metadata_of_merge
from ..diffusion.row_uses import use_of
from ..errors import ConfigError
from ..files.diffusers import misread_by_diffusers
from ..files.families import FAMILIES, Family
from ..files.headers import lora_header
from ..files.tensors import sha256
from ..files.writing import check_free
from ..memory import Room, free_bytes
from ..processes import Processes
from . import options
from .options import Placement
from .paths import check_places
from .terminal import progress_bars, quiet_libraries

_HELP = """Merge LoRA files of {models} into one that comes close to what each of them does.

A LoRA is a row as in the node Merge LoRAs: file, strength, text encoder strength, words, and \
prompts with its trigger words, each after a |. Words: subject, style, priority=2, called="a sks \
dog", blocks=OUT:0, without=*attn2*. Without prompts, some are made of the trigger words in the \
file's metadata. The result has the strengths in it: load it at 1.

    iteris merge {name} --base model/ --output merged.safetensors
      --lora "<lora:dog.safetensors> | a photo of sks dog | sks dog outdoors"
      --lora "<lora:ink.safetensors:0.8> style | a castle, xyz ink drawing"

Exit code 0: merged; 2: one line says what is wrong with the files or settings.
"""
_ROOM = Room(samples_per_chunk=4)  # at most; less where the device has less
_ROW = '"<lora:dog.safetensors:0.8> subject | a photo of sks dog"'


# Name of a command -> name of the family of its base models, and its models in the help.
COMMANDS = {
    "sd15": ("SD1.5", "Stable Diffusion 1.5"),
    "sdxl": ("SDXL", "SDXL, Pony, Illustrious and NoobAI"),
}


def help_of(name: str) -> str:
    """Return what ``--help`` says of a command."""
    return _HELP.format(name=name, models=COMMANDS[name][1])


def merge_command(
    name: str, only: Collection[str] | None = options.OF_MERGES
) -> Callable[..., None]:
    """Return a command's function; typer makes options of its parameters. For `only` see
    `options.command`.
    """
    return options.command(
        f"iteris merge {name}",
        "diffusion",
        start=of_preset,
        only=only,
        calibration=Calibration(),
        solving=MergeConfig(output_dtype=torch.float16, unit_gain=UNIT_GAIN),
        placement=Placement(),
    )(functools.partial(_merge, FAMILIES[COMMANDS[name][0]]))


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
        typer.Option(help="A diffusers folder, a .safetensors or a name on the Hugging Face hub."),
    ],
    output: Annotated[Path, typer.Option(help="The merged LoRA, .safetensors.")],
    lora: Annotated[
        list[str],
        typer.Option(metavar="<row>", help="A LoRA: a row, a file, or lines of rows; repeat it."),
    ],
    preset: Annotated[  # noqa: ARG001, which `of_preset` reads
        Preset,
        typer.Option(
            metavar="<name>",
            show_default=False,
            help=f"How thorough: {', '.join(PRESETS)}. Other options override it. "
            f"Default: {DEFAULT_PRESET}.",
        ),
    ] = DEFAULT_PRESET,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
    calibration: Calibration,
    solving: MergeConfig,
    placement: Placement,
) -> None:
    rows = rows_of(lora)
    paths = [file_of(row) for row in rows]
    check_places(
        {"--output": output, "--json": report},
        {"--base": [base], "--lora": [*lora, *paths]},
        overwrite=overwrite,
    )
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output is {output}; its name must end in .safetensors")
    check_free(output, overwrite=overwrite)
    how = MergeSettings(solving, made_on={"base": base})
    how.check(calibration)
    uses = uses_of(rows)
    how.check_prompts(uses)
    placement.tell()
    quiet_libraries()
    with warnings.catch_warnings(), progress_bars() as progress:
        warnings.simplefilter("ignore")  # what diffusers advises about its own settings
        model = load_diffusers(base, family, dtype=placement.dtype, device=placement.device)
        path_of = {use.sha256: path for use, path in zip(uses, paths, strict=True)}

        def read(use: LoraUse) -> Adapter:
            path = path_of[use.sha256]
            strengths = use.strength_model, use.strength_clip
            return read_lora(model, path, *strengths, blocks=use.blocks, without=use.without)

        loaded, repeated = load_each_once(uses, read)
        job = Job.of(model, loaded, calibration, replace(how, notes=tuple(repeated)), _ROOM)
        device = device_of(model.unet_model)
        job = job.within_free(free_bytes(device), model.unet_model.dtype.itemsize, device)
        result = merge_loras(job, progress)
    recipe = json.dumps(result.report.settings)

    def save(path: Path, overwrite: bool) -> None:
        metadata = metadata_of_merge(path.stem, job.loras, recipe)
        save_lora(model, result.adapter, path, metadata, overwrite=overwrite)

    options.save_and_tell(result, save, output, report, overwrite=overwrite)
    if misread_by_diffusers(result.adapter) and Processes.current().is_first:
        typer.echo(
            "note: the text encoder part has no out_proj, so that diffusers misreads it (ComfyUI "
            "and A1111 do not)"
        )


def rows_of(texts: Sequence[str]) -> list[Row]:
    """Return the rows of LoRAs that the user typed.

    Raises:
        ConfigError: Names the option and its line.
    """
    rows: list[Row] = []
    for number, text in enumerate(texts, 1):
        where = f"--lora {number}"
        if not text.strip():
            raise ConfigError(f"{where} is empty; write a LoRA such as {_ROW}")
        is_rows = text.lstrip().startswith(("<", "#"))
        rows += read_rows(text, where) if is_rows else [Row(text, where=where)]
    return rows


def file_of(row: Row) -> Path:
    """Return the file that a row names, with or without its ending."""
    path = Path(row.name).expanduser()
    whole = Path(f"{path}.safetensors")
    return whole if whole.exists() and not path.exists() else path


def uses_of(rows: Sequence[Row]) -> list[LoraUse]:
    """Return the LoRAs of rows as they are to be used, with the trigger words of their files.

    Raises:
        IterisError: Names the row. A file that cannot be read, or see `row_uses.use_of`.
    """
    uses = []
    for row in rows:
        path = file_of(row)
        with placed(row.where):
            triggers = lora_header(path).triggers  # first, since it says what is wrong with a file
            use = use_of(row, path.stem, path.name, triggers)
            uses.append(replace(use, sha256=sha256(path)))
    return uses
