// LoRAs in a chain: one more after a node, a node taken out with its neighbours joined, a loader that becomes a merge, what
// saves it, and a merge that becomes a loader of its file.

import { nodesOf } from "./graph.js";

const GAP = 60;
const ROOM = 340; // for the report of a merge, and its times
const TITLE = 30; // of a node, above its place
const LAID_OUT = 10; // frames until nodes have their heights in Nodes 2.0, and their places in older ones
const PADDING = 10; // of a group
const LANE = 20; // between links side by side, and from them to nodes
const BADGE = 12; // above a node's title
const EDGE = 20; // of the screen, round what is brought into sight
const LOW_CFG = 2; // what models of few steps are drawn with, such as Turbo and Lightning
const MULTIPLE = 16; // of a side of Compare's pictures
const CARRIED = ["MODEL", "CLIP", "LORA_STACK"];
const SAMPLERS = ["KSampler", "KSamplerAdvanced"];

/** Return where links begin and end: at a node's slot, or at a slot of the subgraph that the nodes are in. */
function ends(graph, ids) {
  return ids
    .map((id) => graph.getLink(id))
    .filter(Boolean)
    .map((link) => link.resolve(graph));
}

const originsOf = (node) =>
  ends(
    node.graph,
    node.inputs.filter(({ name }) => name === "previous").map(({ link }) => link),
  );
const targetsOf = (node) => ends(node.graph, node.outputs[0].links ?? []);

/**
 * Link the place where one link began to the place where another ended, instead of that other, and by the points that one
 * of them went through.
 */
function join({ link: before, outputNode, output, subgraphInput }, { link: after, inputNode, input, subgraphOutput }) {
  const place = inputNode?.inputs.indexOf(input);
  const through = after?.parentId ?? before?.parentId;
  if (subgraphOutput && outputNode) subgraphOutput.connect(output, outputNode, through);
  else if (inputNode && outputNode) outputNode.connect(outputNode.outputs.indexOf(output), inputNode, place, through);
  else if (inputNode && subgraphInput) {
    inputNode.disconnectInput(place, true);
    subgraphInput.connect(input, inputNode, through);
  } // a subgraph's input straight to its output: the frontend has no such link
}

/** Lead a link through more points before its end, so that it passes nodes and not behind them. */
function lead(graph, { link }, points) {
  points.reduceRight((next, point) => {
    const through = graph.createReroute(point, next);
    through.floatingLinkIds.delete(link); // it takes the link for one without an end, too, and would stay without it
    return through;
  }, graph.getLink(link));
}

const slotHeight = (node, slot) => node.getOutputPos(node.outputs.indexOf(slot))[1];

const mergedOf = (merge) => ({
  outputNode: merge,
  output: merge.outputs.find(({ type }) => type === "ITERIS_MERGED"),
});

/** Return the first lane from a place on that a link can go down by: no other link has it, and no node but one covers it. */
function freeLane(graph, x, step, top, bottom, but) {
  const points = [...graph.reroutes.values()];
  const covers = (node, at) => {
    const [left, start, right, end] = edgesOf(node);
    return node !== but && left < at && at < right && start < bottom && top < end;
  };
  const isTaken = (at) =>
    points.some(({ pos }) => Math.abs(pos[0] - at) < LANE / 2) || graph.nodes.some((node) => covers(node, at));
  while (isTaken(x)) x += step;
  return x;
}

/** Return the way of a link from a merge to a node that is lower at its right: between the merge and what is beside it. */
function wayDown(merge, { pos }) {
  const top = slotHeight(merge, mergedOf(merge).output) + LANE;
  const bottom = pos[1] - TITLE - BADGE - LANE / 2;
  const x = freeLane(merge.graph, merge.pos[0] + merge.size[0] + LANE, LANE / 2, top, bottom);
  return [
    [x, top],
    [x, bottom],
  ];
}

const originOf = (node, name) => ends(node.graph, [node.inputs.find((input) => input.name === name)?.link])[0];

/** Link an origin, if there is one, to a node's input, through points. */
function link(origin, target, name, ...points) {
  const input = target.inputs.find((each) => each.name === name);
  if (!origin) return;
  join(origin, { inputNode: target, input });
  lead(target.graph, input, points);
}

/** Let a node have the links of another one's outputs of `CARRIED` types, as far as it has such outputs. */
function takeOutputs(taker, taken) {
  for (const { type, links } of taken.outputs) {
    const output = CARRIED.includes(type) && taker.outputs.find((each) => each.type === type);
    if (output) for (const target of ends(taken.graph, links ?? [])) join({ outputNode: taker, output }, target);
  }
}

