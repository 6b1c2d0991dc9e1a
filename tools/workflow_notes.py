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
_SEEN = "**Compare** shows base model, each LoRA, stack and merge"
_SAVED = "The new LoRA is in every LoRA list: load it at strength 1.0"
_WORDS = "If a row says *write prompts*, click that. Example: *a photo of sks dog*"
_CALLED = 'If prompts use another name for a LoRA: *called="a sks dog"* in *More*'


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
        (_SEEN, _SAVED, _WORDS, "LoRAs that work when stacked need no merge"),
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
            "*together* is on. For a third subject, press *+ Add LoRA*",
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
            "The preset *Polished* keeps more of each LoRA, and takes many times as long",
            "T5 and language models are never merged: a note says what was left out",
        ),
    ),
    Template(
        "Make a LoRA smaller",
        "Makes a LoRA's file smaller: it cuts what the LoRA's own prompts need least.",
        (_CHOOSE, "**Make it smaller**: choose the LoRA, and the rank in *size_value*"),
        ("**Compare** shows what the cut costs", _SAVED),
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
        "Merges two LoRAs of Wan 2.2 once on each of its models, and draws a video with both.",
        (
            "**High noise model**, **Low noise model**, **Load text encoder**, **Load VAE**: choose "
            "the files",
            "**Merge for high noise**: choose the LoRAs' files for high noise, in the other merge "
            "those for low noise",
            "**Prompt**: put your trigger words in",
        ),
        (
            "Two files are saved; load each at strength 1.0 on its own model",
            "In both samplers, set *cfg* and the step where the models change as you are used to",
            "Each merge has its own **Merge settings**: *noise_levels* is high in one, low in the other",
            "The merge measures at *cfg* 6; **Merge settings** changes that",
        ),
    ),
)
