// What a LoRA's file is: its picture large, and below it what it is for and its words; on a row, where the pointer rests.

import { canPopUp, html, imageAt, putBeside } from "./parts.js";
import { about, madeOf, wordsOf } from "./triggers.js";
import { say } from "./words.js";

const REST = 300; // milliseconds on a row, before its file is shown
const WORDS = 25; // of a file
const GAP = 10; // pixels between the node and what is shown beside it
let hide = () => {}; // what is shown, or about to be

/** Show nothing more of what is pointed at. */
export const endPeek = () => hide();

/**
 * Return the parts that show a file.
 *
 * @param {object} file
 * @param {string} file.name
 * @param {string[]} file.doubts what is wrong with it
 * @param {boolean} [file.isUsable] in spite of that
 * @param {object|null} [file.lora] answer of `/iteris/lora`, if there is one
 * @param {string} [file.picture] its address
 */
export function face({ name, doubts, isUsable, lora, picture }) {
  const words = wordsOf(lora ?? {});
  const lines = [
    ["iteris-whole", name],
    ...doubts.map((doubt) => [isUsable ? "iteris-fitting" : "iteris-warning", doubt]),
    ["iteris-quiet", madeOf(lora ?? {})],
    ["iteris-quiet", lora && !lora.error ? about(lora) : ""],
    ["", words.slice(0, WORDS).join(", ")],
    ["iteris-quiet", words.length > WORDS ? say("more_words", { count: words.length - WORDS }) : ""],
  ];
  return [
    ...(picture ? [imageAt(picture)] : []),
    ...lines.filter(([, text]) => text).map(([className, text]) => html("div", className, text)),
  ];
}

/**
 * Show something beside a node where the pointer rests on a part of it, out of the way of what can be clicked, until the
 * pointer leaves that part, a button or a key is pressed, a list opens, or the canvas moves.
 *
 * @param {HTMLElement} element the part
 * @param {HTMLElement} beside what is not covered
 * @param {() => HTMLElement[]} draw returns what is shown
 */
export function peek(element, beside, draw) {
  element.addEventListener("pointerenter", ({ pointerType, buttons }) => {
    if (pointerType === "touch" || buttons || !canPopUp()) return;
    hide();
    const card = html("div", "iteris-peek");
    card.popover = "manual";
    const end = new AbortController();
    const show = () => {
      if (!element.isConnected || document.querySelector(".iteris-choice")) return hide();
      card.append(...draw());
      document.body.append(card);
      card.showPopover();
      // as high as the part
      const place = () => putBeside(card, 0, beside.getBoundingClientRect(), GAP, element.getBoundingClientRect().top);
      place();
      card.addEventListener("load", place, { capture: true }); // of its picture
    };
    const waiting = setTimeout(show, REST);
    const { signal } = end;
    hide = () => {
      clearTimeout(waiting);
      card.remove();
      end.abort();
    };
    element.addEventListener("pointerleave", hide, { signal });
    for (const type of ["pointerdown", "keydown", "wheel"]) addEventListener(type, hide, { capture: true, signal });
    // a part that is taken out of the page is never left
    addEventListener("pointermove", () => element.isConnected || hide(), { capture: true, signal });
  });
}
