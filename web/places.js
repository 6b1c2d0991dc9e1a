// Where nodes have room, and what moves to make some; all that is new is brought into sight.

export const GAP = 60;
export const ROOM = 340; // for the report of a merge, and its times
export const TITLE = 30; // of a node, above its place
export const BADGE = 12; // above a node's title
export const LANE = 20; // between links side by side, and from them to nodes
const LAID_OUT = 10; // frames until nodes have their heights in Nodes 2.0, and their places in older ones
const PADDING = 10; // of a group
const EDGE = 20; // of the screen, round what is brought into sight

export const edgesOf = ({ pos, size }) => [pos[0], pos[1] - TITLE, pos[0] + size[0], pos[1] + size[1]];

/** Return below which height no node, or none of other things, lies between two edges, but for one node. */
export function freeBelow(graph, left, right, but = undefined, things = graph.nodes) {
  const above = things.filter((each) => each !== but && each.pos[0] < right && left < each.pos[0] + each.size[0]);
  return Math.max(...above.map(({ pos, size }) => pos[1] + size[1])) + GAP;
}

/** Return where a node of a width has room, from a height on; see `freeBelow`. */
export const placeIn = (graph, left, width, top, but) => [
  left,
  Math.max(top, freeBelow(graph, left, left + width, but)),
];

function meet(one, other) {
  const [a, b] = [one, other].map(edgesOf);
  return [0, 1].every((axis) => a[axis] < b[axis + 2] && b[axis] < a[axis + 2]);
}

/** Return whether a node is inside a group. */
function isHeld(node, { pos, size }) {
  const [left, top, right, bottom] = edgesOf(node);
  return left >= pos[0] && top >= pos[1] && right <= pos[0] + size[0] && bottom <= pos[1] + size[1];
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
export function makeRoom(graph, taker, height, taken) {
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

/** Move the page by as much as it takes to see new nodes, or the first one if they have no room in it together. */
export function bringIntoSight(nodes, canvas, frames = LAID_OUT) {
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
