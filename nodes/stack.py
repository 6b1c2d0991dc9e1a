"""The nodes for several LoRAs at once, from a LORA_STACK, a text, or a model that carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..iteris_core import AdapterError, CalibrationError, IterisError
from ..iteris_core.diffusion.lora_rows import Row, read_rows, rows_in
from ..iteris_core.diffusion.lora_use import check_count
from ..iteris_core.diffusion.row_uses import use_as_written
from ..iteris_core.settings import TRIGGER
from . import host
from .lora import show
from .loras.about import families_upstream
from .loras.names import adapter_name, files_named, fingerprint, fingerprints
from .loras.prompts import (
    check_family,
    each,
    faults,
    file_of_row,
    use_of_file,
    use_of_row,
    use_without_prompts,
)
from .loras.stack_formats import prompts_by_name, read_stack
from .sockets import LORA_STACK, LORAS, ChosenLora
from .validation import checked
from .workflow import strings_in

if TYPE_CHECKING:
    from ..iteris_core.diffusion.lora_use import LoraUse
    from ..iteris_core.files.families import Family
    from .loras.harvest import CarriedLora

_EXAMPLE = "cat: a photo of a sks cat\na drawing of {trigger}"
_PROMPTS = (
    "Empty: prompts are made from each file's trigger words. A line with the word trigger in curly "
    "braces is used for every LoRA. A line that begins with a LoRA's name is for this LoRA only: "
    "'cat: a photo of a sks cat'."
)
ROWS_EXAMPLE = (
    "<lora:sks_dog:0.8> subject | a photo of sks dog | sks dog on a beach\n"
    "<lora:ink:0.7> style priority=2"
)
ROWS = (
    "The LoRAs, one a line: <lora:name:strength> or <lora:name:strength:text encoder strength>. "
    "After it you may write subject or style, priority=2, called= (its name in captions with "
    "others), blocks= (block weights) and without= (layers to leave out). "
    "Then come its prompts, each after a vertical bar; without any they are made of the file's "
    "trigger words. A line that begins with # is switched off."
)
# File -> its fingerprint when a node first used it.
_FIRST_USED: dict[str, str] = {}


class LoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISStack",
            display_name="LoRA stack to merge (IterIS)",
            category="loaders/IterIS",
            description="Several LoRAs of a merge, from a LORA_STACK or from a text with one LoRA "
            "a line.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder=ROWS_EXAMPLE,
                    tooltip=ROWS,
                ),
                io.String.Input(
                    "prompts", multiline=True, default="", placeholder=_EXAMPLE, tooltip=_PROMPTS
                ),
                LORA_STACK.Input("lora_stack", optional=True, tooltip="From any LoRA stacker."),
                LORAS.Input("previous", optional=True, tooltip="LoRAs before these in the chain."),
            ],
            outputs=[LORAS.Output(display_name="LoRAs")],
        )

    @classmethod
    def fingerprint_inputs(cls, text: object = "", **inputs: object) -> str:
        """Return a fingerprint of the files that count; see `watched`."""
        return fingerprints(watched(text, "lora_stack" in inputs))

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        """Refuse rows that name no file before the model is loaded."""
        return refused(text, use_without_prompts)

    @classmethod
    @checked
    def execute(
        cls, text: str, prompts: str, lora_stack: Any = None, previous: tuple[ChosenLora, ...] = ()
    ) -> io.NodeOutput:
        stacked = [*read_stack(lora_stack), *read_rows(text)]
        check_count(len(stacked))  # before files are read
        if not stacked:
            raise IterisError(
                "there is no LoRA in the stack: connect a LORA_STACK with some switched on, or "
                "write <lora:name:1.0> into text"
            )
        uses = uses_of_stack(stacked, prompts)
        remember(uses)
        return show([ChosenLora(use) for use in uses], previous)


def remember(uses: Iterable[LoraUse]) -> None:
    """Remember the fingerprints that files had when they were first used; see `watched`."""
    for use in uses:
        if use.file is not None:
            _FIRST_USED.setdefault(use.file, fingerprint(host.find_lora(use.file)))


def watched(text: object, has_stack: bool) -> list[str]:
    """Return the files whose change makes a node run again.

    They are those that its rows name. What comes through a link, such as a LORA_STACK, is not known
    before the run: of its files those count that have changed since any node first used them.

    Args:
        text: The rows; other than a text: they come through a link.
    """
    names = files_in(text)
    if isinstance(text, str) and not has_stack:
        return names
    first = _FIRST_USED.items()
    return names + [name for name, seen in first if fingerprint(host.find_lora(name)) != seen]


def files_in(text: object) -> list[str]:
    """Return the files that a text of rows names; none if it comes through a link.

    Raises:
        IterisError: See `read_rows` and `file_of_row`.
    """
    if not isinstance(text, str):
        return []
    names = host.lora_names()
    return [file_of_row(row, names) for row in read_rows(text)]


def refused(
    text: object,
    use: Callable[[Row], object],
    node_id: str | None = None,
) -> bool | str:
    """Return why rows cannot run, by their places among those that the page shows, for a node's
    `validate_inputs`; True if they can, or if they come through a link and are not known yet.

    Args:
        text: The rows.
        use: Reads a row as its node does, and raises what is wrong with it.
        node_id: The node, whose model they have to fit; None: it has none.
    """
    if not isinstance(text, str):
        return True

    @cache
    def families() -> Sequence[Family]:
        return () if node_id is None else families_upstream(host.prompt_sent(), node_id)

    def use_all(line: str) -> None:
        for row in rows_in(line):
            use(row)
            check_family(row, families(), is_sure=True)

    def doubt_all(line: str) -> None:
        for row in rows_in(line):
            check_family(row, families())

    wrong: dict[str, list[int]] = {}
    lines = list(filter(str.strip, text.split("\n")))
    for place, what in faults(lines, use_all, doubt_all).items():
        wrong.setdefault(what, []).append(place + 1)
    return "\n".join(f"{_rows(numbers)}: {what}" for what, numbers in wrong.items()) or True


def _rows(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"Rows {', '.join(first)} and {last}" if first else f"Row {last}"


def uses_of_stack(stacked: Sequence[Row], prompts: str) -> list[LoraUse]:
    """Return the LoRAs of a stack, each with its prompts.

    Raises:
        IterisError: What is wrong with each of them; see `prompts_by_name` and `use_of_row`.
    """
    names = host.lora_names()
    adapters = each(stacked, lambda row: adapter_name(file_of_row(row, names)))
    given = prompts_by_name(prompts, adapters)
    named = list(zip(stacked, adapters, strict=True))
    return each(named, lambda one: use_of_row(one[0], given[one[1]]))


class LorasOnModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISModelLoras",
            display_name="LoRAs on this model (IterIS)",
            category="loaders/IterIS",
            description="Takes off MODEL and CLIP the LoRAs that they carry, so that these can be "
            "merged. Connect all three outputs to Merge LoRAs.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL after LoRA loaders, as many as you like."),
                io.Clip.Input("clip", tooltip="The CLIP after the same LoRA loaders."),
                io.String.Input(
                    "prompts", multiline=True, default="", placeholder=_EXAMPLE, tooltip=_PROMPTS
                ),
                LORAS.Input("previous", optional=True, tooltip="LoRAs before these in the chain."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The model without the LoRAs."),
                io.Clip.Output(display_name="CLIP", tooltip="The text encoder without the LoRAs."),
                LORAS.Output(display_name="LoRAs"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @checked
    def execute(
        cls, model: Any, clip: Any, prompts: str, previous: tuple[ChosenLora, ...] = ()
    ) -> io.NodeOutput:
        from .loras.harvest import take_off

        base = host.ComfyModel(model, clip)
        loras, rest = take_off(
            host.patches_of(model, clip), base.is_text_module, base.keys.bases_of
        )
        if not loras:
            raise IterisError(
                "MODEL and CLIP carry no LoRA that could be taken off them"
                + (
                    f"; {len(rest)} weights are changed by something else, such as a merge of "
                    "checkpoints"
                    if rest
                    else ""
                )
                + ". Connect them after a LoRA loader, or choose the files with 'LoRA to merge'"
            )
        named = files_named(strings_in(cls.hidden.prompt), host.lora_names())
        files = files_of(loras, named, base.keys.own_base)
        names = [
            adapter_name(file) if file else f"LoRA {i} on this model"
            for i, (file, _) in enumerate(files, 1)
        ]
        given = prompts_by_name(prompts, names)
        chosen = [
            carried_lora(lora, *file, name, given[name])
            for lora, file, name in zip(loras, files, names, strict=True)
        ]
        note = (
            f"{len(rest)} weights are changed by something that is not a LoRA; that stays on the "
            "model"
            if rest
            else ""
        )
        tasks = show(chosen, previous, note)
        return io.NodeOutput(*host.with_patches(model, clip, rest), *tasks.args, ui=tasks.ui)


def carried_lora(
    lora: CarriedLora, file: str | None, is_whole: bool, name: str, prompts: tuple[str, ...]
) -> ChosenLora:
    """Return a LoRA that was on a model as a LoRA to merge, from its file if that is identified.

    Args:
        is_whole: Whether it has all that there is of it, see `files_of`. A part that is nowhere is
            told at the other's strength, as loaders have it.
    """
    nowhere = next(iter(lora.strengths.values())) if is_whole else 0.0
    of_model, of_text = (lora.strengths.get(is_text, nowhere) for is_text in (False, True))
    row = Row(name, of_model, of_text, prompts=prompts)
    if file:
        return ChosenLora(use_of_file(file, row))
    if any(TRIGGER in prompt for prompt in prompts):
        raise CalibrationError(
            f"{name} has {TRIGGER} in a prompt, and no file of this workflow is known to be it, "
            f"so its trigger words are unknown. Write them as '{name}: a photo of <trigger word>' "
            "into prompts"
        )
    return ChosenLora(use_as_written(row, name, None), lora.tensors)


def files_of(
    loras: Sequence[CarriedLora], candidates: Sequence[str], own_base: Callable[[str], str | None]
) -> list[tuple[str | None, bool]]:
    """Return for each LoRA on a model the file that holds its matrices, bit by bit, and whether it
    holds no other matrices for that model; none is known: None and True.

    Args:
        candidates: Names of files that they may be.
        own_base: Base of a key -> the model's own for the same; see `HostKeys`.
    """
    found: dict[int, tuple[str | None, bool]] = {}
    for name in candidates:
        host.heed_cancel()  # a file takes seconds
        in_file = _matrices_in(name, own_base)
        for place, lora in enumerate(loras):
            own = _matrices(lora.tensors)
            if place in found or not own or not own.keys() <= in_file.keys():
                continue
            if all(_equal(in_file[key], tensor.cpu()) for key, tensor in own.items()):
                found[place] = name, own.keys() == in_file.keys()
    return [found.get(place, (None, True)) for place in range(len(loras))]


def _matrices_in(name: str, own_base: Callable[[str], str | None]) -> Mapping[str, torch.Tensor]:
    """Return the matrices for a model in a file, by the model's own keys; none: not a LoRA."""
    from ..iteris_core.files.groups import split_key, tensors_by_key
    from ..iteris_core.files.tensors import read_tensors

    path = host.find_lora(name)
    if path is None or path.suffix != ".safetensors":
        return {}
    try:
        tensors = read_tensors(path)[0]
    except AdapterError:
        return {}
    own: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        base, role = split_key(key) or ("", "")
        same = own_base(base)
        if same is not None:
            own |= tensors_by_key(same, {role: tensor})
    return _matrices(own)


def _matrices(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if tensor.ndim > 1}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)  # torch compares no two kinds of float8
