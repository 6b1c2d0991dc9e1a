// What LoRA to merge has besides its inputs: the trigger words of its file as chips.

import { drawChips } from "./chips.js";
import { addPanel, noteChange } from "./frame.js";
import { also } from "./graph.js";
import { aboutLora } from "./loras.js";

const HEIGHT = 90;

/** Add the chips of the chosen file. */
export function addTriggers(node) {
  const [name, prompts] = ["lora_name", "prompts"].map((wanted) =>
    node.widgets?.find((widget) => widget.name === wanted),
  );
  if (!name || !prompts) return;
  const element = addPanel(node, "triggers", HEIGHT);
  const written = {
    get value() {
      return prompts.value;
    },
    set value(text) {
      prompts.value = text;
      noteChange();
    },
  };
  let mark = () => {};
  const show = async () => {
    const wanted = name.value;
    const lora = wanted ? await aboutLora(wanted) : null;
    if (name.value === wanted) mark = drawChips(element, lora, written, lora?.kind ?? "subject");
  };
  also(name, "callback", show);
  also(prompts, "callback", () => mark());
  also(node, "onConfigure", show);
  show();
}
