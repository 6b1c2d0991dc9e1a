// Loaders of single LoRAs, ComfyUI's own and another pack's: what their menus offer, which makes rows or a merge of a chain
// of them.

import { app } from "../../scripts/app.js";
import { also, asOneChange, set, showInstead } from "./graph.js";
import { ends, link, originOf, takeOutputs, takers } from "./links.js";
import { areTooFew, knownOf, mergeNow } from "./merge.js";
import { tell } from "./parts.js";
import { bringIntoSight, makeRoom } from "./places.js";
import { canName, changed, newRow, writtenRows } from "./rows_text.js";

const POWER = "Power Lora Loader (rgthree)"; // each LoRA is the value of a widget: {on, lora, strength, strengthTwo}
const LOADERS = ["LoraLoader", "LoraLoaderModelOnly", POWER];
const IDLE = [2, 4]; // modes of a node: muted, and bypassed
const ROW = 26; // its height, before rows are laid out

const slotOf = (slots, type) => slots?.find((slot) => slot.type === type);
const isLoader = (node) => LOADERS.includes(node?.comfyClass);

/** Return whether a node is such a loader, and no other node says what it loads. */
const isRead = (node) => isLoader(node) && node.inputs.every(({ widget, link }) => !widget || link == null);

const hasClip = ({ inputs }) => slotOf(inputs, "CLIP")?.link != null;
const takersOf = (node, type) => takers(node.graph, [slotOf(node.outputs, type)].filter(Boolean));

/** Return whether all of an output of each node goes to the next one. */
const isWhole = (nodes, type) =>
  nodes.slice(1).every((next, at) => {
    const [taker, ...others] = takersOf(nodes[at], type);
    return taker === next && !others.length && originOf(next, slotOf(next.inputs, type).name).outputNode === nodes[at];
  });

/** Return whether loaders, in their order, may be one: nothing else has what is between them. */
const isChain = (nodes) => nodes.every(isRead) && isWhole(nodes, "MODEL") && isWhole(nodes.filter(hasClip), "CLIP");

const before = ([first]) => originOf(first, "model")?.outputNode;
const after = (nodes) => takersOf(nodes.at(-1), "MODEL")[0];

/** Return the loaders that a node is one of, the one that comes first in front. */
function chainOf(node) {
  let chain = [node];
  for (let longer = chain; isChain(longer); longer = [before(chain), ...chain]) chain = longer;
  for (let longer = chain; isChain(longer); longer = [...chain, after(chain)]) chain = longer;
  return chain;
}

/** Return what a loader loads: the file, its strengths, and whether it is left out. */
function loadedBy(node) {
  const value = (name) => node.widgets.find((widget) => widget.name === name)?.value;
  if (node.comfyClass !== POWER)
    return [{ file: value("lora_name"), model: value("strength_model"), clip: value("strength_clip") }];
  const rows = node.widgets.map((widget) => widget.value).filter((each) => each?.lora && each.lora !== "None");
  return rows.map(({ on, lora: file, strength: model, strengthTwo: clip }) => {
    return { file, model, clip: clip ?? model, isOff: !on };
  });
}

/** Return the rows of what a loader loads. */
function rowsOf(node) {
  const short = (strength) => Number(strength.toFixed(4));
  return loadedBy(node).map(({ file, model, clip, isOff }) => {
    const strengths = { model: short(model), clip: hasClip(node) ? short(clip) : 0 };
    return changed(newRow(file), strengths, !!isOff || IDLE.includes(node.mode));
  });
}

/** Return the one CLIP that a graph's texts are encoded with; undefined: there are several, or none. */
function clipOf(graph) {
  const encoders = graph.nodes.filter(({ outputs }) => slotOf(outputs, "CONDITIONING"));
  const origins = ends(
    graph,
    encoders.map(({ inputs }) => slotOf(inputs, "CLIP")?.link),
  );
  const of = ({ link }) => `${link.origin_id} ${link.origin_slot}`;
  return new Set(origins.map(of)).size === 1 ? { ...origins[0], link: undefined } : undefined;
}

/** Put a Load LoRAs in the place of a chain's first loader, with its links, and return it. */
function intoRows(chain, text) {
  const [first] = chain;
  const { graph } = first;
  const loader = LiteGraph.createNode("IterISLoad");
  const clipped = chain.filter(hasClip);
  asOneChange(app.canvas, () => {
    loader.pos = [...first.pos];
    loader.setSize([Math.max(loader.size[0], first.size[0]), loader.size[1]]);
    const nodes = graph.nodes.filter((node) => node === first || !chain.includes(node));
    makeRoom({ nodes, groups: graph.groups }, loader, loader.size[1] + ROW * text.split("\n").length, first);
    graph.add(loader);
    set(loader, "loras", text);
    link(originOf(first, "model"), loader, "model");
    link(clipped.length ? originOf(clipped[0], "clip") : clipOf(graph), loader, "clip");
    for (const node of [...clipped.slice(-1), chain.at(-1)]) takeOutputs(loader, node);
    if (chain.some(({ pinned }) => pinned)) loader.pin(true);
    showInstead(loader, first, chain);
    for (const node of chain) {
      node.inputs.forEach((_, i) => node.disconnectInput(i)); // and the points of its links go, too
      graph.remove(node);
    }
  });
  return loader;
}

/** Make rows of a chain, and a merge of these, or say why not. */
async function take(node, say, isMerged) {
  const chain = chainOf(node);
  const entries = chain.flatMap(rowsOf);
  const unnamed = chain.flatMap(loadedBy).find(({ file }) => !canName(file));
  if (unnamed) return void tell(say("not_in_rows"), say("no_row_name", { name: unnamed.file }));
  if (isMerged && areTooFew(entries.filter(({ isOff }) => !isOff).length, say)) return;
  const isMore = [before(chain), after(chain)].some(isLoader);
  const text = writtenRows(entries);
  const known = isMerged ? await knownOf(chain[0], text) : undefined;
  if (!chain.every(({ graph }) => graph)) return; // or it was chosen twice
  asOneChange(app.canvas, () => {
    const loader = intoRows(chain, text);
    if (isMerged) mergeNow(loader, known, say);
    else bringIntoSight([loader], app.canvas);
  });
  if (isMore) tell(say("loaders_left"), say("loaders_left_rest"));
}

/** Let the menu of a loader of single LoRAs offer what makes rows, or a merge, of it and those that it is linked with. */
export function offerRows(node, say) {
  if (!isLoader(node)) return;
  also(node, "getExtraMenuOptions", (_, options) => {
    if (!isRead(node) || !loadedBy(node).length) return;
    const item = (word, isMerged) => ({ content: say(word), callback: () => take(node, say, isMerged) });
    options.unshift(item("merge_loaders", true), item("into_rows", false), null);
  });
}
