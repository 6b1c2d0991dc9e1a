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
_KEPT = "**Merge LoRAs** then says what it kept of each LoRA"
_KEPT_OF_VIDEOS = "**Merge LoRAs for video or editing** then says what it kept of each LoRA"
_PAIRS = (
    "**Merge LoRAs for video or editing**: choose a file in each row. A row is a pair: the file with "
    "*low_noise* in its name is found by the one with *high_noise*"
)
_SEEN = f"{_KEPT}. **Compare** shows it"
_SAVED = "The new LoRA is in every LoRA list: load it at strength 1.0"
_WORDS = "If a row says *write prompts*, click that. Example: *a photo of sks dog*"
_CALLED = 'If prompts use another name for a LoRA: *called="a sks dog"* in *More*'
_ROWS = "**LoRAs**: choose a file in each row"
_WHAT = "**Prompt**: write what to draw. Click the trigger words below the rows to add them"
_MERGE_THESE = (
    "If they spoil each other, press *Merge these*",
    "**Merge LoRAs** then stands in the place of **Load LoRAs**: **Run** makes one LoRA of them",
)
_TRIGGERS = "**Prompt**: put your trigger words in"
_OF_VIDEOS = (
    "Load each at strength 1.0",
    "In both samplers, set *cfg* and the step where the models change as you are used to",
    "The merge measures at *cfg* 6; **Merge settings** changes that",
    "**Compare** draws no videos: draw this one with the LoRAs themselves, too",
)


@dataclass(frozen=True)
class Template:
    """A workflow that ComfyUI's template browser lists.

    Args:
        title: Its name there, after its number.
        does: First sentence of the note.
        steps: What to choose; to press Run is the last one.
        then: What comes out, and what is good to know, line by line.
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
        """First what a newcomer needs, and all of it in headings: a template opens at 0.6 of its
        size, where other text cannot be read.
        """
        steps = enumerate((*self.steps, "Press **Run**"), start=1)
        first = "<br>".join([self.does, *(f"{k}. {step}." for k, step in steps)])
        then = "<br>".join(f"{line}." for line in self.then)
        return f"# {first}\n\n## {then}"


TEMPLATES = (
    Template(
        "Merge two LoRAs",
        "Merges two LoRAs into one that comes close to both.",
        (_CHOOSE, _TWO),
        (
            _SEEN,
            _SAVED,
            "The merge takes as long as 6 to 11 pictures, and **Compare** draws 9 more",
            _WORDS,
            "LoRAs that work when stacked need no merge: template 11 stacks them",
        ),
    ),
    Template(
        "Character and style",
        "Merges a character and a style. Stack the two first, by template 11: a merge was not shown "
        "to draw the character in the style more often.",
        (
            _CHOOSE,
            "**Merge LoRAs**: choose the character in the first row, the style in the second",
        ),
        (
            f"{_KEPT}, alone",
            "**Compare** shows whether the character comes in the style",
            _SAVED,
            _WORDS,
            'In *More* of the style, write how prompts ask for it: *called="in ink style"*',
        ),
    ),
    Template(
        "Two subjects in one picture",
        "Merges two subjects, such as characters, so that one picture can show both.",
        (_CHOOSE, _TWO),
        (
            _SEEN,
            _SAVED,
            _WORDS,
            _CALLED,
            "*together* is on. For a third subject, or a style, press *+ Add LoRA*",
            "On transformers, such as Flux.1 and SD3.5, choose the preset *Polished*",
        ),
    ),
    Template(
        "Flux and other models in parts",
        "Merges two LoRAs of a model that is loaded in parts, here Flux.1.",
        (_PARTS, _TWO),
        (
            _SEEN,
            _SAVED,
            "The preset *Polished* keeps more of each LoRA, and takes 30 times as long",
            "T5 and language models are never merged: a note of the report says what was left out",
        ),
    ),
    Template(
        "Make a LoRA smaller",
        "Makes a LoRA's file smaller: it cuts what the LoRA's own prompts need least.",
        (_CHOOSE, "**Make it smaller**: choose the LoRA, and the rank in *size_value*"),
        (
            "The node then says what the cut costs. **Compare** shows it",
            _SAVED,
            "*size* can be MB, too",
        ),
    ),
    Template(
        "Merge into a checkpoint",
        "Makes a checkpoint that has two LoRAs in it.",
        (_CHOOSE, _TWO),
        (
            _KEPT,
            "The checkpoint is in *output/checkpoints* and needs no LoRA. It is as large as the model",
        ),
    ),
    Template(
        "LoRAs that a model carries",
        "Merges the LoRAs of loaders that you have already. It goes after the loaders of your own "
        "workflow.",
        (_CHOOSE, "**Your LoRA loader**: choose a LoRA in each. Any loader will do"),
        (_SEEN, _SAVED),
    ),
    Template(
        "Make a merge again",
        "Makes a merge again from the recipe in its file, in another size.",
        (_CHOOSE, "**How it was made**: choose a LoRA that *Save merged LoRA* has saved"),
        (
            "The LoRAs that it was made from must still be there",
            "To make the same file, connect *settings*, too",
        ),
    ),
    Template(
        "Wan video",
        "Merges two LoRAs of Wan 2.2 for both of its models, and draws a video with the result.",
        (
            "**High noise model**, **Low noise model**, **Load text encoder**, **Load VAE**: choose "
            "the files",
            _PAIRS,
            _TRIGGERS,
        ),
        (
            _KEPT_OF_VIDEOS,
            "Two files are saved, *iteris_wan_high_noise* and *iteris_wan_low_noise*",
            *_OF_VIDEOS,
        ),
    ),
    Template(
        "Picture to video",
        "Merges two LoRAs of Wan 2.2's image to video for both of its models, and makes a picture move.",
        (
            "**High noise model**, **Low noise model**, **Load text encoder**, **Load VAE**: choose "
            "the files",
            "**First picture**: choose a typical first frame",
            _PAIRS,
            _TRIGGERS,
        ),
        (
            f"{_KEPT_OF_VIDEOS}, measured on this picture, too",
            "Two files are saved, *iteris_wan_i2v_high_noise* and *iteris_wan_i2v_low_noise*",
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
        _MERGE_THESE,
        groups=("Choose", "Write", "Draw"),
    ),
    Template(
        "Draw with several Flux LoRAs",
        "Draws a picture with several LoRAs at once by a model that is loaded in parts, here Flux.1: "
        "as they are, or merged.",
        (_PARTS, _ROWS, _WHAT),
        (
            *_MERGE_THESE,
            "For models that need a negative prompt, such as Qwen-Image, link one to the sampler, and "
            "set its *cfg*",
        ),
        groups=("Choose", "Write", "Draw"),
    ),
    Template(
        "Two Flux subjects in one picture",
        "Merges two subjects so that one picture can show both, by a model that is loaded in parts, "
        "here Flux.1.",
        (_PARTS, _TWO),
        (
            _SEEN,
            _SAVED,
            _WORDS,
            _CALLED,
            "*together* is on, and the preset is *Polished*: by estimate 1.7 hours or more on an RTX "
            "4090 with Flux.1 in fp8. *Balanced* takes minutes, and seldom draws both",
        ),
    ),
)
