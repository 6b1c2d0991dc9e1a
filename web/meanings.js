// Values of widgets that mean "as something else says", shown in words: on the canvas by the widget, in Vue nodes, which
// have no say in it, by a style sheet.

const MEANINGS = {
  IterISCompare: { cfg: [0, "auto"], width: [0, "auto"], height: [0, "auto"] },
  IterISSettings: {
    sample_runs: [0, "by_preset"],
    check_runs: [-1, "by_preset"],
    polish_steps: [-1, "by_preset"],
    resolution: [0, "auto"],
    cfg: [0, "auto"],
    frames: [0, "auto"],
  },
};
const EMPTY = { IterISCompare: ["prompt", "own_prompts"] }; // the first text of its node
const LOOK = "position: absolute; top: 50%; transform: translateY(-50%); pointer-events: none";

/** Return the word for such a value of Merge settings that it has at first; undefined: it has none. */
export const meaningOf = (setting) => MEANINGS.IterISSettings[setting]?.[1];

/** Return the word for what a value of a node's input means; undefined: it has none. */
export function wordOf(type, input, value) {
  const [number, word] = MEANINGS[type]?.[input] ?? [];
  return value === number ? word : undefined;
}

/** Let a node's widgets show words for such values on the canvas. */
export function showMeanings(node, say) {
  const [text, own] = EMPTY[node.comfyClass] ?? [];
  const field = node.widgets.find((each) => each.name === text)?.element;
  if (field) field.placeholder = `${text} (${say(own)})`;
  for (const [name, [number, word]] of Object.entries(MEANINGS[node.comfyClass] ?? {})) {
    const widget = node.widgets.find((each) => each.name === name);
    if (!widget) continue;
    const own = Object.getPrototypeOf(widget);
    const shown = () => Reflect.get(own, "_displayValue", widget); // "" where a link gives the number
    const get = () => (widget.value === number && shown() ? say(word) : shown());
    Object.defineProperty(widget, "_displayValue", { configurable: true, get });
  }
}

/** Return a style sheet by which Vue nodes show words for such values, unless they are being written, or a link gives them. */
export function meaningsStyle(say) {
  const texts = Object.entries(EMPTY).map(
    ([type, [, word]]) =>
      `.lg-node:has([data-of="${type}"]) label:not(.lg-node :has(textarea) ~ * *)::after { content: " (${say(word)})"; }`,
  );
  const numbers = Object.entries(MEANINGS).flatMap(([type, names]) =>
    Object.entries(names).map(([name, [number, word]]) => {
      const field = `input[aria-valuenow="${number}"]:not(:focus, :disabled)`;
      const node = `.lg-node:has([data-of="${type}"])`;
      // the name is around the field, or in older frontends, which have a button on its left, the field's own
      return [
        [`${node} [aria-label="${name}"] :has(> ${field})`, "left: 4px"],
        [`${node} :has(> ${field}[aria-label="${name}"])`, "left: 42px; font-size: 14px"],
      ]
        .map(
          ([at, look]) =>
            `${at} > input { color: transparent; } ${at}::after { content: "${say(word)}"; ${LOOK}; ${look}; }`,
        )
        .join("\n");
    }),
  );
  return [...texts, ...numbers].join("\n");
}
