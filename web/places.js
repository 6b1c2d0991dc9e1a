// Where nodes have room, and what moves to make some; all that is new is brought into sight.

import { isOurs, saidBy } from "./graph.js";
import { isMerge } from "./prompt_graph.js";

export const GAP = 60;
const REPORT = 180; // of a merge, with its times and what is said of all LoRAs
const OF_LORA = 80; // for its row and its verdict, with advice
export const COMPARE_WIDTH = 720; // of a new one
const PICTURE = 220; // of a Save Image on the canvas; Nodes 2.0 makes it as high as it is wide
const ONE_COLUMN = 606; // a narrower one may have its pictures below the slider: iteris.css counts 20 to 26 less
export const TITLE = 30; // of a node, above its place
export const BADGE = 12; // above a node's title
export const LANE = 20; // between links side by side, and from them to nodes
const LAID_OUT = 10; // frames until nodes have their heights in Nodes 2.0, and their places in older ones
export const PADDING = 10; // of a group
export const HEAD = 50; // of a group, down to where its nodes begin
const SHOWN = 30; // frames in which a node's parts are laid out once it is in sight
const CLEAR = 0.7; // of the page, which no bar covers
const EDGE = 6; // of the screen, round what is brought into sight
const NEAR = 0.8; // of the page's scale; letters are as large as those round the page
const HARDLY_LESS = 0.9; // of the scale that two nodes allow, where more are seen
const READABLE = 0.572; // of the page's scale; below 8 / 14 the canvas writes no letters
export const ABOVE = TITLE + BADGE + LANE; // what is free above a new node

/** Call something once new nodes are laid out. */
export const onceLaidOut = (call, frames = LAID_OUT) =>
  requestAnimationFrame(frames > 1 ? () => onceLaidOut(call, frames - 1) : call);

/** Return where on the page what no bar covers begins and ends. */
function freeArea(canvas) {
  const page = canvas.canvas.getBoundingClientRect();
  const free = (document.querySelector(".graph-canvas-panel") ?? canvas.canvas).getBoundingClientRect();
  return [
    [free.left - page.left, free.top - page.top].map((at) => at + EDGE),
    [free.right - page.left, free.bottom - page.top].map((at) => at - EDGE),
  ];
}

/**
 * Show one of our templates whole, once the frontend has shown it in its way: as large as the page allows, and so that
 * it can be read. It says that it is one, and a workflow that is made of it does not.
 */
export function showWhole(graph, canvas) {
  if (!graph.extra.iteris_whole) return;
  delete graph.extra.iteris_whole;
  onceLaidOut(() => fitAll(graph, canvas));
}

/** Move the page so that all of a graph is seen, as far as it can be read. */
function fitAll(graph, canvas) {
  const { ds } = canvas;
  const [start, end] = freeArea(canvas);
  const box = boxOf([...graph.nodes.map(edgesOf), ...graph.groups.map(bordersOf)]);
  const fits = [0, 1].map((axis) => (end[axis] - start[axis]) / (box[axis + 2] - box[axis]));
  ds.scale = Math.max(READABLE, Math.min(1, ...fits));
  for (const axis of [0, 1]) ds.offset[axis] = start[axis] / ds.scale - box[axis];
  canvas.setDirty(true, true);
}

/** Return by how much a merge of the LoRAs of a text grows in a run. */
export const roomFor = (text) => REPORT + OF_LORA * Math.max(2, text?.match(/<lora:/g)?.length ?? 0);

/** Return the room of a Compare's pictures: the slider beside all of them, or above four rows of them. */
const picturesIn = (width) => (width < ONE_COLUMN ? 1260 : 140 + 0.52 * width);

export const PICTURES = picturesIn(COMPARE_WIDTH);

/** Return whether the frontend shows what a node makes of pictures, and has nothing to show yet. */
const awaitsPicture = (node) =>
  !isOurs(node) &&
  node.constructor.nodeData?.output_node &&
  !node.imgs?.length &&
  node.inputs.some(({ type }) => type === "IMAGE");

/** Return how much room a node's report or pictures take. */
function resultsOf(node) {
  if (isMerge(node)) return roomFor(saidBy(node, "loras"));
  return node.comfyClass === "IterISCompare" ? picturesIn(node.size[0]) : 0;
}

/** Return by how much a node grows in a run, beyond what it has of the last one. */
const growthOf = (node) => Math.max(0, resultsOf(node) - (node.iterisRoom?.() ?? 0));

/** Return where a node will begin and end once it has grown, also by the first picture that the frontend shows on it. */
function edgesWithPicture(node) {
  const edges = grownEdges(node);
  if (!awaitsPicture(node)) return edges;
  return edges.with(3, Math.max(edges[3], node.pos[1] + node.computeSize()[1] + Math.max(PICTURE, node.size[0])));
}

