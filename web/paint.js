// How tasks are told apart. No DOM and no ComfyUI here, so that `node --test` runs it.

// Okabe and Ito's palette, without the yellow that light themes swallow and the grey of the rest
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"];
const KINDS = ["solid", "hollow", "dashed"];

/** Return a task's colour, and how it is filled: when the colours are used up, they come again hollow, then dashed. */
export function paintOf(task) {
  return { colour: COLOURS[task % COLOURS.length], kind: KINDS[Math.floor(task / COLOURS.length) % KINDS.length] };
}
