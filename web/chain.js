// LoRAs in a chain: one more after a node, a node taken out with its neighbours joined, a loader that becomes a merge, and
// what saves it.

const GAP = 60;
const ROOM = 340; // for the report of a merge, and its times
const TITLE = 30; // of a node, above its place
const LAID_OUT = 150; // milliseconds until nodes have their heights in Nodes 2.0
const PADDING = 10; // of a group
const SEEN = 0.85; // of the page, for nodes that do not fit into it as it is

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

/** Link the place where one link began to the place where another ended, instead of that other. */
function join({ outputNode, output, subgraphInput }, { inputNode, input, subgraphOutput }) {
  const place = inputNode?.inputs.indexOf(input);
  if (subgraphOutput && outputNode) subgraphOutput.connect(output, outputNode);
  else if (inputNode && outputNode) outputNode.connect(outputNode.outputs.indexOf(output), inputNode, place);
  else if (inputNode && subgraphInput) {
    inputNode.disconnectInput(place);
    subgraphInput.connect(input, inputNode);
  } // a subgraph's input straight to its output: the frontend has no such link
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

/** Return below which height nothing lies between two edges, but for one node. */
function freeBelow(graph, left, right, but = undefined) {
  const above = graph.nodes.filter((node) => node !== but && node.pos[0] < right && left < node.pos[0] + node.size[0]);
  return Math.max(...above.map(({ pos, size }) => pos[1] + size[1])) + GAP;
}

/** Return where a node of a width has room, from a height on; see `freeBelow`. */
const placeIn = (graph, left, width, top, but) => [left, Math.max(top, freeBelow(graph, left, left + width, but))];

const edgesOf = ({ pos, size }) => [pos[0], pos[1] - TITLE, pos[0] + size[0], pos[1] + size[1]];

/**
 * Move nodes out of the way of one that takes another one's place: to the right what was at its right, else down. Groups
 * go on to hold what they held.
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
    const [start, top, end, bottom] = edgesOf(at);
    for (const node of graph.nodes) {
      const [x, y, ...far] = edgesOf(node);
      if (node === at || node === taken || x >= end || start >= far[0] || y >= bottom || top >= far[1]) continue;
      node.pos = x >= right ? [end + GAP, node.pos[1]] : [x, bottom + GAP];
      moving.push(node);
    }
  }
  for (const [group, nodes] of held) {
    const all = nodes.map((node) => edgesOf(node === taken ? wide : node));
    group.size = [0, 1].map((axis) =>
      Math.max(group.size[axis], ...all.map((edges) => edges[axis + 2] - group.pos[axis] + PADDING)),
    );
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
 * and between them a Compare where the model's loader has a VAE.
 *
 * @param {object} node the loader
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 */
export function turnInto(node, create, canvas) {
  const { graph } = node;
  const originOf = (name) => ends(graph, [node.inputs.find((input) => input.name === name)?.link])[0];
  const shown = [];
  asOneChange(canvas, () => {
    const merge = create("IterISMerge");
    const text = (of) => of.widgets.find(({ name }) => name === "loras");
    text(merge).value = text(node).value;
    text(merge).callback?.(text(node).value);
    // rows have no height yet
    const height = Math.max(merge.size[1], node.size[1]);
    merge.pos = [...node.pos];
    makeRoom(graph, merge, height + ROOM, node);
    graph.add(merge);
    const [start, top] = merge.pos;
    const placed = (left, width) => placeIn(graph, left, width, top, node);
    const link = (origin, target, name) =>
      origin && join(origin, { inputNode: target, input: target.inputs.find((input) => input.name === name) });
    let more = originOf("more_loras");
    const stacked = originOf("lora_stack");
    if (stacked) {
      const stack = create("IterISStack");
      stack.pos = placed(start - GAP - stack.size[0], stack.size[0]);
      graph.add(stack);
      link(stacked, stack, "lora_stack");
      link(more, stack, "previous");
      more = { outputNode: stack, output: stack.outputs[0] };
    }
    for (const name of ["model", "clip", "loras"]) link(originOf(name), merge, name);
    link(more, merge, "more_loras");
    for (const { type, links } of node.outputs) {
      const output = merge.outputs.find((each) => each.type === type);
      if (output) for (const target of ends(graph, links ?? [])) join({ outputNode: merge, output }, target);
    }
    const [model, clip] = ["model", "clip"].map(originOf);
    const vae = model?.outputNode?.outputs.find(({ type }) => type === "VAE");
    const compare = vae && clip && create("IterISCompare");
    const save = create("IterISSave");
    const beside = start + merge.size[0] + GAP;
    const width = compare ? compare.size[0] + GAP : 0;
    // where they stay: Nodes 2.0 of older frontends draws a node where it was added
    const [left, below] = placed(beside, width + save.size[0]);
    save.pos = [left + width, below];
    graph.add(save);
    shown.push(merge, save);
    const merged = merge.outputs.find(({ type }) => type === "ITERIS_MERGED");
    link({ outputNode: merge, output: merged }, save, "merged");
    if (compare) {
      compare.pos = [left, below];
      graph.add(compare);
      shown.push(compare);
      link(model, compare, "model");
      link(clip, compare, "clip");
      link({ outputNode: model.outputNode, output: vae }, compare, "vae");
      link({ outputNode: merge, output: merged }, compare, "merged");
      const picture = compare.outputs.find(({ name }) => name === "merged");
      link({ outputNode: compare, output: picture }, save, "cover");
    }
    graph.remove(node);
  });
  setTimeout(() => bringIntoSight(shown, canvas), LAID_OUT);
}

/** Put a Save merged LoRA at the right of a merge. */
export function addSave(merge, create, canvas) {
  const { graph } = merge;
  asOneChange(canvas, () => {
    const save = create("IterISSave");
    const left = merge.pos[0] + merge.size[0] + GAP;
    save.pos = placeIn(graph, left, save.size[0], merge.pos[1]);
    graph.add(save);
    merge.connect(
      merge.outputs.findIndex(({ type }) => type === "ITERIS_MERGED"),
      save,
      "merged",
    );
    setTimeout(() => bringIntoSight([save], canvas), LAID_OUT);
  });
}

/** Move the page to nodes of which not all is seen, and make it smaller where they do not fit into it. */
function bringIntoSight(nodes, canvas) {
  const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map(({ pos }) => pos[axis] - axis * TITLE)));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...nodes.map(({ pos, size }) => pos[axis] + size[axis])));
  const [x, y, width, height] = canvas.visible_area;
  if (left >= x && top >= y && right <= x + width && bottom <= y + height) return;
  const bounds = [left, top, right - left, bottom - top];
  canvas.animateToBounds(bounds, { zoom: bounds[2] <= SEEN * width && bounds[3] <= SEEN * height ? 0 : SEEN });
}
