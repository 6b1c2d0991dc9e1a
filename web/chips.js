// Chips with a LoRA's prompts and trigger words: a click writes them into the prompts, and another takes them out.

import { button, html } from "./parts.js";
import { about, add, filled, holds, madeOf, suggestions, takenOut } from "./triggers.js";

const MOST = 12; // until all are asked for

/**
 * Draw what a prompt lacks, see `absentFrom`: a text for each LoRA, and nothing where there is none.
 *
 * @param {HTMLElement} element what was in it is replaced
 * @param {string[]} absent
 * @param {{value: string}} prompt that a click writes into
 * @param {(word: string, values?: object) => string} say
 * @param {string} title of a chip
 * @param {(isByKey: boolean) => void} written called after a click, or a key
 */
export function drawAbsent(element, absent, prompt, say, title, written) {
  const chips = absent.map((text) =>
    button("iteris-lack", text, title, ({ detail }) => {
      prompt.value = add(prompt.value, { kind: "word", text }, true);
      written(!detail);
    }),
  );
  element.replaceChildren(...(chips.length ? [html("span", "", say("absent")), ...chips] : []));
}

/**
 * Draw the chips of a LoRA.
 *
 * @param {HTMLElement} element what was in it is replaced
 * @param {object|null} lora answer of `/iteris/lora`; null: there is none
 * @param {{value: string}} prompts the widget that they are written into
 * @param {(word: string, values?: object) => string} say
 * @param {string} kind of the LoRA, "subject" or "style"
 * @param {() => void} resized called when they have another height, as by chips that come at a click
 * @param {object} [how]
 * @param {boolean} [how.isMeasured] whether prompts are for measuring; if not, words alone are offered
 * @param {boolean} [how.isPreview] whether a run measures nothing, and makes no prompts where there are none
 * @returns {{mark: () => void, tell: (made?: string[]) => void}} to call when the prompts have changed, and after a run
 *   with the prompts that it made of the trigger words
 */
export function draw(element, lora, prompts, say, kind, resized, { isMeasured = true, isPreview = false } = {}) {
  element.replaceChildren();
  let made;
  const empty = html("div", "iteris-filled"); // one line whatever it says, so that a run does not move what is below
  const mark = () => {
    for (const [chip, offered] of chips) {
      const isUsed = holds(prompts.value, offered);
      const isPart = isUsed && takenOut(prompts.value, offered) === prompts.value; // of what the user has written
      chip.ariaPressed = String(isUsed);
      chip.ariaDisabled = String(isPart);
      chip.title = say(isPart ? "chip_there" : isUsed ? "chip_out" : isMeasured ? "chip" : "chip_prompt");
    }
    const text = isMeasured && !isPreview ? filled(prompts.value, lora, made, say) : "";
    empty.textContent = empty.title = text;
    empty.classList.toggle("iteris-asking", !chips.length);
    if (!!text === element.contains(empty)) return;
    if (text) element.append(empty);
    else empty.remove();
    resized();
  };
  const tell = (found) => {
    made = found;
    mark();
  };
  const offers = suggestions(lora ?? {}, kind).filter(({ kind }) => isMeasured || kind === "word");
  const chips = offers.map((offered) => {
    const chip = button(`iteris-chip iteris-${offered.kind}`, offered.text, "", () => {
      if (chip.ariaDisabled === "true") return;
      const { value } = prompts;
      prompts.value = holds(value, offered) ? takenOut(value, offered) : add(value, offered, !isMeasured);
      mark();
    });
    return [chip, offered];
  });
  if (!lora) return { mark, tell };
  const facts = [madeOf(lora, say), about(lora)].filter(Boolean);
  const told = facts.map((fact) => html("div", lora.error ? "iteris-warning" : "iteris-quiet", fact));
  const [shown, further] = [chips.slice(0, MOST), chips.slice(MOST)].map((some) => some.map(([chip]) => chip));
  const more = button("iteris-chip", say("more_words", { count: further.length }), say("more_words_title"), () => {
    more.replaceWith(...further);
    further[0].focus();
    resized();
  });
  element.append(...shown, ...(further.length ? [more] : []), ...told);
  mark();
  return { mark, tell };
}
