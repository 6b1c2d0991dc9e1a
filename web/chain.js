// LoRAs in a chain: one more after a node, a node taken out with its neighbours joined, a loader that becomes a merge, and
// what saves it.

const GAP = 60;
const ROOM = 340; // for the report of a merge, and its times
const TITLE = 30; // of a node, above its place
const LAID_OUT = 10; // frames until nodes have their heights in Nodes 2.0, and their places in older ones
const PADDING = 10; // of a group
const LANE = 20; // between links side by side, and from them to nodes
const BADGE = 12; // above a node's title
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
  points.reduceRight((next, point) => graph.createReroute(point, next), graph.getLink(link));
}

const slotHeight = (node, slot) => node.getOutputPos(node.outputs.indexOf(slot))[1];

const mergedOf = (merge) => ({
  outputNode: merge,
  output: merge.outputs.find(({ type }) => type === "ITERIS_MERGED"),
});

/** Return the way of a link from a merge to a node that is lower at its right: between the merge and what is beside it. */
function wayDown(merge, { pos }) {
  const x = merge.pos[0] + merge.size[0] + LANE;
  return [
    [x, slotHeight(merge, mergedOf(merge).output) + LANE],
    [x, pos[1] - TITLE - BADGE - LANE / 2],
  ];
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
    const end = start + merge.size[0];
    const link = (origin, target, name, ...points) => {
      const input = target.inputs.find((each) => each.name === name);
      if (!origin) return;
      join(origin, { inputNode: target, input });
      lead(graph, input, points);
    };
    let more = originOf("more_loras");
    const stacked = originOf("lora_stack");
    if (stacked) {
      const stack = create("IterISStack");
      stack.pos = placeIn(graph, start - GAP - stack.size[0], stack.size[0], top, node);
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
    const width = compare ? compare.size[0] + GAP : 0;
    const left = end + GAP;
    // below all that is there, so that no link has to go behind it
    const columns = [start - 2 * LANE, left + width + save.size[0], node];
    const free = [graph.nodes, graph.groups ?? []].map((things) => freeBelow(graph, ...columns, things));
    const below = Math.max(top + height + ROOM + GAP, ...free) + LANE + BADGE;
    // where they stay: Nodes 2.0 of older frontends draws a node where it was added
    save.pos = [left + width, below];
    graph.add(save);
    shown.push(merge, save);
    const merged = mergedOf(merge);
    const way = wayDown(merge, save);
    if (compare) {
      compare.pos = [left, below];
      graph.add(compare);
      shown.push(compare);
      const from = { model, clip, vae: { outputNode: model.outputNode, output: vae } };
      // down between what is before the merge and the merge, and below it
      Object.entries(from).forEach(([name, origin], i) => {
        const x = start - ((i + 1) * LANE) / 2;
        const y = origin.outputNode ? slotHeight(origin.outputNode, origin.output) : top + i * LANE;
        const [, into] = compare.getInputPos(compare.findInputSlot(name));
        link(origin, compare, name, [x, y + LANE], [x, into]);
      });
      link(merged, compare, "merged", ...way);
      const [branch] = ends(graph, [compare.inputs.find(({ name }) => name === "merged").link]);
      link({ ...merged, link: branch.link }, save, "merged", [left + width - LANE, way[1][1]]);
      const picture = compare.outputs.find(({ name }) => name === "merged");
      link({ outputNode: compare, output: picture }, save, "cover");
    } else link(merged, save, "merged", ...way);
    graph.remove(node);
  });
  bringIntoSight(shown, canvas);
}

/** Put a Save merged LoRA at the right of a merge. */
export function addSave(merge, create, canvas) {
  const { graph } = merge;
  asOneChange(canvas, () => {
    const save = create("IterISSave");
    const left = merge.pos[0] + merge.size[0] + GAP;
    save.pos = placeIn(graph, left, save.size[0], merge.pos[1]);
    graph.add(save);
    const input = save.inputs.find(({ name }) => name === "merged");
    join(mergedOf(merge), { inputNode: save, input });
    if (save.pos[1] > merge.pos[1]) lead(graph, input, wayDown(merge, save));
    bringIntoSight([save], canvas);
  });
}

/** Move the page to new nodes of which not all is seen, and make it smaller where they do not fit into it. */
function bringIntoSight(nodes, canvas, frames = LAID_OUT) {
  if (frames) return void requestAnimationFrame(() => bringIntoSight(nodes, canvas, frames - 1));
  const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map(({ pos }) => pos[axis] - axis * TITLE)));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...nodes.map(({ pos, size }) => pos[axis] + size[axis])));
  const [x, y, width, height] = canvas.visible_area;
  if (left >= x && top >= y && right <= x + width && bottom <= y + height) return;
  const bounds = [left, top, right - left, bottom - top];
  canvas.animateToBounds(bounds, { zoom: bounds[2] <= SEEN * width && bounds[3] <= SEEN * height ? 0 : SEEN });
}
