"""What the notes in the workflows say: what to choose, and what comes out."""

_CHOOSE = "**Load checkpoint**: an SD1.5 model"
_WORDS = "*prompts* may stay empty: they are made of the file's trigger words, which the chips show"
_SAVED = "a LoRA in *output/loras*, in every LoRA list at once"
_REPORT = (
    "In the merge node a report: 0 means a layer gives what it gives with the LoRA alone, 1 that "
    "it is as far off as the LoRA moves it"
)


def _note(does: str, choose: list[str], out: list[str]) -> str:
    steps = [
        f"{number}. {step}." for number, step in enumerate([*choose, "Press **Run**"], start=1)
    ]
    return "\n".join(
        [does, "", *steps, "", "**What comes out**", "", *(f"- {line}." for line in out)]
    )


NOTES = {
    "merge_two_loras": _note(
        "Makes one LoRA that does what two do.",
        [
            _CHOOSE,
            f"**First LoRA**, **Second LoRA**: made for SD1.5. {_WORDS}. For three or more press *+ "
            "add another LoRA*",
            "**Prompt**: put trigger words of both where it says so",
        ],
        [_SAVED[0].upper() + _SAVED[1:], "A picture made with it", _REPORT],
    ),
    "character_and_style": _note(
        "A character drawn in a style, from one LoRA of each.",
        [
            _CHOOSE,
            "**Character**, **Style**: their LoRAs",
            "**The character in the style**: name the style's LoRA and how a prompt asks for it, "
            "as *second: in demo2 style*",
            "**Prompt**: the same words",
        ],
        [
            f"One LoRA of both: {_SAVED}",
            "A picture made with it",
            _REPORT,
            "Plots of it in **Merge report**",
        ],
    ),
    "three_concepts": _note(
        "Three subjects that can appear in one picture.",
        [
            _CHOOSE,
            "The three **concepts**: their LoRAs",
            "**All in one picture**: what each of them is called, one per line, as *first: a "
            "demo1*",
            "**Prompt**: the same words",
        ],
        [f"One LoRA of the three: {_SAVED}", "A picture made with it", _REPORT],
    ),
    "reduce_rank": _note(
        "Makes a LoRA's file smaller; what is cut is what its own prompts need least.",
        [
            _CHOOSE,
            f"**LoRA to make smaller**. {_WORDS}",
            "**Cut to a lower rank**: the rank, or a size in MB instead",
        ],
        [
            f"The smaller LoRA: {_SAVED}",
            "What the cut costs, block by block",
            "A picture made with it",
        ],
    ),
    "compare_grid": _note(
        "Merges two LoRAs and shows what that does, beside all else one could do.",
        [
            _CHOOSE,
            "**First LoRA**, **Second LoRA**, and the same files in **… alone** and **Both "
            "stacked**",
            "The five **Prompts**: the same text in each, with trigger words of both",
        ],
        [
            "Five pictures of one seed: base model, each LoRA alone, both stacked, the merge",
            f"The merge: {_SAVED}",
            _REPORT,
        ],
    ),
    "from_lora_stack": _note(
        "Merges the LoRAs of a stack, or of a text.",
        [
            _CHOOSE,
            "**LoRAs of a text or a stack**: connect any LORA_STACK, or write `<lora:name:1.0>` as "
            "in a prompt",
        ],
        [
            f"One LoRA instead of the stack: {_SAVED}",
            "The same as a LORA_STACK, for nodes that take one; the text shows what is in it",
            _REPORT,
        ],
    ),
    "loras_on_model": _note(
        "Merges the LoRAs that a model already carries: put it behind the LoRA loaders of your own "
        "workflow.",
        [_CHOOSE, "Your **LoRA loaders**, as many as you like"],
        [f"One LoRA instead of them: {_SAVED}", "A picture made with it", _REPORT],
    ),
    "from_recipe": _note(
        "Makes a merge again, from the recipe inside its file, with another rank.",
        [
            _CHOOSE,
            "**How it was made**: a LoRA that *Save merged LoRA* has saved; the LoRAs it was made "
            "of must be there",
        ],
        [f"The LoRA made anew: {_SAVED}", "The recipe's settings as text", _REPORT],
    ),
    "train_and_merge": _note(
        "Trains a LoRA on pictures with ComfyUI's own node, and merges it with another one at "
        "once.",
        [
            _CHOOSE,
            "The **pictures to learn**, and **Its caption**; in **The trained LoRA** the same "
            "words as prompts",
            "**Another LoRA**",
            "**Prompt**: words of both",
        ],
        [f"One LoRA of both: {_SAVED}", "A picture made with it", _REPORT],
    ),
}
