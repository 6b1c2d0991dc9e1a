"""The templates in their order: title and note.

``workflows/`` has a file ``NUMBER TITLE.json`` for each, since ComfyUI shows names of files, and
``workflows/api/`` the same graph under a plain name.
"""

from __future__ import annotations

from dataclasses import dataclass

_CHOOSE = "**Load checkpoint**: choose the model of your LoRAs"
_PARTS = (
    "**Load diffusion model**, **Load text encoders**, **Load VAE**: choose the files. For other "
    "models put the loaders that you use in their place"
)
_TWO = "**Merge LoRAs**: choose a file in each row"
_KEPT = "The merge node then says what it kept of each LoRA, and what to do if that is little."
_SAVED = "The new LoRA is in every LoRA list. Load it at strength 1.0."
_WORDS = (
    "If a file names no trigger words, click *write prompts* in its row and write some, such as *a "
    "photo of sks dog*."
)
_CALLED = 'Also write in *More* what prompts call it: *called="a sks dog"*.'
_ROWS = "**Load LoRAs**: choose a file in each row"
_WHAT = "**Prompt**: write what to draw. Open a row to add its trigger words by a click"
_MERGE_THESE = (
    "As they are, LoRAs may spoil each other. *Merge these* turns **Load LoRAs** into **Merge "
    "LoRAs**, with **Compare** and **Save merged LoRA**."
)
_TRIGGERS = "**Prompt**: put your trigger words in"
_OF_VIDEOS = (
    "",
    "In both samplers, set *cfg* and the step where the models change as in your own workflow. The "
    "merge measures at *cfg* 6; to measure at yours, connect **Merge settings** and set it there.",
    "",
    "**Compare** does not draw videos. Draw this one with the LoRAs themselves, too, from the same "
    "seed.",
)


@dataclass(frozen=True)
class Template:
    """A workflow that ComfyUI's template browser lists.

    Args:
        title: Its name there, after its number.
        does: First sentence of the note.
        steps: What to choose; to press Run is the last one.
        then: What comes out, and what is good to know.
        groups: What its three groups are called, after their numbers.
    """

    title: str
    does: str
    steps: tuple[str, ...]
    then: tuple[str, ...]
    groups: tuple[str, str, str] = ("Choose", "Merge", "See and save")

    @property
    def name(self) -> str:
        """Its name in `workflows/api`."""
        return self.title.lower().replace(" ", "_")

    @property
    def note(self) -> str:
        """First what a newcomer needs, in large letters: a template opens at 0.6 of its size."""
        steps = enumerate((*self.steps, "Press **Run**"), start=1)
        first = "<br>".join([self.does, *(f"{k}. {step}." for k, step in steps)])
        return "\n".join([f"# {first}", "", *self.then])


