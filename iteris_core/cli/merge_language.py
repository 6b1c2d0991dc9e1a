"""The commands `iteris merge t5` and `iteris merge blip`: PEFT adapters merged into one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..config import MergeConfig
from ..errors import ConfigError
from ..files import peft
from ..language import blip, t5
from ..language.job import DEFAULT, PRESERVE_WEIGHT, AdapterTask, LanguageFamily, merge_peft
from ..language.samples import Example, ReadingOptions, read_token_ids
from ..rivals.methods import check_used
from ..settings import shown
from . import options
from .options import Placement
from .paths import check_places
from .terminal import progress_bars, quiet_libraries

_T5_HELP = """Merge PEFT adapters of a T5, FLAN-T5 or BART into one PEFT adapter.

Every adapter is run on its own samples. The merged one is solved for, layer by layer, so that it \
does the same.

Example:

    iteris merge t5 --base google/flan-t5-base --output merged/
        --adapter rte/ --samples rte.jsonl
        --adapter mrpc/ --samples mrpc.jsonl

Samples are a text file with one input a line, or JSON lines {"input": ..., "target": ...}. \
Without targets the decoder reads what each adapter's own model answers. --preserve takes ordinary \
inputs in the same format; on these the merged model should answer as the base model does.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""

_BLIP_HELP = """Merge PEFT adapters of a BLIP captioning model into one PEFT adapter.

Example:

    iteris merge blip --base Salesforce/blip-image-captioning-base
        --adapter positive/ --samples positive.jsonl
        --adapter negative/ --samples pictures/ --output merged/

Samples are a folder of pictures, or JSON lines {"image": ..., "caption": ...}. Without captions \
the decoder reads what each adapter's own model writes about a picture. --prompt is the text with \
which an adapter's captions began in its training, such as "a photo in a happy and pleasant mood \
of"; captions in a file do not repeat it. --preserve takes ordinary pictures in the same format, \
about which the merged model should write as the base model does.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""


# Name of a command -> its family of models, and what `--help` says of it.
COMMANDS = {"t5": (t5.FAMILY, _T5_HELP), "blip": (blip.FAMILY, _BLIP_HELP)}


def merge_command(
    name: str, only: Collection[str] | None = options.OF_MERGES
) -> Callable[..., None]:
    """Return a command's function; typer makes options of its parameters. For `only` see
    `options.command`.
    """
    family = COMMANDS[name][0]
    return options.command(
        f"iteris merge {name}",
        "language",
        only=only,
        reading=family.options,
        config=DEFAULT,
        placement=Placement(),
    )(partial(_merge, family))


def _merge(
    family: LanguageFamily,
    *,
    base: options.BaseSetting,
    adapter: Annotated[list[Path], typer.Option(help="A PEFT adapter's folder; one or more.")],
    samples: Annotated[
        list[Path],
        typer.Option(
            help="An adapter's samples, one per --adapter, in order; of T5 also once a "
            ".safetensors with `input_ids` (adapters, samples, length), without padding."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the merged adapter.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text that BLIP's captions begin with; one per --adapter, in order, or one for "
            "all."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="How much each adapter's task counts, such as 1,0.5.")
    ] = None,
    preserve: Annotated[
        Path | None, typer.Option(help="Samples where the base model is kept as it is.")
    ] = None,
    protect_base: Annotated[
        float | None, typer.Option(help=f"How much --preserve counts. Default: {PRESERVE_WEIGHT}.")
    ] = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
    reading: ReadingOptions,
    config: MergeConfig,
    placement: Placement,
) -> None:
    check_places(
        {"--output": output, "--json": report},
        {"--base": [base], "--adapter": adapter, "--samples": samples, "--preserve": [preserve]},
        overwrite=overwrite,
    )
    check_used(config)
    peft.check_free(output, overwrite=overwrite)
    examples = _examples(family, samples, prompt)
    values = [1.0] * len(adapter) if weights is None else _numbers(weights)
    for what, given in (("samples for", examples), ("--weights for", values)):
        if len(given) != len(adapter):
            raise ConfigError(
                f"there are {len(adapter)} adapters and {what} {len(given)}; give each its own"
            )
    tasks = [AdapterTask(*task) for task in zip(adapter, examples, values, strict=True)]
    tasks += _preserve(family, preserve, protect_base)
    quiet_libraries()
    placement.tell()
    model = family.load(base, placement.dtype, placement.device)
    with progress_bars() as progress:
        result = merge_peft(family, model, tasks, config, reading, progress=progress)

    def save(path: Path, overwrite: bool) -> None:
        result.save(path, overwrite=overwrite)

    options.save_and_tell(result, save, output, report, overwrite=overwrite)


def _preserve(family: LanguageFamily, path: Path | None, weight: float | None) -> list[AdapterTask]:
    if path is None and weight is not None:
        raise ConfigError(
            "--protect-base needs --preserve: the inputs where the base model is to be kept as it "
            "is"
        )
    if path is None or weight == 0:
        return []
    return [AdapterTask(None, family.read(path), PRESERVE_WEIGHT if weight is None else weight)]


def _numbers(weights: str) -> list[float]:
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights is {shown(weights)}; write one number per adapter, such as 1,0.5"
        ) from None


def _examples(
    family: LanguageFamily, files: Sequence[Path], prompts: Sequence[str] | None
) -> list[list[Example]]:
    if prompts and family is not blip.FAMILY:
        raise ConfigError("--prompt is for the captions of BLIP; write it into the samples")
    if family is t5.FAMILY and [file.suffix for file in files] == [".safetensors"]:
        return read_token_ids(files[0])
    texts = list(prompts or [""])
    if len(texts) not in (1, len(files)):
        raise ConfigError(
            f"there are {len(files)} --samples and {len(texts)} --prompt; give one per adapter, or "
            "one for all"
        )
    texts = texts * len(files) if len(texts) == 1 else texts
    return [
        [replace(example, prompt=text) for example in family.read(path)]
        for path, text in zip(files, texts, strict=True)
    ]
