// What LoRA to merge has besides its inputs: trigger words as chips, and buttons that add and take out.

import { app } from "../../scripts/app.js";
import { addBehind, takeOut } from "./chain.js";
import { draw } from "./chips.js";
import { addElement } from "./elements.js";
import { also } from "./graph.js";
import { fit, heightOf } from "./heights.js";
import { aboutLora } from "./loras.js";
import { button, keep } from "./parts.js";
import { addProgress } from "./progress_line.js";

const USUAL_HEIGHT = 76;

/** Add the chips of the chosen file, and the prompts that a run made of its trigger words. */
export function addTriggers(node, say) {
  const [name, prompts] = ["lora_name", "prompts"].map((wanted) =>
    node.widgets?.find((widget) => widget.name === wanted),
  );
  if (!name || !prompts) return;
  // the usual while out of sight
  const height = (chips) => heightOf(chips, 0) || (chips.childElementCount ? USUAL_HEIGHT : 4);
  const element = addElement(node, "triggers", height);
  const removeProgress = addProgress(node, say);
  const written = {
    get value() {
      return prompts.value;
    },
    set value(text) {
      prompts.value = text;
      keep();
    },
  };
  let chips;
  let drawn; // what they are of
  const show = async () => {
    const wanted = name.value;
    const lora = wanted ? await aboutLora(wanted) : null;
    if (name.value !== wanted) return;
    const now = JSON.stringify([wanted, lora]);
    if (now === drawn) return chips.mark(); // and they go on to tell of the last run
    drawn = now;
    chips = draw(element, lora, written, say, lora?.kind || "subject", () => fit(node));
    fit(node);
  };
  node.learnIterisFiles = show; // one may be there by now
  also(name, "callback", show);
  also(prompts, "callback", () => chips?.mark());
  also(node, "onConfigure", show);
  also(node, "onExecuted", (output) => {
    removeProgress();
    const made = output?.iteris_loras?.find((lora) => lora.name === name.value && lora.source);
    chips?.tell(made?.prompts);
  });
  show();
}

/** Add the buttons that change the chain. */
export function addButtons(node, say) {
  const element = addElement(node, "buttons", () => 42);
  const change = {
    add: () => addBehind(node, () => LiteGraph.createNode("IterISLora"), app.canvas),
    remove: (event) => {
      event.stopPropagation(); // or a node that is not there any more would be selected
      takeOut(node, app.canvas);
    },
  };
  for (const [word, act] of Object.entries(change)) {
    element.append(button(`iteris-${word}`, say(word), say(`${word}_title`), act));
  }
}