/** Set a widget as a user does, of a node in the graph: before, newer frontends may put back what its id had. */
function set(node, name, value) {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
}

/** Return what a widget says; undefined: there is none, or a link says it. */
function saidBy(node, name) {
  if (node?.inputs.some(({ widget, link: id }) => widget?.name === name && id != null)) return undefined;
  return node?.widgets?.find((widget) => widget.name === name)?.value;
}

/** Return how the sampler draws that a loader's MODEL leads to, in Compare's words. */
function sampledBy(loader) {
  const models = ends(loader.graph, loader.outputs.find(({ type }) => type === "MODEL").links ?? []);
  const sampler = models.map(({ inputNode }) => inputNode).find((node) => SAMPLERS.includes(node?.comfyClass));
  if (!sampler) return {};
  const [latent, negative] = ["latent_image", "negative"].map((name) => originOf(sampler, name)?.outputNode);
  const sides = latent?.comfyClass?.startsWith("Empty") ? ["width", "height"].map((name) => saidBy(latent, name)) : [];
  const [width, height] = sides.every((side) => side % MULTIPLE === 0) ? sides : [];
  return {
    ...{ steps: saidBy(sampler, "steps"), cfg: saidBy(sampler, "cfg"), width, height },
    ...{ sampler: saidBy(sampler, "sampler_name"), scheduler: saidBy(sampler, "scheduler") },
    negative_prompt: negative?.comfyClass === "CLIPTextEncode" ? saidBy(negative, "text") : undefined,
  };
}

/** Put a new Save at a place, whose file is called like that of no other one. */
function putSave(graph, save, pos) {
  const name = saidBy(save, "file_name");
  const names = [...nodesOf(graph.rootGraph)]
    .filter(({ comfyClass }) => comfyClass === save.comfyClass)
    .map((node) => saidBy(node, "file_name"));
  let free = name;
  for (let number = 2; names.includes(free); number++) free = `${name}_${String(number).padStart(2, "0")}`;
  save.pos = pos;
  graph.add(save);
  set(save, "file_name", free);
}

/** Do what Undo takes back in one step. */
function asOneChange(canvas, change) {
  canvas.emitBeforeChange();
  try {
    change();
  } finally {
    canvas.emitAfterChange();
  }
}

/** Return below which height no node, or none of other things, lies between two edges, but for one node. */
function freeBelow(graph, left, right, but = undefined, things = graph.nodes) {
  const above = things.filter((each) => each !== but && each.pos[0] < right && left < each.pos[0] + each.size[0]);
  return Math.max(...above.map(({ pos, size }) => pos[1] + size[1])) + GAP;
}

/** Return where a node of a width has room, from a height on; see `freeBelow`. */
const placeIn = (graph, left, width, top, but) => [left, Math.max(top, freeBelow(graph, left, left + width, but))];

const edgesOf = ({ pos, size }) => [pos[0], pos[1] - TITLE, pos[0] + size[0], pos[1] + size[1]];

function meet(one, other) {
  const [a, b] = [one, other].map(edgesOf);
  return [0, 1].every((axis) => a[axis] < b[axis + 2] && b[axis] < a[axis + 2]);
}

/**
 * Move nodes out of the way of one that takes another one's place: to the right what was at its right, else down. What
 * would cover a pinned node goes below that. Groups go on to hold what they held, and to end at one height.
 *
 * @param {object} graph which does not have the new node yet
 * @param {object} taker the new node
 * @param {number} height that it needs
 * @param {object} taken the old one
 */
function makeRoom(graph, taker, height, taken) {
  const right = taken.pos[0] + taken.size[0];
  const held = (graph.groups ?? []).map((group) => [group, graph.nodes.filter((node) => isHeld(node, group))]);
  const wide = { pos: taker.pos, size: [taker.size[0], height] };
  const moving = [wide];
  for (const at of moving) {
    const met = graph.nodes.filter((node) => node !== at && node !== taken && meet(node, at));
    const pinned = met.find((node) => node.pinned);
    if (pinned) {
      at.pos = [at.pos[0], edgesOf(pinned)[3] + GAP];
      moving.push(at);
      continue;
    }
    const [, , end, bottom] = edgesOf(at);
    for (const node of met) {
      const [x, y] = node.pos;
      node.pos = x >= right ? [end + GAP, y] : [x, bottom + GAP];
      moving.push(node);
    }
  }
  taker.pos = wide.pos;
  const bottomOf = ({ pos, size }) => pos[1] + size[1];
  const before = held.map(([group]) => bottomOf(group));
  for (const [group, nodes] of held) {
    const all = nodes.map((node) => edgesOf(node === taken ? wide : node));
    group.size = [0, 1].map((axis) =>
      Math.max(group.size[axis], ...all.map((edges) => edges[axis + 2] - group.pos[axis] + PADDING)),
    );
  }
  for (const [i, [group]] of held.entries()) {
    const bottom = Math.max(...held.filter((_, k) => before[k] === before[i]).map(([each]) => bottomOf(each)));
    group.size = [group.size[0], bottom - group.pos[1]];
  }
}

