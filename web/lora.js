// What LoRA to merge has beside its inputs: trigger words as chips, and buttons that add and take out.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addBehind, takeOut } from "./chain.js";
import { draw } from "./chips.js";
import { addElement, also, fit, heightOf, progressRemover } from "./parts.js";

const USUAL_HEIGHT = 76;

async function fetchLora(name) {
  try {
    const response = await api.fetchApi(`/iteris/lora?name=${encodeURIComponent(name)}`);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // without a server there are no chips
  }
}

/** Add the chips of the chosen file, and the prompts that a run made of its trigger words. */
export function addTriggers(node, say) {
  const [name, prompts] = ["lora_name", "prompts"].map((wanted) => node.widgets?.find((widget) => widget.name === wanted));
  if (!name || !prompts) return;
  const height = (chips) => heightOf(chips, 0) || (chips.childElementCount ? USUAL_HEIGHT : 4); // the usual while out of sight
  const element = addElement(node, "triggers", height);
  const removeProgress = progressRemover(node);
  let chips;
  const show = async () => {
    const wanted = name.value;
    const lora = wanted ? await fetchLora(wanted) : null;
    if (name.value !== wanted) return;
    chips = draw(element, lora, prompts, say);
    fit(node);
  };
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
    remove: () => takeOut(node, app.canvas),
  };
  for (const [word, act] of Object.entries(change)) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `iteris-${word}`;
    button.textContent = say(word);
    button.title = say(`${word}_title`);
    button.addEventListener("click", act);
    element.append(button);
  }
}
