// Loaders of LoRAs, ComfyUI's own and rgthree's, and the rows that a chain of them makes. No DOM and no ComfyUI here, so
// that `node --test` runs it.

import { changed, newRow } from "./rows_text.js";

const POWER = "Power Lora Loader (rgthree)"; // each LoRA is the value of a widget: {on, lora, strength, strengthTwo}
const LOADERS = ["LoraLoader", "LoraLoaderModelOnly", POWER];
const IDLE = [2, 4]; // modes of a node: muted, and bypassed

/** The types that go through a loader. */
export const CARRIED = ["MODEL", "CLIP"];

/** Return whether a node is a loader of LoRAs. */
export const isLoader = (node) => LOADERS.includes(node?.comfyClass);

/** Return whether a node is a loader whose file and strengths are its own, not linked. */
export const isRead = (node) => isLoader(node) && node.inputs.every(({ widget, link }) => !widget || link == null);

/** Return the input or output of a type. */
export const slotOf = (slots, type) => slots?.find((slot) => slot.type === type);

/** Return whether something comes into a node's input of a type. */
export const hasInput = (node, type) => slotOf(node.inputs, type)?.link != null;

/** Return the links that begin at a node's output of a type. */
export const linksFrom = (node, type) =>
  (slotOf(node.outputs, type)?.links ?? []).map((id) => node.graph.getLink(id)).filter(Boolean);

const takersOf = (node, type) => linksFrom(node, type).map(({ target_id: id }) => node.graph.getNodeById(id));

/** Return the loader that a node has its MODEL from. */
function before({ graph, inputs }) {
  const link = graph.getLink(slotOf(inputs, "MODEL")?.link);
  const node = link && graph.getNodeById(link.origin_id);
  return isRead(node) ? node : undefined;
}

/** Return whether something else needs what a node of a chain gives to the next one. */
function isNeeded(node, chain) {
  const later = chain.slice(chain.indexOf(node) + 1);
  const given = CARRIED.filter((type) => later.some((each) => hasInput(each, type)));
  return given.some((type) => takersOf(node, type).some((taker) => !chain.includes(taker)));
}

/**
 * Return the loaders that a node is linked with one after another, the first one in front. A chain ends where something
 * else needs what is between two of them.
 */
export function chainOf(node) {
  let chain = [node];
  for (let first = before(node); first && !chain.includes(first); first = before(first)) chain.unshift(first);
  for (;;) {
    const next = takersOf(chain.at(-1), "MODEL").find(isRead);
    if (!next || chain.includes(next)) break;
    chain.push(next);
  }
  for (;;) {
    const place = chain.findIndex((each) => isNeeded(each, chain));
    if (place < 0) return chain;
    chain = place < chain.indexOf(node) ? chain.slice(place + 1) : chain.slice(0, place + 1);
  }
}

/** Return the files that a loader loads, their strengths, and whether each is left out. */
export function loadedBy(node) {
  const value = (name) => node.widgets.find((widget) => widget.name === name)?.value;
  if (node.comfyClass !== POWER)
    return [{ file: value("lora_name"), model: value("strength_model"), clip: value("strength_clip"), isOff: false }];
  const rows = node.widgets.map((widget) => widget.value).filter((each) => each?.lora && each.lora !== "None");
  return rows.map(({ on, lora: file, strength: model, strengthTwo: clip }) => ({
    file,
    model,
    clip: clip ?? model,
    isOff: !on,
  }));
}

/** Return the rows of what a chain loads. */
export function rowsOf(chain) {
  const short = (strength) => Number(strength.toFixed(4));
  return chain.flatMap((node) =>
    loadedBy(node).map(({ file, model, clip, isOff }) => {
      const strengths = { model: short(model), clip: hasInput(node, "CLIP") ? short(clip) : 0 };
      return changed(newRow(file), strengths, isOff || IDLE.includes(node.mode));
    }),
  );
}