/** Return where a node begins and ends, with its title. */
export const edgesOf = ({ pos, size }) => [pos[0], pos[1] - TITLE, pos[0] + size[0], pos[1] + size[1]];

/** Return where a node will begin and end once it has grown. */
export const grownEdges = (node) => edgesOf({ pos: node.pos, size: [node.size[0], node.size[1] + growthOf(node)] });

/** Return the nodes of a graph, and a subgraph's brackets. */
export const thingsOf = ({ nodes, inputNode, outputNode }) => [...nodes, inputNode, outputNode].filter(Boolean);

const bordersOf = (group) => edgesOf(group).with(1, group.pos[1]);
const overlap = (one, other) => [0, 1].every((axis) => one[axis] < other[axis + 2] && other[axis] < one[axis + 2]);
const holds = (one, other) => [0, 1].every((axis) => one[axis] <= other[axis] && other[axis + 2] <= one[axis + 2]);

/** Return below which height no node lies between two edges, but for one. */
export function freeBelow(graph, left, right, but = undefined) {
  const above = graph.nodes.filter((each) => each !== but && each.pos[0] < right && left < each.pos[0] + each.size[0]);
  return Math.max(...above.map(({ pos, size }) => pos[1] + size[1])) + GAP;
}

/**
 * Return the place nearest to one, at its right and below it, where new nodes lie side by side: they cover nothing, also
 * once it has grown, no border of a group goes through them, and links have lanes at their left and above them.
 *
 * @param {object} graph
 * @param {number[]} start
 * @param {number[]} size of all of them, without titles
 * @param {number} [growth] of their height, which may go over a group's border
 * @param {(place: number[]) => number} [far] how far a place is
 * @returns {number[]}
 */
export function freePlace(graph, [left, top], [width, height], growth = 0, far = ([x, y]) => x - left + y - top) {
  const nodes = thingsOf(graph).map(edgesWithPicture); // links may run where a picture comes
  const groups = (graph.groups ?? []).map(bordersOf);
  const isFree = ([x, y]) => {
    const wanted = [x - 2 * LANE, y - ABOVE, x + width, y + height];
    const grown = wanted.with(3, wanted[3] + growth);
    const crosses = (group) => overlap(group, wanted) && !holds(group, wanted);
    return !nodes.some((each) => overlap(each, grown)) && !groups.some(crosses);
  };
  const [xs, ys] = [left, top].map((from, axis) => {
    const behind = [...nodes, ...groups].map((edges) => edges[axis + 2] + [2 * LANE, ABOVE][axis]);
    return [from, ...new Set(behind.filter((at) => at > from))];
  });
  return xs
    .flatMap((x) => ys.map((y) => [x, y]))
    .toSorted((one, other) => far(one) - far(other))
    .find(isFree);
}

/** Return what all things with such edges cover. */
const boxOf = (all) => [0, 1, 2, 3].map((i) => Math[i < 2 ? "min" : "max"](...all.map((edges) => edges[i])));

/** Return the size of a group that is at least so large, and holds what has such edges. */
export const sizeToHold = ({ pos }, least, all) =>
  least.map((length, axis) => Math.max(length, ...all.map((edges) => edges[axis + 2] - pos[axis] + PADDING)));

/** Return whether a node and a group have a place in common. */
export const meets = (node, group) => overlap(edgesOf(node), bordersOf(group));

/** Put a group with a title round nodes, and round a width before and a height above them, and return it. */
export function groupRound(graph, nodes, title, { left: before = PADDING, above = PADDING } = {}) {
  const [left, top, right, bottom] = boxOf(nodes.map(edgesOf));
  const group = new LiteGraph.LGraphGroup(title);
  group.pos = [left - before, top + TITLE - HEAD - above];
  group.size = [right + PADDING - group.pos[0], bottom - group.pos[1] + GAP]; // Nodes 2.0 draws some higher
  graph.add(group);
  return group;
}

const endOf = ({ pos, size }) => pos[1] + size[1];
const areAlike = (one, other) => Math.abs(one - other) <= 1;

/** Let a change make groups higher, and those with them that ended at the same heights, where there is room. */
function growTogether(graph, change) {
  const { groups = [] } = graph;
  const before = new Map(groups.map((group) => [group, endOf(group)]));
  change();
  for (const group of groups) {
    const alike = groups.filter((other) => areAlike(before.get(other), before.get(group)));
    reachTo(graph, group, Math.max(...alike.map(endOf)));
  }
}

