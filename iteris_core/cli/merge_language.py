"""The commands `iteris merge t5` and `iteris merge blip`: PEFT adapters merged into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ..config import MergeConfig
from ..errors import ConfigError
from ..files import peft
from ..files.writing import under_free_name
from ..language import blip, t5
from ..language.job import DEFAULT, PRESERVE_WEIGHT, AdapterTask, LanguageFamily, merge_peft
from ..language.samples import Example, ReadingOptions, read_images, read_texts, read_token_ids
from ..language.t5 import TextOptions
from ..processes import Processes
from ..rivals.registry import check_used
from ..settings import shown
from . import options
from .options import Placement
from .paths import check_places
from .terminal import progress_bars, quiet_libraries

AdapterSetting = Annotated[list[Path], typer.Option(help="A PEFT adapter's folder; one or more.")]
OutputSetting = Annotated[Path, typer.Option(help="Folder for the merged adapter.")]
WeightsSetting = Annotated[
    str | None, typer.Option(help="How much each adapter's task counts, such as 1,0.5.")
]
_PROTECT_BASE_HELP = f"How much --preserve counts. Default: {PRESERVE_WEIGHT}."
ProtectBaseSetting = Annotated[float | None, typer.Option(help=_PROTECT_BASE_HELP)]

T5_HELP = """Merge PEFT adapters of a T5, FLAN-T5 or BART into one PEFT adapter.

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

BLIP_HELP = """Merge PEFT adapters of a BLIP captioning model into one PEFT adapter.

Example:

    iteris merge blip --base Salesforce/blip-image-captioning-base
        --adapter positive/ --images positive.jsonl
        --adapter negative/ --images pictures/ --output merged/

Samples are a folder of pictures, or JSON lines {"image": ..., "caption": ...}. Without captions \
the decoder reads what each adapter's own model writes about a picture. --prompt is the text with \
which an adapter's captions began in its training, such as "a photo in a happy and pleasant mood \
of"; captions in a file do not repeat it. --preserve takes ordinary pictures in the same format, \
about which the merged model should write as the base model does.

Exit code 0: merged; 2: something is wrong with the files or settings, and one line says what.
"""


@options.command(
    "iteris merge t5",
    "language",
    merges=True,
    reading=TextOptions(),
    config=DEFAULT,
    placement=Placement(),
)
def merge_t5_command(
    *,
    base: options.BaseSetting,
    adapter: AdapterSetting,
    samples: Annotated[
        list[Path],
        typer.Option(
            help="An adapter's samples, one per --adapter, in order; or once a .safetensors with "
            "`input_ids` (adapters, samples, length), without padding."
        ),
    ],
    output: OutputSetting,
    weights: WeightsSetting = None,
    preserve: Annotated[
        Path | None, typer.Option(help="Inputs where the base model is kept as it is.")
    ] = None,
    protect_base: ProtectBaseSetting = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
    reading: TextOptions,
    config: MergeConfig,
    placement: Placement,
) -> None:
    command = _Command(t5.FAMILY, base, adapter, output, report, overwrite)
    command.check({"--samples": samples, "--preserve": [preserve]}, config)
    tasks = command.tasks(_texts(samples), weights)
    tasks += _preserve(preserve, protect_base, lambda file: list(chain(*_texts([file]))))
    command.run(tasks, config, reading, placement)


@options.command(
    "iteris merge blip",
    "language",
    merges=True,
    reading=blip.CAPTIONS,
    config=DEFAULT,
    placement=Placement(),
)
def merge_blip_command(
    *,
    base: options.BaseSetting,
    adapter: AdapterSetting,
    images: Annotated[
        list[Path],
        typer.Option(help="An adapter's pictures, a folder or JSON lines; one per --adapter."),
    ],
    output: OutputSetting,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text that captions begin with; one per --adapter, in order, or one for all."
        ),
    ] = None,
    weights: WeightsSetting = None,
    preserve: Annotated[
        Path | None, typer.Option(help="Pictures where the base model is kept as it is.")
    ] = None,
    protect_base: ProtectBaseSetting = None,
    overwrite: options.OverwriteSetting = False,
    report: options.ReportSetting = None,
    reading: ReadingOptions,
    config: MergeConfig,
    placement: Placement,
) -> None:
    command = _Command(blip.FAMILY, base, adapter, output, report, overwrite)
    command.check({"--images": images, "--preserve": [preserve]}, config)
    tasks = command.tasks(_captions(images, prompt), weights)
    tasks += _preserve(preserve, protect_base, read_images)
    command.run(tasks, config, reading, placement)


