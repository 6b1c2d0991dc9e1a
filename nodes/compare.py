"""The node 'Compare': base model, each LoRA alone, all stacked, and the merge, as one picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from . import host, kept_pictures
from .compare_checks import MULTIPLE, check_base, check_side, merge_of, refusal_of
from .compare_rows import (
    BASE,
    check_pictures,
    names_of,
    names_several,
    own_rows,
    rows_of,
    short,
    worn_of,
)
from .loras.names import adapter_name, files_named
from .pictures import Labelled, table
from .sockets import MERGED, MergedLora, advanced, found_by
from .validation import checked
from .workflow import inputs_of, texts_upstream

if TYPE_CHECKING:
    from ..iteris_core.diffusion.lora_use import LoraUse
    from ..iteris_core.files.families import Family
    from .compare_rows import Row

_MOST_SIDE = 4096
_MOST_STEPS = 200
_MOST_NAMED = 4  # LoRAs on the base model


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        size = {"default": 0, "min": 0, "max": _MOST_SIDE, "step": MULTIPLE, "optional": True}
        return io.Schema(
            node_id="IterISCompare",
            display_name="Compare (IterIS)",
            **found_by("compare loras", "before after", "lora grid", "xy plot", "test merge"),
            category="loaders/IterIS",
            description="Draws the base model, each LoRA alone, all LoRAs stacked, and the merged "
            "LoRA from one seed, side by side in one labelled picture.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that the merge got."),
                MERGED.Input(
                    "merged",
                    tooltip="The merged LoRA, from Merge LoRAs. The model comes with it.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="To see the merge on another checkpoint: its MODEL. Empty: the one "
                    "that the merge got.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="To see the merge on another checkpoint: its CLIP. Empty: the one "
                    "that the merge got.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What to draw, one prompt per line, each by the base model, by every "
                    "LoRA alone, stacked, and merged. Empty: a prompt of each LoRA, drawn by this "
                    "LoRA alone, stacked and merged, and on top one where they meet; 9 pictures "
                    "for two LoRAs.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the noise of every picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=_MOST_STEPS,
                    tooltip="Sampling steps of each picture.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance. 0: that of the merge, which is what suits the model unless "
                    "Merge settings says otherwise. 1: none, for turbo and distilled models.",
                ),
                *advanced(
                    io.String.Input(
                        "negative_prompt",
                        multiline=True,
                        default="",
                        optional=True,
                        tooltip="What the pictures should not show. Without guidance it is not "
                        "read.",
                    ),
                    *(
                        io.Int.Input(
                            side,
                            **size,
                            tooltip=f"{side.capitalize()} of each picture. 0: what suits the "
                            "model, or resolution of Merge settings where that is set.",
                        )
                        for side in ("width", "height")
                    ),
                    io.Combo.Input(
                        "sampler",
                        options=host.sampler_names(),
                        default="euler",
                        optional=True,
                        tooltip="Sampler, as in KSampler.",
                    ),
                    io.Combo.Input(
                        "scheduler",
                        options=host.scheduler_names(),
                        default="simple",
                        optional=True,
                        tooltip="Scheduler, as in KSampler. simple suits all models.",
                    ),
                    io.String.Input(
                        "caption",
                        default="",
                        optional=True,
                        tooltip="A title, large at the top of the comparison. Empty: none.",
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="comparison",
                    tooltip="All pictures as one, with labels, and how they were drawn.",
                ),
                io.Image.Output(
                    display_name="merged",
                    tooltip="What the merged LoRA draws, a picture per row: for the cover of Save.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        """Refuse prompts that cannot be drawn, and a model that is no base to compare with, before
        the merge. The host calls it only if it takes an input.
        """
        return refusal_of(host.prompt_sent(), cls.hidden.unique_id) or True

    @classmethod
    async def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Draw after Save has written the merge: the host has no order for nodes that are ready."""
        await host.others_first(cls.hidden.unique_id)
        return cls.drawn(**inputs)

    @classmethod
    @checked
    def drawn(
        cls,
        vae: Any,
        merged: MergedLora,
        prompt: str,
        seed: int,
        steps: int,
        cfg: float,
        negative_prompt: str = "",
        width: int = 0,
        height: int = 0,
        sampler: str = "euler",
        scheduler: str = "simple",
        caption: str = "",
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        from ..iteris_core.progress import Stage
        from .loras.chosen import read_again, unread
        from .loras.harvest import count_loras

        check_side("width", width)
        check_side("height", height)
        uses = [lora.use for lora in merged.loras]
        rows, taken = rows_of(prompt, uses)
        check_pictures(rows)
        sent, node_id = cls.hidden.prompt or {}, cls.hidden.unique_id
        linked = inputs_of(sent, node_id)
        given = {"model": model, "clip": clip}
        given = {name: it for name, it in given.items() if it is not None or name in linked}
        base = base_of(merged, given)
        check_base(base, merged)
        host.check_vae(vae, base)
        loras = read_again(base, merged)
        side = side_of(merged, base.family)
        how = host.Drawing(
            width=width or side,
            height=height or side,
            seed=seed,
            steps=steps,
            cfg=cfg or merged.measured_cfg or base.family.guidance,
            sampler=sampler,
            scheduler=scheduler,
            negative=negative_prompt.strip(),
        )
        texts = [*(row.prompt for row in rows), how.negative]
        taken += [note.text for note in unread(base, "left out of the prompts", texts)]
        ways = [base.patched(*worn) for worn in [*worn_of(loras), [merged.adapter]]]
        names = names_of(uses)
        labels = [(row.label, [names[way] for way in row.ways]) for row in rows]
        files = Files(node_id, labels)
        wanted = [(way, row.prompt) for row in rows for way in row.ways]
        keys = kept_pictures.keys_of(base, vae, merged, how, wanted)
        progress = partial(host.stage_progress(node_id), Stage("Pictures", told_by=steps))

        def draw(numbers: Sequence[int], told: Callable[[int, torch.Tensor], None]) -> None:
            left = [wanted[number] for number in numbers]
            host.draw(base, vae, ways, left, how, progress, told)

        drawn = draw_rows(rows, keys, draw, files.add)
        table_rows = [
            Labelled(label, of_ways, of_row)
            for (label, of_ways), of_row in zip(labels, drawn.rows, strict=True)
        ]
        of_model = node_id if "model" in given else merge_of(sent, node_id)
        names_upstream = texts_upstream(sent, of_model, ["model"])
        carried = count_loras(host.patches_of(base.model, base.clip))
        drawn_by = base_name(tuple(names_upstream), base.family.name, carried)
        facts = [drawn_by, *how_in_words(how, merged.measured_cfg)]
        whole = table(table_rows, caption.strip(), facts=facts)
        prompts = [row.label for row in rows]
        of_loras = [use.name for use in uses]
        shown = {
            # not as images, which the page would show on nodes of the same id in other workflows
            "iteris_pictures": ui.PreviewImage(whole, cls=cls).as_dict()["images"],
            "text": ["\n".join([*prompts, *taken, ", ".join(facts)])],
            "iteris_drawn": [cost_of(drawn, uses, steps, [width, height])],
            # and what another merge's pictures must share with these to be compared with them
            "iteris_made": [{**merged.made, "drawn": repr([drawn_by, how, of_loras])}],
            "iteris_tiles": tiles_of(rows, table_rows, files, merged),
        }
        of_merge = torch.stack([row.pictures[-1] for row in table_rows])
        return io.NodeOutput(whole, of_merge, ui=shown)


@dataclass(frozen=True)
class Drawn:
    """The pictures of a comparison.

    Args:
        rows: Those of each row, in the order of its ways.
        kept: How many of them are kept from comparisons before.
        seconds: How long the others took.
    """

    rows: list[list[torch.Tensor]]
    kept: int
    seconds: float


def draw_rows(
    rows: Sequence[Row],
    keys: Sequence[kept_pictures.Key | None],
    draw: Callable[[Sequence[int], Callable[[int, torch.Tensor], None]], None],
    told: Callable[[int, int, torch.Tensor], None],
) -> Drawn:
    """Return the pictures of rows, of which those that are not kept are drawn.

    Args:
        keys: The key of each picture, see `kept_pictures.keys_of`.
        draw: Draws the pictures of these numbers, and calls its second argument with the place of
            each among them, and the picture.
        told: Called with each picture's row, its place there, and the picture, once it is there.
    """
    places = [(at, place) for at, row in enumerate(rows) for place in range(len(row.ways))]
    pictures = kept_pictures.find(keys)
    for number, picture in pictures.items():
        told(*places[number], picture)
    missing = [number for number in range(len(keys)) if number not in pictures]

    def drawn(at: int, picture: torch.Tensor) -> None:
        number = missing[at]
        pictures[number] = picture
        kept_pictures.keep(keys[number], picture)
        told(*places[number], picture)

    begin = time.monotonic()
    draw(missing, drawn)
    seconds = time.monotonic() - begin
    in_order = (pictures[number] for number in range(len(keys)))
    of_rows = [[next(in_order) for _ in row.ways] for row in rows]
    return Drawn(of_rows, len(keys) - len(missing), seconds)


class Files:
    """The pictures as files for the page, without the workflow in them, each of which it is told at
    once.

    Args:
        rows: Each row's prompt, and the names of its pictures.
    """

    def __init__(self, node_id: str, rows: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._node_id = node_id
        self._rows = [{"prompt": prompt, "names": list(names)} for prompt, names in rows]
        self._files: dict[tuple[int, int], Mapping[str, Any]] = {}

    def add(self, row: int, place: int, picture: torch.Tensor) -> None:
        [file] = ui.PreviewImage([picture], cls=None).as_dict()["images"]
        self._files[row, place] = file
        told = {"rows": self._rows, "row": row, "place": place, "picture": file}
        host.tell_picture(self._node_id, told)

    def of_row(self, row: int) -> list[Mapping[str, Any]]:
        return [file for (at, _), file in sorted(self._files.items()) if at == row]


def cost_of(
    drawn: Drawn, uses: Sequence[LoraUse], steps: int, size: Sequence[int]
) -> dict[str, Any]:
    """Return what the pictures took that were drawn, how many were not, and how many others would
    be drawn, for the page.

    Args:
        size: The width and height that were asked for.
    """
    line = len(names_of(uses))
    return {
        "pictures": sum(map(len, drawn.rows)) - drawn.kept,
        "kept": drawn.kept,
        "seconds": round(drawn.seconds, 1),
        "steps": steps,
        "size": list(size),
        "own": sum(len(row.ways) for row in own_rows(uses)) or line,
        "line": line,
    }


def base_of(merged: MergedLora, given: Mapping[str, Any]) -> host.ComfyModel:
    """Return the model to draw with: the merge's, except for what is connected.

    Args:
        given: The values of the inputs model and clip that are connected.

    Raises:
        IterisError: They cannot be drawn with.
    """
    if not given:
        return merged.base
    model, clip = merged.base.given
    return host.ComfyModel(given.get("model", model), given.get("clip", clip))


def base_name(texts: Collection[str], family: str, carried: int) -> str:
    """Return the names of the base model and of the LoRAs on it; only the number of LoRAs if the
    nodes before it name others, too, such as one that is switched off.

    Args:
        texts: Texts of the nodes before it.
        family: Name of the base model if they name none of its files.
        carried: How many LoRAs it carries.
    """
    files = sorted({text for text in texts if host.find_model(text) is not None})
    loras = files_named(texts, host.lora_names()) if carried else []
    names = [short(adapter_name(file)) for file in loras]
    if len(names) != carried or carried > _MOST_NAMED:
        names = [f"{carried} LoRA{'s' * (carried > 1)}"]
    return " + ".join([*(short(adapter_name(file)) for file in files or [family]), *names])


def side_of(merged: MergedLora, family: Family) -> int:
    """Return the side of pictures where the user names none: what suits the model, or the side of
    the measured pictures if the user has set that.
    """
    side = merged.measured_side
    return family.resolution if side in (0, family.measured_at) else side


def how_in_words(how: host.Drawing, measured_cfg: float) -> list[str]:
    """Return in words how pictures were drawn, and the merge's guidance if that is another one."""
    other = f" (merge: {measured_cfg:g})" if measured_cfg not in (0, how.cfg) else ""
    return [
        f"{how.width} x {how.height}",
        f"{how.steps} steps",
        f"cfg {how.cfg:g}{other}",
        f"{how.sampler} {how.scheduler}",
        f"seed {how.seed}",
    ]


def spoilt_by_stack(row: Row, pictures: Sequence[torch.Tensor]) -> float:
    """Return how far the stack is from a LoRA alone, from 0 to 1; 0 if the row is not a LoRA's."""
    return 0.0 if BASE in row.ways else float((pictures[-2] - pictures[0]).abs().mean())


def tiles_of(
    rows: Sequence[Row], drawn: Sequence[Labelled], files: Files, merged: MergedLora
) -> list[dict[str, Any]]:
    """Return each row's pictures, and what says with which row the page begins; see `told_of`."""
    return [
        {
            "prompt": row.label,
            "names": list(shown.names),
            "pictures": files.of_row(at),
            "spoilt": spoilt_by_stack(row, shown.pictures),
            **told_of(row, merged),
        }
        for at, (row, shown) in enumerate(zip(rows, drawn, strict=True))
    ]


def told_of(row: Row, merged: MergedLora) -> dict[str, bool]:
    """Return whether a row shows LoRAs that were measured `together`."""
    shows_several = names_several(row.prompt, [lora.use for lora in merged.loras])
    return {"together": merged.is_together and shows_several}