/** Let a group reach down to a height, where there is room. */
function reachTo(graph, group, end) {
  const within = graph.nodes.filter((node) => meets(node, group));
  if (end > endOf(group) && !group.pinned && isFreeDownTo(end, group, endOf(group), graph, within))
    group.size = [group.size[0], end - group.pos[1]];
}

/** Let two groups end at the same height, and with the second one those that do so already. */
export function levelWith(graph, group, row) {
  const end = Math.max(...[group, row].map(endOf));
  growTogether(graph, () => {
    for (const each of [group, row]) reachTo(graph, each, end);
  });
}

/** Return the innermost group that is round a place. */
export function groupAt(graph, [x, y]) {
  const around = (graph.groups ?? []).filter((each) => holds(bordersOf(each), [x, y, x, y]));
  return around.toSorted(({ size: [w, h] }, { size: [v, i] }) => w * h - v * i)[0];
}

/** Return whether nothing but some nodes lies in a group's columns between two heights. */
export function isFreeDownTo(end, group, start, { nodes, groups = [] }, but) {
  const room = [group.pos[0], start, group.pos[0] + group.size[0], end];
  const others = nodes.filter((each) => !but.includes(each)).map(edgesOf);
  const around = groups.filter((each) => each !== group).map(bordersOf);
  return ![...others, ...around].some((each) => overlap(each, room));
}

/**
 * Put a new node at the left of a place, below what stands there: where it has room, in the group that is there, which
 * grows with it.
 *
 * @param {object} graph
 * @param {object} node
 * @param {number[]} place
 * @param {object} [how]
 * @param {object} [how.but] a node that is about to go
 * @param {number} [how.before] how far at the left of the place the group is, where the place is in the next one
 */
export function putAtLeft(graph, node, [edge, top], { but, before = 0 } = {}) {
  const [width] = node.size;
  const group = groupAt(graph, [edge - before, top]);
  const within = group ? graph.nodes.filter((each) => meets(each, group)) : [];
  const begin = group && Math.max(group.pos[0] + PADDING, Math.min(...within.map(({ pos }) => pos[0])));
  const isInside = group && begin + width + LANE <= edge;
  const near = edge - GAP - width;
  const isNear = (x) => x >= begin && Math.abs(x - near) < 3 * LANE && x + width + LANE <= edge;
  const left = within.map(({ pos }) => pos[0]).find(isNear) ?? (isInside ? Math.max(near, begin) : near);
  node.pos = [left, Math.max(top, freeBelow(graph, left, left + width, but))];
  graph.add(node);
  if (!isInside) return;
  const size = sizeToHold(group, [...group.size], [edgesOf(node)]);
  const [start, end] = [group.size, size].map(([, height]) => group.pos[1] + height);
  if (isFreeDownTo(end, group, start, graph, [node])) growTogether(graph, () => (group.size = size));
}

/**
 * Move nodes out of the way of one that takes another one's place: to the right what was at its right, else down. What
 * would cover a pinned node goes below that. Groups go on to hold what they held.
 *
 * @param {object} graph which does not have the new node yet
 * @param {object} taker the new node
 * @param {number} height that it needs
 * @param {object} taken the old one
 * @param {number} [grown] the height that it needs after a run
 */