TEMPLATES = (
    Template(
        "Merge two LoRAs",
        "Makes one LoRA that comes as close as it can to what each of two does.",
        (_CHOOSE, _TWO),
        (
            f"{_KEPT} **Compare** draws the base model, each LoRA alone, both stacked and the "
            f"merge. {_SAVED}",
            "",
            "The merge takes as long as 6 to 11 pictures. **Compare** then draws 9, or 5 if you "
            f"write one *prompt* there. {_WORDS}",
            "",
            "Two LoRAs that work when stacked need no merge: template 11 stacks them.",
        ),
    ),
    Template(
        "Character and style",
        "Makes one LoRA of a character and a style. Stack the two first, by template 11: a merge was "
        "not shown to draw the character in the style more often.",
        (
            _CHOOSE,
            "**Merge LoRAs**: choose the character in the first row, the style in the second",
        ),
        (
            f"{_KEPT} {_SAVED}",
            "",
            "The verdict is on each of the two alone. Whether the character comes in the style, "
            "**Compare** shows.",
            "",
            f"{_WORDS} For a style, also write in *More* how prompts ask for it: "
            '*called="in ink style"*.',
        ),
    ),
    Template(
        "Three subjects in one picture",
        "Merges three subjects so that one picture can show them together. On transformers such as "
        "Flux.1, choose the preset *Polished*.",
        (_CHOOSE, "**Merge LoRAs**: choose a file in each row"),
        (
            f"{_KEPT} {_SAVED}",
            "",
            f"{_WORDS} {_CALLED}",
            "",
            "*together* is on. For two subjects, take the third row out; for a style there, click "
            "its *subject*.",
        ),
    ),
    Template(
        "Flux and other models in parts",
        "Merges two LoRAs of a model that is loaded in parts, here Flux.1.",
        (_PARTS, _TWO),
        (
            f"{_KEPT} {_SAVED}",
            "",
            "The preset *Polished* keeps more of each LoRA, and takes 30 times as long.",
            "",
            "T5 and language models are never merged. A note of the report says what of a LoRA was "
            "left out.",
        ),
    ),
    Template(
        "Make a LoRA smaller",
        "Makes a LoRA's file smaller: it cuts what the LoRA's own prompts need least.",
        (_CHOOSE, "**Make it smaller**: choose the LoRA, and the rank in *size_value*"),
        (
            "The node then says what the cut costs. **Compare** draws the LoRA as it was and as it is "
            f"now. {_SAVED}",
            "",
            "*size* can be MB, too.",
        ),
    ),
    Template(
        "Merge into a checkpoint",
        "Makes a checkpoint that has two LoRAs in it.",
        (_CHOOSE, _TWO),
        (
            f"{_KEPT} The checkpoint is in *output/checkpoints* and needs no LoRA. It is as large as "
            "the model.",
        ),
    ),
    Template(
        "LoRAs that a model carries",
        "Merges the LoRAs of loaders that you have already. It goes after the loaders of your own "
        "workflow.",
        (_CHOOSE, "**Your LoRA loader**: choose a LoRA in each. Any loader will do"),
        (f"{_KEPT} {_SAVED}",),
    ),
    Template(
        "Make a merge again",
        "Makes a merge again from the recipe in its file, in another size.",
        (_CHOOSE, "**How it was made**: choose a LoRA that *Save merged LoRA* has saved"),
        (
            "The LoRAs that it was made from must still be there. To make the same file, connect "
            "*settings*, too.",
        ),
    ),
    Template(
        "Wan video",
        "Merges two LoRAs of Wan 2.2 for both of its models, and draws a video with the result.",
        (
            "**High noise model**, **Low noise model**, **Load text encoder**, **Load VAE**: choose "
            "the files",
            "**Merge LoRAs**: choose a file in each row. A row is a pair: the file with *low_noise* "
            "in its name is found by the one with *high_noise*",
            _TRIGGERS,
        ),
        (
            f"{_KEPT} Two files are saved, *iteris_wan_high_noise* and *iteris_wan_low_noise*, one "
            "for each model. Load each at strength 1.0.",
            *_OF_VIDEOS,
        ),
    ),
    Template(
        "Picture to video",
        "Merges two LoRAs of Wan 2.2's image to video for both of its models, and lets a picture move.",
        (
            "**High noise model**, **Low noise model**, **Load text encoder**, **Load VAE**: choose "
            "the files",
            "**First picture**: choose one as your videos begin with",
            "**Merge LoRAs**: choose a file in each row. A row is a pair: the file with *low_noise* "
            "in its name is found by the one with *high_noise*",
            _TRIGGERS,
        ),
        (
            f"{_KEPT} LoRAs are measured on this picture, too. Two files are saved, "
            "*iteris_wan_i2v_high_noise* and *iteris_wan_i2v_low_noise*. Load each at strength 1.0.",
            *_OF_VIDEOS,
        ),
    ),
    Template(
        "Draw with several LoRAs",
        "Draws a picture with several LoRAs at once: as they are, or merged.",
        (
            _CHOOSE,
            _ROWS,
            _WHAT,
            "**Picture size**: 1024 is for SDXL; for SD1.5 set both to 512",
        ),
        (_MERGE_THESE,),
        groups=("Choose", "Write", "Draw"),
    ),
    Template(
        "Draw with several Flux LoRAs",
        "Draws a picture with several LoRAs at once by a model that is loaded in parts, here Flux.1: "
        "as they are, or merged.",
        (_PARTS, _ROWS, _WHAT),
        (
            _MERGE_THESE,
            "",
            "Models that need a negative prompt, such as Qwen-Image: link one to the sampler, and set "
            "its *cfg*.",
        ),
        groups=("Choose", "Write", "Draw"),
    ),
    Template(
        "Two Flux subjects in one picture",
        "Merges two subjects so that one picture can show both, by a model that is loaded in parts, "
        "here Flux.1.",
        (_PARTS, _TWO),
        (
            f"{_KEPT} {_SAVED}",
            "",
            f"{_WORDS} {_CALLED}",
            "",
            "*together* is on, and the preset is *Polished*: with Flux.1 in fp8 it takes, by "
            "estimate, 1.7 hours or more on an RTX 4090. *Balanced* takes minutes, and seldom draws "
            "both.",
        ),
    ),
)
