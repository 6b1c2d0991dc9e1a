"""The notes in the workflows: what a workflow does, what to choose, and what comes out."""

_CHOOSE = "**Load checkpoint**: choose your model"
_SIZE = "**Picture size**: 1024 suits SDXL and newer models. For SD1.5 write 512"
_ROWS = (
    "**Merge LoRAs**: write your LoRAs in the place of *first* and *second*, one a line. If a file "
    "names no trigger words, write prompts behind it: `<lora:name:1> | a photo of sks dog`"
)
_TURBO = (
    "For a turbo, Lightning or LCM model connect **Merge settings**, and write a *cfg* of 1 there "
    "and into the sampler"
)
_SAVED = "a LoRA in *output/loras*, which is in every LoRA list at once. Load it at strength 1.0"
_REPORT = (
    "A report on the merge node. It says first what was kept of each LoRA, good, weak or lost, and "
    "what to do about it"
)
_TIME = (
    "A merge of two LoRAs takes as many passes through the model as about 13 pictures of 20 steps. "
    "To save time, choose *Fast*"
)


def _note(does: str, choose: list[str], out: list[str]) -> str:
    steps = [
        f"{number}. {step}." for number, step in enumerate([*choose, "Press **Run**"], start=1)
    ]
    return "\n".join(
        [does, "", *steps, "", "**What comes out**", "", *(f"- {line}." for line in out)]
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


NOTES = {
    "merge_two_loras": _note(
        "Makes one LoRA that does what two LoRAs do.",
        [
            _CHOOSE,
            _ROWS,
            "**Prompt**: write trigger words of both LoRAs",
            _SIZE,
        ],
        [_sentence(_SAVED), "A picture made with it", _REPORT, _TIME, _TURBO],
    ),
    "merge_two_loras_transformer": _note(
        "Makes one LoRA of two for a model that is loaded in parts, here Flux.1.",
        [
            "**Load diffusion model**, **Load text encoders**, **Load VAE**: choose the files. For "
            "Z-Image, Qwen-Image, Chroma and others put *Load CLIP* with the type of your model in "
            "the place of **Load text encoders**, and write a *cfg* into the sampler as you are "
            "used to",
            f"{_ROWS}. If one changes T5 or a language model, write `<lora:name:1:0>`",
            "**Prompt**: write trigger words of both LoRAs",
        ],
        [
            _sentence(_SAVED),
            "A picture made with it",
            _REPORT,
            _TIME,
        ],
    ),
    "character_and_style": _note(
        "Draws a character in a style, from one LoRA of each.",
        [
            _CHOOSE,
            "**Merge LoRAs**: write your LoRAs in the place of *first*, the character, and *second*, "
            "the style. *{trigger}* stands for its trigger words. If its file names none, write how "
            "a prompt asks for this style",
            "**Prompt**: write the same words and those of the character",
            _SIZE,
        ],
        [
            f"One LoRA of both: {_SAVED}",
            "A picture made with it",
            _REPORT,
            "Pictures of the report in **Merge report**",
        ],
    ),
    "three_concepts": _note(
        "Merges three subjects so that they can appear in one picture. For SD1.5 and SDXL.",
        [
            _CHOOSE,
            "**Merge LoRAs**: write your LoRAs in the place of *first*, *second* and *third*. What "
            "stands behind *called* is what a prompt calls its subject. *{trigger}* stands for its "
            "trigger words. If a file names none, write the words, such as *a sks dog*",
            "**Prompt**: write the same words",
            _SIZE,
        ],
        [f"One LoRA of the three: {_SAVED}", "A picture made with it", _REPORT],
    ),
    "reduce_rank": _note(
        "Makes a LoRA's file smaller. It cuts what the LoRA's own prompts need least.",
        [
            _CHOOSE,
            "**Cut to a lower rank**: write your LoRA in the place of *first*, and the rank into "
            "*size_value*. Or set *size* to MB",
            _SIZE,
        ],
        [
            f"The smaller LoRA: {_SAVED}",
            "What the cut costs, block by block",
            "A picture made with it",
        ],
    ),
    "compare_grid": _note(
        "Merges two LoRAs and draws the result beside what else you could do.",
        [
            _CHOOSE,
            f"{_ROWS}. Choose the same files in **First LoRA alone**, **Second LoRA alone** and "
            "**Both stacked**",
            "The five **Prompts**: write the same text into each, with trigger words of both LoRAs",
            _SIZE,
        ],
        [
            "Five pictures from one seed: base model, each LoRA alone, both stacked, the merge",
            f"The merge: {_SAVED}",
            _REPORT,
        ],
    ),
    "from_lora_stack": _note(
        "Merges the LoRAs of a stack or of a text.",
        [
            _CHOOSE,
            "**LoRAs of a text or a stack**: connect any LORA_STACK, or write `<lora:name:1.0>`, "
            "one a line",
        ],
        [
            f"One LoRA instead of the stack: {_SAVED}",
            "The same LoRA as a LORA_STACK, for nodes that take one. The text shows what is in it",
            _REPORT,
        ],
    ),
    "loras_on_model": _note(
        "Merges the LoRAs that a model already carries. Put it behind the LoRA loaders of your own "
        "workflow.",
        [_CHOOSE, "Your **LoRA loaders**: as many as you like", _SIZE],
        [f"One LoRA instead of them: {_SAVED}", "A picture made with it", _REPORT],
    ),
    "from_recipe": _note(
        "Makes a merge again, from the recipe inside its file, with another rank.",
        [
            _CHOOSE,
            "**How it was made**: choose a LoRA that *Save merged LoRA* has saved. The LoRAs from "
            "which it was made must still be there",
        ],
        [f"The new LoRA: {_SAVED}", "The settings of the recipe as text", _REPORT],
    ),
    "train_and_merge": _note(
        "Trains a LoRA on pictures with ComfyUI's own node, and merges it with another LoRA.",
        [
            _CHOOSE,
            "**First picture to learn**, **Second picture to learn**: choose them",
            "**Its caption**: describe them. Write the same words into the prompts of **The "
            "trained LoRA**",
            "**Merge LoRAs**: write another LoRA in the place of *first*",
            "**Prompt**: write words of both LoRAs",
            _SIZE,
        ],
        [f"One LoRA of both: {_SAVED}", "A picture made with it", _REPORT],
    ),
}