export function makeRoom(graph, taker, height, taken, grown = height) {
  const right = taken.pos[0] + taken.size[0];
  const held = (graph.groups ?? []).map((group) => [
    group,
    graph.nodes.filter((node) => holds(bordersOf(group), edgesOf(node))),
  ]);
  const wide = { pos: taker.pos, size: [taker.size[0], grown] };
  const moving = [wide];
  for (const at of moving) {
    const met = graph.nodes.filter((node) => node !== at && node !== taken && overlap(edgesOf(node), edgesOf(at)));
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
  const now = { pos: wide.pos, size: [taker.size[0], height] };
  growTogether(graph, () => {
    for (const [group, nodes] of held) {
      const all = nodes.map((node) => edgesOf(node === taken ? now : node));
      group.size = sizeToHold(group, [...group.size], all);
    }
  });
}

/** Return where a node begins and ends, with its group's title and left border where they are near. */
export function shownEdges(node) {
  const start = groupAt(node.graph, node.pos)?.pos ?? node.pos;
  return edgesOf(node).map((edge, i) => (i < 2 && edge - start[i] < 8 * GAP ? Math.min(edge, start[i]) : edge));
}

/** Return at which scale a place is as large as what no bar covers. */
function scaleFor(box, canvas) {
  const [start, end] = freeArea(canvas);
  return Math.min(...[0, 1].map((axis) => (end[axis] - start[axis]) / (box[axis + 2] - box[axis])));
}

/** Move the page by as much as it takes to see a place, or where that begins. */
function moveTo(box, canvas) {
  const { ds } = canvas;
  const [start, end] = freeArea(canvas);
  for (const axis of [0, 1]) {
    const [first, last] = [start, end].map((at) => at[axis] / ds.scale - ds.offset[axis]);
    ds.offset[axis] += Math.max(Math.min(0, last - box[axis + 2]), first - box[axis]);
  }
  canvas.setDirty(true, true);
}

/**
 * Show new nodes so large that they are read with ease, with the title and the left border of their groups: as many of
 * the first ones as have room, and two at least, which may be smaller if they need that. The page is never made larger.
 */
export const bringNear = (nodes, canvas) =>
  onceLaidOut(() => {
    if (nodes[0].graph !== canvas.graph) return;
    const { ds } = canvas;
    const boxes = nodes.slice(1).map((_, i) => boxOf(nodes.slice(0, nodes.length - i).map(shownEdges)));
    const enough = Math.min(NEAR, ds.scale, HARDLY_LESS * scaleFor(boxes.at(-1), canvas));
    const found =
      boxes.find((box) => scaleFor(box, canvas) >= Math.max(enough, Math.min(READABLE, ds.scale))) ??
      boxOf(nodes.slice(0, 2).map(edgesOf));
    const scale = scaleFor(found, canvas);
    if (scale < Math.min(READABLE, ds.scale)) return bringIntoSight(nodes, canvas, false);
    ds.scale = Math.min(ds.scale, scale);
    moveTo(found, canvas);
  });

/**
 * Move the page by as much as it takes to see new nodes, and make it smaller if they need that; where it could not be
 * read any more, as many of the first ones as have room. In a subgraph that is closed there is nothing to see.
 */
export function bringIntoSight(nodes, canvas, isNew = true) {
  if (nodes[0].graph !== canvas.graph) return;
  if (isNew) return void onceLaidOut(() => bringIntoSight(nodes, canvas, false));
  const { ds } = canvas;
  const box = boxOf(nodes.map(grownEdges));
  const scale = Math.min(ds.scale, scaleFor(box, canvas));
  if (scale < Math.min(ds.scale, READABLE) && nodes.length > 1)
    return bringIntoSight(nodes.slice(0, -1), canvas, false);
  ds.scale = Math.max(scale, Math.min(ds.scale, READABLE));
  moveTo(box, canvas);
}

/** Bring the nearest nodes into sight where no title is. */
export function keepInSight(canvas) {
  const { ds } = canvas;
  const [left, top, right, bottom] = freeArea(canvas).flatMap((at) => at.map((x, i) => x / ds.scale - ds.offset[i]));
  const isSeen = (node) => overlap(edgesOf(node).with(3, node.pos[1]), [left, top, right, bottom]);
  const far = ({ pos, size }) =>
    Math.hypot(pos[0] + (size[0] - left - right) / 2, pos[1] + (size[1] - top - bottom) / 2);
  const nodes = canvas.graph.nodes.toSorted((one, other) => far(one) - far(other));
  if (nodes.length && !nodes.some(isSeen)) bringIntoSight(nodes, canvas, false);
}

/**
 * Bring a Compare into sight, in whatever graph it is: its pictures, once it has some, as large as fits, at most in their
 * own size.
 */
export function showCompare(compare, canvas, frames = SHOWN) {
  const isElsewhere = compare.graph !== canvas.graph;
  if (isElsewhere) canvas.setGraph(compare.graph);
  const pictures = compare.iterisPictures?.();
  const { height, left, top, width } = pictures?.getBoundingClientRect() ?? {};
  if (!height) {
    // the frontend first shows a graph where it was left
    if (frames === SHOWN) bringIntoSight([compare], canvas, isElsewhere);
    // what is out of sight is not laid out
    if (pictures && frames) requestAnimationFrame(() => showCompare(compare, canvas, frames - 1));
    return;
  }
  const { ds } = canvas;
  const page = canvas.canvas.getBoundingClientRect();
  const [x, y] = ds.convertCanvasToOffset([left - page.left, top - page.top]);
  const own = width / ds.scale;
  const wide = Math.max(own, CLEAR * page.width);
  canvas.canvas.focus({ preventScroll: true }); // or the page's keys are dead once the button is gone
  const bottom = y + height / ds.scale;
  ds.fitToBounds([x - (wide - own) / 2, y, wide, bottom - y], { zoom: CLEAR });
  // with the node's title, where they are not much smaller then
  const whole = { graph: canvas.graph, pos: [x, compare.pos[1]], size: [own, bottom - compare.pos[1]] };
  if (whole.size[1] * ds.scale * CLEAR < page.height) bringIntoSight([whole], canvas, false);
  canvas.setDirty(true, true);
}