/** Return whether a node is inside a group. */
function isHeld(node, { pos, size }) {
  const [left, top, right, bottom] = edgesOf(node);
  return left >= pos[0] && top >= pos[1] && right <= pos[0] + size[0] && bottom <= pos[1] + size[1];
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

/**
 * Put a Merge LoRAs in the place of a Load LoRAs: its text, and its links as far as the merge has such sockets. Another
 * pack's stack goes through a LoRA stack, on its left. A Save merged LoRA comes at its right, or the merge would be lost,
 * and between them a Compare where the model's loader has a VAE, which draws as the graph's sampler does. Where that has
 * so low a cfg that the model is one of few steps, Merge settings lets the merge measure at it.
 *
 * @param {object} node the loader
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 * @param {number} [guidance] that a merge measures at by itself, if that is known
 */
export function turnInto(node, create, canvas, guidance) {
  const { graph } = node;
  const shown = [];
  asOneChange(canvas, () => {
    const merge = create("IterISMerge");
    // rows have no height yet
    const height = Math.max(merge.size[1], node.size[1]);
    merge.pos = [...node.pos];
    makeRoom(graph, merge, height + ROOM, node);
    graph.add(merge);
    set(merge, "loras", node.widgets.find(({ name }) => name === "loras").value);
    if (node.pinned) merge.pin(true);
    const [start, top] = merge.pos;
    const end = start + merge.size[0];
    const atLeft = (each) => {
      each.pos = placeIn(graph, start - GAP - each.size[0], each.size[0], top, node);
      graph.add(each);
      return { outputNode: each, output: each.outputs[0] };
    };
    let more = originOf(node, "more_loras");
    const stacked = originOf(node, "lora_stack");
    if (stacked) {
      const stack = create("IterISStack");
      const all = atLeft(stack);
      link(stacked, stack, "lora_stack");
      link(more, stack, "previous");
      more = all;
    }
    for (const name of ["model", "clip", "loras"]) link(originOf(node, name), merge, name);
    link(more, merge, "more_loras");
    const { cfg, ...drawn } = sampledBy(node);
    const isLow = cfg <= LOW_CFG && cfg !== guidance;
    if (isLow) {
      const settings = create("IterISSettings");
      link(atLeft(settings), merge, "settings");
      set(settings, "cfg", cfg);
    }
    takeOutputs(merge, node);
    const [model, clip] = ["model", "clip"].map((name) => originOf(node, name));
    const vae = model?.outputNode?.outputs.find(({ type }) => type === "VAE");
    const compare = vae && clip && create("IterISCompare");
    const save = create("IterISSave");
    const width = compare ? compare.size[0] + GAP : 0;
    const left = end + GAP;
    // below all that is there, also once another loader has become a merge, so that no link has to go behind it
    const later = graph.nodes.map((each) =>
      each.comfyClass === node.comfyClass
        ? { pos: each.pos, size: [each.size[0], each.size[1] + height + ROOM] }
        : each,
    );
    const columns = [start - 4 * LANE, left + width + save.size[0]];
    const free = [later, graph.groups ?? []].map((things) => freeBelow(graph, ...columns, undefined, things));
    const below = Math.max(top + height + ROOM + GAP, ...free) + LANE + BADGE;
    // where they stay: Nodes 2.0 of older frontends draws a node where it was added
    putSave(graph, save, [left + width, below]);
    shown.push(merge, save);
    const merged = mergedOf(merge);
    const way = wayDown(merge, save);
    if (compare) {
      compare.pos = [left, below];
      graph.add(compare);
      for (const [name, value] of Object.entries({ ...drawn, cfg: isLow || cfg === guidance ? undefined : cfg }))
        if (value !== undefined) set(compare, name, value);
      shown.push(compare);
      const from = { model, clip, vae: { outputNode: model.outputNode, output: vae } };
      // down between what is before the merge and the merge, and below it
      Object.entries(from).forEach(([name, origin], i) => {
        const y = (origin.outputNode ? slotHeight(origin.outputNode, origin.output) : top + i * LANE) + LANE;
        const [, into] = compare.getInputPos(compare.findInputSlot(name));
        const x = freeLane(graph, start - LANE / 2, -LANE / 2, y, into, origin.outputNode);
        link(origin, compare, name, [x, y], [x, into]);
      });
      link(merged, compare, "merged", ...way);
      const { link: branch } = originOf(compare, "merged");
      link({ ...merged, link: branch }, save, "merged", [left + width - LANE, way[1][1]]);
      const picture = compare.outputs.find(({ name }) => name === "merged");
      link({ outputNode: compare, output: picture }, save, "cover");
    } else link(merged, save, "merged", ...way);
    graph.remove(node);
  });
  bringIntoSight(shown, canvas);
}

/**
 * Put a Load LoRAs in the place of a merge, with its links. What hangs on the merge goes with it, unless it is pinned or
 * something else needs it. Where nothing draws with the merge, it stays, and the loader comes below it.
 *
 * @param {object} merge
 * @param {string} text the loader's rows
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 */
export function turnBack(merge, text, create, canvas) {
  const { graph } = merge;
  const takers = (outputs) =>
    ends(
      graph,
      outputs.flatMap(({ links }) => links ?? []),
    ).map(({ inputNode }) => inputNode);
  const isOwn = (node) => node?.comfyClass?.startsWith("IterIS") && !node.pinned;
  const hanging = new Set(takers(merge.outputs).filter(isOwn));
  const carried = [merge, ...hanging].flatMap(({ outputs }) => outputs.filter(({ type }) => CARRIED.includes(type)));
  const isDrawnBy = takers(carried).some((taker) => !hanging.has(taker));
  const loader = create("IterISLoad");
  asOneChange(canvas, () => {
    const [left, top] = merge.pos;
    loader.pos = isDrawnBy ? [left, top] : placeIn(graph, left, loader.size[0], top);
    graph.add(loader);
    set(loader, "loras", text);
    for (const name of ["model", "clip"]) link(originOf(merge, name), loader, name);
    if (!isDrawnBy) {
      graph.updateExecutionOrder(); // after the links, or that would be another step of Undo
      return;
    }
    if (merge.pinned) loader.pin(true);
    for (const node of [merge, ...hanging]) takeOutputs(loader, node);
    const isNeeded = ({ outputs }) => takers(outputs).some((taker) => !hanging.has(taker));
    let needed;
    do {
      needed = [...hanging].find(isNeeded);
      hanging.delete(needed);
    } while (needed);
    for (const node of [...hanging, merge]) {
      node.inputs.forEach((_, i) => node.disconnectInput(i)); // and the points of its links go, too
      graph.remove(node);
    }
  });
  bringIntoSight([loader], canvas);
}

/** Put a Save merged LoRA at the right of a merge. */
export function addSave(merge, create, canvas) {
  const { graph } = merge;
  asOneChange(canvas, () => {
    const save = create("IterISSave");
    const left = merge.pos[0] + merge.size[0] + GAP;
    putSave(graph, save, placeIn(graph, left, save.size[0], merge.pos[1]));
    link(mergedOf(merge), save, "merged", ...(save.pos[1] > merge.pos[1] ? wayDown(merge, save) : []));
    bringIntoSight([save], canvas);
  });
}

/** Move the page by as much as it takes to see new nodes, or the first one if they have no room in it together. */
function bringIntoSight(nodes, canvas, frames = LAID_OUT) {
  if (frames) return void requestAnimationFrame(() => bringIntoSight(nodes, canvas, frames - 1));
  const { scale, offset } = canvas.ds;
  const page = canvas.canvas.getBoundingClientRect();
  // what no bar covers
  const free = (document.querySelector(".graph-canvas-panel") ?? canvas.canvas).getBoundingClientRect();
  const start = [free.left - page.left, free.top - page.top].map((at, axis) => (at + EDGE) / scale - offset[axis]);
  const end = [free.right - page.left, free.bottom - page.top].map((at, axis) => (at - EDGE) / scale - offset[axis]);
  const boxOf = (some) => [0, 1, 2, 3].map((i) => Math[i < 2 ? "min" : "max"](...some.map((node) => edgesOf(node)[i])));
  const fits = (box) => [0, 1].every((axis) => box[axis + 2] - box[axis] <= end[axis] - start[axis]);
  const all = boxOf(nodes);
  const box = fits(all) ? all : boxOf([nodes[0]]);
  for (const axis of [0, 1]) offset[axis] += Math.max(Math.min(0, end[axis] - box[axis + 2]), start[axis] - box[axis]);
  canvas.setDirty(true, true);
}
