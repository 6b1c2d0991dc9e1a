// What buttons change in the graph: one LoRA more after a node, one taken out with its neighbours joined, a loader that
// becomes a merge, what saves it, and a merge that becomes a loader of its file.

import { loadBeside } from "./drawing.js";
import { asOneChange, isOurs, nodesOf, saidBy, seedBy, set, showInstead, sourceOf } from "./graph.js";
import { emptiedBy, grownSince, shrinkGrown, sizesOf } from "./groups.js";
import { CARRIED, ends, join, link, linkRound, originOf, takeOutputs, takers, vaeOf } from "./links.js";
import {
  ABOVE,
  bringIntoSight,
  bringNear,
  freeBelow,
  freePlace,
  GAP,
  groupAt,
  groupRound,
  HEAD,
  LANE,
  levelWith,
  makeRoom,
  PADDING,
  PICTURES,
  putAtLeft,
  roomFor,
  shownEdges,
} from "./places.js";
import { nodeBefore, samplersAfter, textFieldBefore } from "./prompt_field.js";
import { mergedName } from "./rows_text.js";
import { lacksWords, namedIn } from "./triggers.js";

const FAR_CFG = 3; // from what suits the model; ComfyUI's own 8 is near
const LOW_CFG = 2; // what models of few steps are drawn with, such as Turbo and Lightning
const MULTIPLE = 16; // of a side of Compare's pictures
const SMALL = 0.6; // of the model's own side: measured at that, pictures would be others, and take far longer
const STEP = 64; // of Merge settings' resolution
const SEVERAL = /[{}]|__|\/[/*]/; // a prompt that is another one at each run, or has remarks
const GROUP_COLOUR = "#79b67d"; // as in our templates
const HIGH = HEAD + 34; // from a group's top down to new nodes: links go below its title
const BETWEEN = 12; // groups, as in our templates
const ROWS = 100; // of a new merge, once they are laid out, and of what is said below them
const PAGE = [16, 9]; // the shape of what is seen at once
const GROWN = "iteris_grown"; // in a merge's properties: by the ids of the groups that grew for it, their sizes before and after
export const FOR_PROMPT = "iteris_for_prompt"; // there, too: that "together" is on since a prompt names several subjects

const originsOf = (node) =>
  ends(
    node.graph,
    node.inputs.filter(({ name }) => name === "previous").map(({ link }) => link),
  );
const nodesBefore = ({ graph, inputs }) =>
  ends(
    graph,
    inputs.map(({ link }) => link),
  ).flatMap(({ outputNode }) => outputNode ?? []);
const targetsOf = (node) => ends(node.graph, node.outputs[0].links ?? []);

const mergedOf = (merge) => ({
  outputNode: merge,
  output: merge.outputs.find(({ type }) => type === "ITERIS_MERGED"),
});

const samplerAfter = (loader) => samplersAfter(loader)[0];

/** Return the text of a sampler's prompt; "": there is none, or more is done with it. */
const textBefore = (sampler, name) => textFieldBefore(sampler, name)?.value ?? "";

const positiveOf = (sampler) => (sampler && textBefore(sampler, "positive")) || "";

/** Return whether the prompt of the sampler that a loader's MODEL leads to may be another one each time. */
export const isVaried = (loader) => SEVERAL.test(positiveOf(samplerAfter(loader)));

/** Return a sampler's prompt as a line of Compare's, which draws a prompt a line; "": it is none, or another one each time. */
function lineOf(sampler) {
  const prompt = positiveOf(sampler);
  return SEVERAL.test(prompt) ? "" : prompt.trim().replace(/\s*\n\s*/g, " ");
}

/** Return how the sampler draws that a loader's MODEL leads to, in Compare's words; see `turnInto` for `loras`. */
function sampledBy(loader, loras = []) {
  const sampler = samplerAfter(loader);
  if (!sampler) return {};
  const latent = nodeBefore(sampler, "latent_image");
  const sides = latent?.comfyClass?.startsWith("Empty") ? ["width", "height"].map((name) => saidBy(latent, name)) : [];
  const [width, height] = sides.every((side) => side % MULTIPLE === 0) ? sides : [];
  const line = lineOf(sampler);
  return {
    // an empty one draws each LoRA, and all in one picture
    prompt: loras.some((lora) => lacksWords({ prompts: [line] }, lora)) ? "" : line,
    seed: seedBy(sampler, "seed") ?? seedBy(sampler, "noise_seed"),
    ...{ steps: saidBy(sampler, "steps"), cfg: saidBy(sampler, "cfg"), width, height },
    ...{ sampler: saidBy(sampler, "sampler_name"), scheduler: saidBy(sampler, "scheduler") },
    negative_prompt: textBefore(sampler, "negative"),
  };
}

/** Put a new Compare at a place; it draws as a sampler does, see `sampledBy`, or at the merge's cfg where that is the same. */
function putCompare(graph, compare, pos, { cfg, ...drawn }, measured) {
  compare.pos = pos;
  graph.add(compare);
  for (const [name, value] of Object.entries({ ...drawn, cfg: cfg === measured ? 0 : cfg }))
    if (value !== undefined) set(compare, name, value);
}

/** Return where a merge's Compare has its VAE from; undefined: it cannot have one here. */
export function comparedBy(merge) {
  return originOf(merge, "model_low_noise") ? undefined : vaeOf(merge.graph, originOf(merge, "model"));
}

function linkCover(compare, save) {
  const picture = compare.outputs.find(({ name }) => name === "merged");
  link({ outputNode: compare, output: picture }, save, "cover");
}

/** Return a title with the next number, where a graph's groups have numbers, as in "2. Merge". */
function numbered(title, { groups = [] }) {
  const numbers = groups.map((group) => Number(group.title?.match(/^(\d+)\. /)?.[1] ?? 0));
  const last = Math.max(0, ...numbers);
  return last ? `${last + 1}. ${title}` : title;
}

/** Return a name of a file, with a number where another Save of the workflow has it. */
export function freeName(name, save) {
  const names = [...nodesOf(save.graph.rootGraph)]
    .filter((other) => other !== save && other.comfyClass === save.comfyClass)
    .map((node) => saidBy(node, "file_name"));
  let free = name;
  for (let number = 2; names.includes(free); number++) free = `${name}_${String(number).padStart(2, "0")}`;
  return free;
}

/** Put a new Save of a merge at a place, whose file is called like the LoRAs, and like that of no other Save. */
function putSave(graph, save, pos, merge) {
  const name = mergedName(saidBy(merge, "loras") ?? "") ?? saidBy(save, "file_name");
  save.pos = pos;
  graph.add(save);
  set(save, "file_name", freeName(name, save));
}

/**
 * Put another LoRA after this one in the chain, below whatever is under it.
 *
 * @param {object} node whose first output is the chain
 * @param {() => object} create makes the new node
 * @param {object} canvas of the frontend
 */
export function addBehind(node, create, canvas) {
  const { graph } = node;
  asOneChange(canvas, () => {
    const next = create();
    next.pos = [node.pos[0], freeBelow(graph, node.pos[0], node.pos[0] + node.size[0])];
    next.setSize([...node.size]); // it would grow to that once its chips have come, which would be another step of Undo
    graph.add(next);
    for (const target of targetsOf(node)) join({ outputNode: next, output: next.outputs[0] }, target);
    node.connect(0, next, "previous");
  });
}

/** Take a LoRA out of the chain: what came before it goes on to where it went. */
export function takeOut(node, canvas) {
  const after = targetsOf(node);
  asOneChange(canvas, () => {
    for (const origin of originsOf(node)) for (const target of after) join(origin, target);
    node.graph.remove(node);
  });
}

/** Put a new merge in a loader's place, with its text and room to grow. */
function putMerge(merge, node) {
  const { graph } = node;
  const { value: loras } = node.widgets.find(({ name }) => name === "loras");
  const height = Math.max(merge.size[1], node.size[1]); // rows have no height yet
  const grown = height + roomFor(loras) + 2 * LANE;
  merge.pos = [...node.pos];
  merge.setSize([Math.max(merge.size[0], node.size[0]), merge.size[1]]); // else lanes beside it would be behind the loader
  makeRoom(graph, merge, height + ROWS, node, grown);
  graph.add(merge);
  set(merge, "loras", loras);
  if (node.pinned) merge.pin(true);
}

/** Link a merge to what led to the loader in its place, and to Merge settings if it is to measure at a cfg of its own. */
function linkBefore(merge, node, create, measured) {
  const atLeft = (type) => {
    const each = create(type);
    putAtLeft(node.graph, each, merge.pos, { but: node });
    return { outputNode: each, output: each.outputs[0] };
  };
  let more = originOf(node, "more_loras");
  const stacked = originOf(node, "lora_stack");
  if (stacked) {
    const stack = atLeft("IterISStack");
    link(stacked, stack.outputNode, "lora_stack");
    link(more, stack.outputNode, "previous");
    more = stack;
  }
  for (const name of ["model", "clip", "loras"]) link(originOf(node, name), merge, name);
  link(more, merge, "more_loras");
  const said = Object.entries(measured);
  if (!said.length) return;
  const settings = atLeft("IterISSettings");
  link(settings, merge, "settings");
  for (const [name, value] of said) set(settings.outputNode, name, value);
}

/** Return what Merge settings lets a merge be measured by, as its sampler draws, where that is far from what suits the model. */
function measuredBy({ cfg, width, height }, { guidance, resolution }) {
  const isFar = guidance === 1 || cfg <= LOW_CFG || Math.abs(cfg - guidance) >= FAR_CFG;
  const isOwn = cfg !== undefined && cfg !== guidance && isFar;
  const side = Math.sqrt(width * height);
  const isSmall = side <= SMALL * resolution;
  return { ...(isOwn && { cfg }), ...(isSmall && { resolution: STEP * Math.round(side / STEP) }) };
}

/** Put Merge settings at the left of a merge, and return it. */
export function addSettings(merge, create) {
  const settings = create("IterISSettings");
  putAtLeft(merge.graph, settings, merge.pos, { before: 3 * GAP });
  link({ outputNode: settings, output: settings.outputs[0] }, merge, "settings");
  return settings;
}

/** Return how far from a merge a Compare at a place is: the larger, the smaller both are seen at once. */
const apart =
  (merge, { size: [width] }, height) =>
  ([x, y]) => {
    const [left, top, , bottom] = shownEdges(merge);
    const sides = [x + width - left, Math.max(y + height, bottom) - Math.min(y, top)];
    return Math.max(...sides.map((side, axis) => side / PAGE[axis]));
  };

/** Put a Save near a new merge, and before it a Compare where a VAE is found; return them. */
function putBehind(merge, create, title, drawn, measured) {
  const { graph } = merge;
  const vae = comparedBy(merge);
  const save = create("IterISSave");
  if (!vae) {
    const place = freePlace(graph, [merge.pos[0] + merge.size[0] + GAP, merge.pos[1]], save.size);
    putSave(graph, save, place, merge);
    linkRound(mergedOf(merge), save, "merged");
    return [save];
  }
  const compare = create("IterISCompare");
  const row = graph.groups?.length ? groupAt(graph, merge.pos) : undefined;
  const level = row && merge.pos[1] - row.pos[1];
  const head = !graph.groups?.length ? 0 : HIGH < level && level < 2 * HIGH ? level : HIGH;
  const width = compare.size[0] + GAP;
  const [right, bottom] = head ? [2 * PADDING, GAP + PADDING] : [0, 0];
  const height = head + Math.max(save.size[1], compare.size[1]);
  const raised = head ? ABOVE - BETWEEN : 0; // a group has no title above it
  const beside = row
    ? [row.pos[0] + row.size[0] + 2 * LANE, row.pos[1]]
    : [merge.pos[0] + merge.size[0] + GAP, merge.pos[1] - head];
  const far = apart(merge, compare, height);
  const wanted = [width + save.size[0] + right, height + bottom - raised];
  const [left, found] = freePlace(graph, [beside[0], beside[1] + raised], wanted, PICTURES, far);
  const start = found - raised;
  const top = start + head;
  // where they stay: Nodes 2.0 of older frontends draws a node where it was added
  putSave(graph, save, [left + width, top], merge);
  putCompare(graph, compare, [left, top], drawn, measured);
  linkRound(vae, compare, "vae");
  linkRound(mergedOf(merge), compare, "merged");
  linkRound(mergedOf(merge), save, "merged");
  linkCover(compare, save);
  if (head) {
    const group = groupRound(graph, [compare, save], numbered(title, graph), {
      left: 2 * LANE - BETWEEN,
      above: head - HEAD,
    });
    group.color = GROUP_COLOUR;
    if (start === row?.pos[1]) levelWith(graph, group, row);
  }
  return [compare, save];
}

/**
 * Put a Merge LoRAs in the place of a Load LoRAs: its text, and its links as far as the merge has such sockets. Another
 * pack's stack goes through a LoRA stack, on its left. A Save merged LoRA comes near it, or the merge would be lost,
 * and between them a Compare where a VAE is found, which draws as the graph's sampler does. Where that has a cfg far from
 * what suits the model, or far smaller pictures, Merge settings lets the merge measure by them. Where its prompt names
 * several subjects, the merge measures them together. A graph that has groups gets one round Compare and Save.
 *
 * @param {object} node the loader
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 * @param {string} title of such a group
 * @param {object} known
 * @param {object} known.model answer of `/iteris/model`; {}: nothing is known
 * @param {object[]} known.loras answers of `/iteris/lora` about those of its files whose words a prompt should have
 * @param {object[]} known.subjects those of them that are subjects
 * @returns {object[]} the merge, and what comes with it
 */
export function turnInto(node, create, canvas, title, { model, loras, subjects }) {
  const { graph } = node;
  const shown = [];
  asOneChange(canvas, () => {
    const drawn = sampledBy(node, loras);
    const measured = measuredBy(drawn, model);
    const sizes = sizesOf(graph);
    const merge = create("IterISMerge");
    putMerge(merge, node);
    linkBefore(merge, node, create, measured);
    // on a model that is not known, it may be refused
    if (model.guidance !== undefined && namedIn(lineOf(samplerAfter(node)), subjects).length > 1) {
      merge.properties[FOR_PROMPT] = true;
      set(merge, "together", true);
    }
    merge.properties[GROWN] = grownSince(sizes);
    takeOutputs(merge, node);
    shown.push(merge, ...putBehind(merge, create, title, drawn, measured.cfg ?? model.guidance));
    showInstead(merge, node);
    graph.remove(node);
  });
  bringNear([...shown, ...nodesBefore(shown[0])], canvas);
  return shown;
}

/**
 * Put a Load LoRAs in the place of a merge, with its links. What hangs on the merge goes with it, unless it is pinned or
 * something else needs it, and so do the groups of what goes. Where nothing draws with the merge, see `loadBeside`.
 *
 * @param {object} merge
 * @param {string} text the loader's rows
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 * @param {object} known see `loadBeside`
 */
export function turnBack(merge, text, create, canvas, known) {
  const { graph } = merge;
  const isOwn = (node) => isOurs(node) && !node.pinned;
  const hanging = new Set(takers(graph, merge.outputs).filter(isOwn));
  const carried = [merge, ...hanging].flatMap(({ outputs }) => outputs.filter(({ type }) => CARRIED.includes(type)));
  if (!takers(graph, carried).some((taker) => !hanging.has(taker))) {
    loadBeside(merge, text, create, canvas, known);
    return;
  }
  const loader = create("IterISLoad");
  asOneChange(canvas, () => {
    loader.pos = [...merge.pos];
    graph.add(loader);
    set(loader, "loras", text);
    for (const name of ["model", "clip"]) link(originOf(merge, name), loader, name);
    const origin = originOf(merge, "loras");
    const { node: around, widget } = sourceOf(graph, origin?.link.id);
    if (around && widget) {
      link(origin, loader, "loras");
      set(around, widget, text);
    }
    if (merge.pinned) loader.pin(true);
    for (const node of [merge, ...hanging]) takeOutputs(loader, node);
    const isNeeded = ({ outputs }) => takers(graph, outputs).some((taker) => !hanging.has(taker));
    let needed;
    do {
      needed = [...hanging].find(isNeeded);
      hanging.delete(needed);
    } while (needed);
    const settings = originOf(merge, "settings")?.outputNode;
    const isItsOwn = settings?.comfyClass === "IterISSettings" && !settings.pinned;
    const isForIt = isItsOwn && takers(graph, settings.outputs).every((taker) => taker === merge);
    const leaving = [...hanging, merge, ...(isForIt ? [settings] : [])];
    showInstead(loader, merge, leaving);
    for (const group of emptiedBy(leaving, graph)) graph.remove(group);
    for (const node of leaving) {
      node.inputs.forEach((_, i) => node.disconnectInput(i)); // and the points of its links go, too
      graph.remove(node);
    }
    shrinkGrown(graph, merge.properties[GROWN]);
  });
  bringIntoSight([loader], canvas);
}

/** Put a Save merged LoRA at the right of a merge, and return it. */
export function addSave(merge, create, canvas) {
  const { graph, pos, size } = merge;
  const save = create("IterISSave");
  asOneChange(canvas, () => {
    putSave(graph, save, freePlace(graph, [pos[0] + size[0] + GAP, pos[1]], save.size), merge);
    linkRound(mergedOf(merge), save, "merged");
    bringIntoSight([save], canvas);
  });
  return save;
}

/**
 * Put a Compare at the right of a merge, which draws as the graph's sampler does; its picture is the cover of the file
 * that is saved, unless that has one.
 *
 * @param {object} merge
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 * @param {object} known see `turnInto`
 * @returns {object} it
 */
export function addCompare(merge, create, canvas, { model, loras }) {
  const { graph, pos, size } = merge;
  const vae = comparedBy(merge);
  const compare = create("IterISCompare");
  asOneChange(canvas, () => {
    const place = freePlace(graph, [pos[0] + size[0] + GAP, pos[1]], compare.size, PICTURES);
    const measured = saidBy(originOf(merge, "settings")?.outputNode, "cfg") || model.guidance;
    putCompare(graph, compare, place, sampledBy(merge, loras), measured);
    linkRound(vae, compare, "vae");
    linkRound(mergedOf(merge), compare, "merged");
    for (const taker of takers(graph, merge.outputs))
      if (taker?.comfyClass === "IterISSave" && !originOf(taker, "cover")) linkCover(compare, taker);
    bringIntoSight([compare], canvas);
  });
  return compare;
}
