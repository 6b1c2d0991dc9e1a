"""The node 'Load recipe', which reads from a merged LoRA's file how it was made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.diffusion.lora_rows import row_of, written
from ..iteris_core.settings import label, value_label
from . import host
from .lora import show
from .loras.names import adapter_name, fingerprints
from .settings import FIELDS, in_words, settings_of
from .sockets import LORAS, SETTINGS, ChosenLora
from .validation import checked

if TYPE_CHECKING:
    from ..iteris_core.diffusion.lora_use import LoraUse
    from ..iteris_core.diffusion.recipe import Recipe

_MOST_NAMESAKES = 16  # whose content is looked at


class LoadRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISRecipe",
            display_name="Load recipe (IterIS)",
            category="loaders/IterIS",
            description="Reads from a merged LoRA how it was made: its LoRAs with prompts and "
            "strengths, and all its settings. Connect both to Merge LoRAs to make it again, or "
            "only the LoRAs, to merge them in another way.",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=host.lora_names(),
                    tooltip="A LoRA that Save merged LoRA has saved.",
                ),
                io.Boolean.Input(
                    "check_files",
                    default=True,
                    tooltip="On: refuse LoRA files that have changed since, by their SHA-256. Off: "
                    "use them, and say so.",
                ),
            ],
            outputs=[
                LORAS.Output(
                    display_name="loras", tooltip="Its LoRAs, for more_loras of Merge LoRAs."
                ),
                SETTINGS.Output(
                    display_name="settings",
                    tooltip="All its settings, for settings of Merge LoRAs: the merge is made "
                    "again as it was.",
                ),
                io.String.Output(
                    display_name="text",
                    tooltip="The LoRAs as rows, and the settings, for Preview Any.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **inputs: object) -> str:
        """Return a fingerprint of the file and of all files in its recipe; constant if the name
        comes through a link.
        """
        if not isinstance(lora_name, str) or not lora_name:
            return "linked"
        names = [
            lora_name,
            *(name for lora in recipe_of(lora_name).loras for name in files_of(lora)),
        ]
        return fingerprints(names)

    @classmethod
    @checked
    def execute(cls, lora_name: str, check_files: bool) -> io.NodeOutput:
        recipe = recipe_of(lora_name)
        loras = [source_of(lora_name, lora) for lora in recipe.loras]
        changed = [change for _, change in loras if change]
        if changed and check_files:
            raise IterisError(
                f"{lora_name}: {'; '.join(changed)}. Put the file of that time back, or switch "
                "check_files off to merge the present one"
            )
        chosen = [ChosenLora(use) for use, _ in loras]
        tasks = show(chosen, (), "\n".join(changed))
        return io.NodeOutput(*tasks.args, recipe, as_text(recipe), ui=tasks.ui)


def recipe_of(lora_name: str) -> Recipe:
    """Return the recipe in a file's metadata.

    Raises:
        IterisError: It has none, or one that cannot be read.
    """
    from ..iteris_core.diffusion.recipe import read_recipe
    from ..iteris_core.files.metadata import RECIPE_KEY
    from ..iteris_core.files.tensors import read_header

    text = read_header(host.lora_path(lora_name))[1].get(RECIPE_KEY)
    if text is None:
        raise IterisError(
            f"{lora_name} has no recipe: it was not saved by Save merged LoRA, or ComfyUI ran with "
            "--disable-metadata. Choose a LoRA that IterIS has merged"
        )
    return read_recipe(lora_name, text)


def as_text(recipe: Recipe) -> str:
    """Return a recipe's LoRAs as rows, then its settings, as far as nodes have them, its base model
    and its versions, one a line.
    """
    made = settings_of(recipe)
    facts = {name: made[name] for name in ("scene_weight", "rank", *FIELDS)}
    settings = [
        f"{label(name)}: {value_label(name, in_words(value))}"
        for name, value in {**facts, **recipe.made_on}.items()
    ]
    return "\n".join([written(map(row_of, recipe.loras)), "", *settings])


def files_of(lora: LoraUse) -> list[str]:
    """Return the present files that may be a recipe's LoRA: the file of its name, or else all whose
    names contain it.
    """
    name = lora.file
    if name is None or host.find_lora(name) is not None:
        return [name] if name else []
    return namesakes(name)


def namesakes(file: str) -> list[str]:
    """Return the LoRA files that may be this file, renamed or moved: the few shortest of the names
    that contain its own.
    """
    own = adapter_name(file).rpartition("/")[2]
    found = [name for name in host.lora_names() if own and own in name]
    return sorted(found, key=len)[:_MOST_NAMESAKES]


def file_of(lora_name: str, use: LoraUse) -> str:
    """Return the file that a recipe's LoRA was in.

    Raises:
        IterisError: It was in none.
    """
    if use.file is None:
        raise IterisError(
            f"{lora_name}: its LoRA {use.name!r} was in no file: it was trained in the workflow. "
            "Save that LoRA and merge it with 'LoRA to merge'"
        )
    return use.file


def source_of(lora_name: str, use: LoraUse) -> tuple[LoraUse, str]:
    """Return a recipe's LoRA as a LoRA to merge, and a note about changes of its file since then,
    which may be empty.

    Raises:
        IterisError: The file is missing, or the LoRA never was in a file.
    """
    from ..iteris_core.files.tensors import sha256

    name = file_of(lora_name, use)

    def is_same(other: str) -> bool:
        host.heed_cancel()  # a file takes seconds
        return sha256(host.lora_path(other)) == use.sha256

    names = dict.fromkeys([name, *namesakes(name)])
    possible = [other for other in names if host.find_lora(other) is not None]
    same = next(filter(is_same, possible), None)
    if same is None and name not in possible:  # one that is only called alike is not it
        raise IterisError(
            f"{lora_name}: its LoRA {name!r} is not in the loras folders (SHA-256 {use.sha256}). "
            f"Put it back, under any name with {adapter_name(name).rpartition('/')[2]!r} in it"
        )
    change = ""
    if same is None:
        change = (
            f"{name} is another file than the one that was merged, whose SHA-256 began "
            f"{use.sha256[:10]}"
        )
    file = same or name
    today = replace(use, name=adapter_name(file), file=file, sha256="", prompts_from="")
    return today, change