@dataclass(frozen=True)
class _Command:
    """What is merged, and where it goes; the options have these names."""

    family: LanguageFamily
    base: str
    adapters: Sequence[Path]
    output: Path
    report: Path | None
    overwrite: bool

    def check(self, inputs: Mapping[str, Sequence[Path | None]], config: MergeConfig) -> None:
        """Refuse settings and places that would fail only after hours of work."""
        check_places(
            {"--output": self.output, "--json": self.report},
            {"--base": [self.base], "--adapter": self.adapters, **inputs},
        )
        check_used(config)
        peft.check_free(self.output, overwrite=self.overwrite)
        options.check_report(self.report, overwrite=self.overwrite)

    def tasks(
        self, examples: Sequence[Sequence[Example]], weights: str | None
    ) -> list[AdapterTask]:
        """Return the adapters with their examples."""
        count = len(self.adapters)
        if len(examples) != count:
            raise ConfigError(
                f"there are {count} adapters and samples for {len(examples)} tasks; give each its "
                "own"
            )
        values = [1.0] * count if weights is None else _numbers(weights)
        if len(values) != count:
            raise ConfigError(
                f"there are {count} adapters and {len(values)} --weights; give each its own"
            )
        return [AdapterTask(*task) for task in zip(self.adapters, examples, values, strict=True)]

    def run(
        self,
        tasks: Sequence[AdapterTask],
        config: MergeConfig,
        reading: ReadingOptions,
        placement: Placement,
    ) -> None:
        """Merge, save and report."""
        quiet_libraries()
        placement.tell()
        model = self.family.load(self.base, placement.dtype, placement.device)
        with progress_bars() as progress:
            result = merge_peft(self.family, model, tasks, config, reading, progress=progress)
        if not Processes.current().is_first:
            return

        def save(path: Path, overwrite: bool) -> None:
            result.save(path, overwrite=overwrite)

        saved = under_free_name(self.output, save, overwrite=self.overwrite)
        told = options.tell(result.adapter.name, result.report, saved, self.output)
        options.write_report(told, self.report, overwrite=self.overwrite)


def _preserve(
    path: Path | None, weight: float | None, read: Callable[[Path], Sequence[Example]]
) -> list[AdapterTask]:
    if path is None and weight is not None:
        raise ConfigError(
            "--protect-base needs --preserve: the inputs where the base model is to be kept as it "
            "is"
        )
    if path is None or weight == 0:
        return []
    return [AdapterTask(None, read(path), PRESERVE_WEIGHT if weight is None else weight)]


def _numbers(weights: str) -> list[float]:
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights is {shown(weights)}; write one number per adapter, such as 1,0.5"
        ) from None


def _captions(images: Sequence[Path], prompts: Sequence[str] | None) -> list[list[Example]]:
    texts = list(prompts or [""])
    if len(texts) not in (1, len(images)):
        raise ConfigError(
            f"there are {len(images)} --images and {len(texts)} --prompt; give one per adapter, or "
            "one for all"
        )
    texts = texts * len(images) if len(texts) == 1 else texts
    return [
        [replace(example, prompt=text) for example in read_images(path)]
        for path, text in zip(images, texts, strict=True)
    ]


def _texts(files: Sequence[Path]) -> list[list[Example]]:
    if [file.suffix for file in files] == [".safetensors"]:
        return read_token_ids(files[0])
    return [read_texts(file) for file in files]
