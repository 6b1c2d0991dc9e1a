// Which LoRAs fit a merge. No DOM and no ComfyUI here, so that `node --test` runs it.

/**
 * Say of each LoRA whether it fits the others, and the model.
 *
 * @param {string[]} families of the LoRAs' files; "": nothing tells
 * @param {string[]} fits families whose LoRAs fit the model; none: nothing tells
 * @returns {string[]} "": it fits, as far as is known; "unfit": it is for another model; "odd": it is for another one
 *   than most
 */
export function strangers(families, fits) {
  if (fits.length) return families.map((family) => (family && !fits.includes(family) ? "unfit" : ""));
  const count = (wanted) => families.filter((family) => family === wanted).length;
  const known = families.filter(Boolean);
  const most = Math.max(0, ...known.map(count));
  const usual = new Set(known.filter((family) => count(family) === most));
  const isUsual = (family) => usual.size === 1 && usual.has(family);
  return families.map((family) => (family && !isUsual(family) ? "odd" : ""));
}

/**
 * Return which files can be offered for a model: those that fit it, up to the first of which nothing is known yet. So
 * nothing is offered that would be taken back, and what is offered stays in its order. Those that cannot be read come
 * last.
 *
 * @param {string[]} names of the files
 * @param {string[]} fits families whose LoRAs fit the model; none: nothing tells, and all are offered
 * @param {(name: string) => string|undefined} familyOf "": nothing tells; undefined: it is not known yet
 * @param {(name: string) => boolean} isWhole whether it can be read, as far as is known
 * @returns {{offered: string[], unread: string[]}} and those that may still come, from that first one on
 */
export function offer(names, fits, familyOf, isWhole) {
  const ordered = (some) => [...some.filter(isWhole), ...some.filter((name) => !isWhole(name))];
  if (!fits.length) return { offered: ordered(names), unread: [] };
  const first = names.findIndex((name) => familyOf(name) === undefined);
  const mayFit = (name) => [undefined, "", ...fits].includes(familyOf(name));
  const known = first < 0 ? names.length : first;
  return { offered: ordered(names.slice(0, known).filter(mayFit)), unread: names.slice(known).filter(mayFit) };
}

/**
 * Say of each LoRA whether it is there a second time.
 *
 * @param {string[]} keys what tells LoRAs apart; "": one that does not count
 * @returns {boolean[]}
 */
export function repeated(keys) {
  return keys.map((key) => !!key && keys.indexOf(key) !== keys.lastIndexOf(key));
}

/**
 * Say of each LoRA whether it, or one that it is a merge of, is in another one, too: the first of these.
 *
 * @param {{file?: string, parts: string[]}[]} loras files, and those that each is a merge of; without one: it does not
 *   count
 * @returns {({lora: string, other: string}|undefined)[]}
 */
export function within(loras) {
  return loras.map(({ file, parts }) => {
    const others = loras.filter((other) => file && other.file && other.file !== file);
    const found = others.flatMap((other) =>
      [file, ...parts].filter((lora) => other.parts.includes(lora)).map((lora) => ({ lora, other: other.file })),
    );
    return found[0];
  });
}
