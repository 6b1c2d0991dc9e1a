"""The node 'Compare': base model, each LoRA alone, all stacked, and the merge, as one picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from ..iteris_core import IterisError
from ..iteris_core.progress import Stage
from ..iteris_core.report.records import Note
from . import host
from .compare_checks import MULTIPLE, check_base, check_side, merge_of, refusal_of
from .compare_rows import BASE, check_pictures, names_of, rows_of, short, worn_of
from .loras.names import adapter_name
from .payload import notes_of, shown
from .pictures import Labelled, table
from .sockets import MERGED, MergedLora, advanced, found_by
from .validation import checked
from .workflow import inputs_of, texts_upstream

if TYPE_CHECKING:
    from ..iteris_core import Adapter
    from ..iteris_core.files.families import Family
    from .compare_rows import Row

_MOST_SIDE = 4096
_MOST_STEPS = 200


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
                io.Float.Input(
                    "stack_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="By what the strengths of the stack are multiplied. A stack of several "
                    "LoRAs is often better below 1.",
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
    @checked
    def execute(
        cls,
        vae: Any,
        merged: MergedLora,
        prompt: str,
        seed: int,
        steps: int,
        cfg: float,
        stack_strength: float = 1.0,
        negative_prompt: str = "",
        width: int = 0,
        height: int = 0,
        sampler: str = "euler",
        scheduler: str = "simple",
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        from .loras.chosen import read_again

        check_side("width", width)
        check_side("height", height)
        uses = [lora.use for lora in merged.loras]
        rows, notes = rows_of(prompt, uses)
        check_pictures(rows)
        sent, node_id = cls.hidden.prompt or {}, cls.hidden.unique_id
        linked = inputs_of(sent, node_id)
        given = {"model": model, "clip": clip}
        given = {name: it for name, it in given.items() if it is not None or name in linked}
        base = base_of(merged, given)
        check_base(base, merged)
        host.check_vae(vae, base)
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
        loras = read_again(base, merged)
        worn = [*worn_of(loras, stack_strength), [merged.adapter]]
        ways = [base.patched(*adapters) for adapters in worn]
        progress = partial(host.stage_progress(node_id), Stage("Pictures", told_by=steps))
        begin = time.monotonic()
        pictures, latents = drawn(
            rows, partial(host.draw, base, vae, ways, how=how, progress=progress)
        )
        shares, of_shares = shares_of(base, loras, [use.name for use in uses], rows, latents)
        notes += of_shares
        seconds = time.monotonic() - begin
        names = names_of(uses, stack_strength)
        table_rows = [
            Labelled(row.label, [names[way] for way in row.ways], of_row)
            for row, of_row in zip(rows, pictures, strict=True)
        ]
        of_model = node_id if "model" in given else merge_of(sent, node_id)
        files = texts_upstream(sent, of_model, ["model"])
        facts = [base_name(files, base.family.name), *how_in_words(how, merged.measured_cfg)]
        whole = table(table_rows, ", ".join(facts))
        payload = {
            "of": merged.of,
            "pictures": [
                {**shown_row(row), "shares": of_row}
                for row, of_row in zip(table_rows, shares, strict=True)
            ],
            "seconds": round(seconds, 1),
            # not as images, which the page would show on nodes of the same id in other workflows
            "whole": ui.PreviewImage(whole, cls=cls).as_dict()["images"][0],
            "notes": notes_of(notes),
        }
        said = [*(row.label for row in rows), *(note.text for note in notes), ", ".join(facts)]
        return io.NodeOutput(
            whole,
            torch.stack([row[-1] for row in pictures]),
            ui=shown(payload, "\n".join(said)),
        )


OfRows = list[list[torch.Tensor]]


def drawn(rows: Sequence[Row], draw: Callable[..., None]) -> tuple[OfRows, OfRows]:
    """Return each row's pictures, in the order of its ways, and their latents.

    Args:
        draw: `host.draw`, but for what is wanted and who gets each picture.
    """
    wanted = [(way, row.prompt) for row in rows for way in row.ways]
    found: dict[int, tuple[torch.Tensor, ...]] = {}

    def keep(number: int, *of_picture: torch.Tensor) -> None:
        found[number] = of_picture

    draw(wanted=wanted, drawn=keep)
    in_order = (found[number] for number in range(len(wanted)))
    of_rows = [[next(in_order) for _ in row.ways] for row in rows]
    pictures, latents = ([[of[part] for of in row] for row in of_rows] for part in (0, 1))
    return pictures, latents


def shares_of(
    base: host.ComfyModel,
    loras: Sequence[Adapter],
    names: Sequence[str],
    rows: Sequence[Row],
    latents: Sequence[Sequence[torch.Tensor]],
) -> tuple[list[list[dict[str, float] | None]], list[Note]]:
    """Return for each row and picture how much of each LoRA is in it, 0 to 100, by the LoRA's name,
    and a note where that could not be found out; None for pictures that are not of several LoRAs.
    Only LoRAs that have drawn a row's prompt alone are looked for in it.

    Args:
        names: The LoRAs'.
        latents: Of the pictures, each row's in the order of its ways.
    """
    from ..iteris_core.diffusion.share import PromptPictures, shares

    shown: list[list[dict[str, float] | None]] = [[None] * len(row.ways) for row in rows]
    asked = [
        (place, [at for at, way in enumerate(row.ways) if way > len(loras)])
        for place, row in enumerate(rows)
        if any(BASE < way <= len(loras) for way in row.ways)
    ]
    pictures = [
        PromptPictures(
            rows[place].prompt,
            {
                way - 1: of_way
                for way, of_way in zip(rows[place].ways, latents[place], strict=True)
                if BASE < way <= len(loras)
            },
            [latents[place][at] for at in judged],
        )
        for place, judged in asked
    ]
    try:
        found = shares(base, loras, pictures) if pictures else []
    except IterisError as error:
        return shown, [Note("host", f"how much of each LoRA is in a picture is not known: {error}")]
    for (place, judged), of_prompt in zip(asked, found, strict=True):
        for at, of_picture in zip(judged, of_prompt, strict=True):
            shown[place][at] = {names[k]: 100 * share for k, share in of_picture.items()}
    return shown, []


def shown_row(row: Labelled) -> dict[str, Any]:
    """Return a row for the page, its pictures as files without the workflow in them."""
    previews = (ui.PreviewImage([picture], cls=None).as_dict() for picture in row.pictures)
    return {
        "prompt": row.name,
        "names": list(row.names),
        "files": [preview["images"][0] for preview in previews],
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


def base_name(texts: Iterable[str], family: str) -> str:
    """Return the name of the base model.

    Args:
        texts: Texts of the nodes before it.
        family: Its name if they name none of its files.
    """
    files = sorted({text for text in texts if host.find_model(text) is not None})
    return " + ".join(short(adapter_name(file)) for file in files or [family])


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
