// Chips with a LoRA's prompts and trigger words: a click writes them into the prompts.

import { about, add, holds, suggestions } from "./triggers.js";

/**
 * Draw the chips of a LoRA.
 *
 * @param {HTMLElement} element what was in it is replaced
 * @param {object|null} lora answer of `/iteris/lora`; null: there is none
 * @param {{value: string}} prompts the widget that they are written into
 * @param {(word: string) => string} say
 */
export function draw(element, lora, prompts, say) {
  element.replaceChildren();
  if (!lora) return;
  const mark = () => chips.forEach(([chip, offered]) => chip.classList.toggle("iteris-used", holds(prompts.value, offered)));
  const chips = suggestions(lora).map((offered) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = `iteris-chip iteris-${offered.kind}`;
    chip.textContent = offered.text;
    chip.title = say("chip");
    chip.addEventListener("click", () => {
      prompts.value = add(prompts.value, offered);
      mark();
    });
    return [chip, offered];
  });
  const line = document.createElement("div");
  line.className = lora.error ? "iteris-warning" : "iteris-quiet";
  line.textContent = about(lora);
  element.append(...chips.map(([chip]) => chip), line);
  element.onpointerenter = mark; // the prompts may have been edited by hand
  mark();
}
