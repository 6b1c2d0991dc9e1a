// Chips with a LoRA's prompts and trigger words: a click writes them into the prompts, and another takes them out.

import { button, html } from "./parts.js";
import { about, add, filled, holds, madeOf, suggestions, takenOut } from "./triggers.js";
import { say } from "./words.js";

const MOST = 12; // until all are asked for

/**
 * Draw the chips of a LoRA.
 *
 * @param {HTMLElement} element what was in it is replaced
 * @param {object|null} lora answer of `/iteris/lora`; null: there is none
 * @param {{value: string}} prompts what they are written into
 * @param {string} kind of the LoRA, "subject" or "style"
 * @param {boolean} [isPreview] whether a run measures nothing, and makes no prompts where there are none
 * @returns {() => void} to be called when the prompts have changed
 */
export function drawChips(element, lora, prompts, kind, isPreview = false) {
  element.replaceChildren();
  const empty = html("div", "iteris-filled");
  const chips = suggestions(lora ?? {}, kind).map((offered) => {
    const chip = button(`iteris-chip iteris-${offered.kind}`, offered.text, "", () => {
      if (chip.ariaDisabled === "true") return;
      const { value } = prompts;
      prompts.value = holds(value, offered) ? takenOut(value, offered) : add(value, offered);
      mark();
    });
    return [chip, offered];
  });
  const mark = () => {
    for (const [chip, offered] of chips) {
      const isUsed = holds(prompts.value, offered);
      const isPart = isUsed && takenOut(prompts.value, offered) === prompts.value; // of what the user has written
      chip.ariaPressed = String(isUsed);
      chip.ariaDisabled = String(isPart);
      chip.title = say(isPart ? "chip_there" : isUsed ? "chip_out" : "chip");
    }
    empty.textContent = isPreview ? "" : filled(prompts.value, lora);
    empty.classList.toggle("iteris-asking", !chips.length);
  };
  if (!lora) return mark;
  const facts = [madeOf(lora), about(lora)].filter(Boolean);
  const [shown, further] = [chips.slice(0, MOST), chips.slice(MOST)].map((some) => some.map(([chip]) => chip));
  const more = button("iteris-chip", say("more_words", { count: further.length }), say("more_words_title"), () => {
    more.replaceWith(...further);
    further[0].focus();
  });
  element.append(
    ...shown,
    ...(further.length ? [more] : []),
    ...facts.map((fact) => html("div", lora.error ? "iteris-warning" : "iteris-quiet", fact)),
    empty,
  );
  mark();
  return mark;
}
