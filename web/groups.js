// Groups that grow with the nodes they hold, and shrink back.

import { ownHeight } from "./heights.js";
import { edgesOf, isFreeDownTo, meets, PADDING, sizeToHold } from "./places.js";

const SLACK = 30; // by which Nodes 2.0 draws a node higher than a workflow says
const ALIKE = 1; // pixels between the ends of groups that end at the same height
const given = new WeakMap(); // group -> the height that it has got here, and the one that a workflow keeps

/** Return the size of a group that a workflow keeps. */
function keptSize(group) {
  const [width, height] = group.size;
  const { height: drawn, kept } = given.get(group) ?? {};
  return [width, drawn === height ? kept : height]; // else somebody has drawn its edge
}

/** Return which of some nodes a group holds at their own heights, in the size that a workflow keeps. */
function heldBy(group, nodes) {
  const [width, height] = keptSize(group);
  const [left, top] = group.pos;
  const isIn = ({ pos: [x, y] }) => left <= x && x <= left + width && top <= y;
  return nodes.filter((node) => isIn(node) && node.pos[1] + (ownHeight(node) ?? node.size[1]) <= top + height + SLACK);
}

const keptEnd = (group) => group.pos[1] + keptSize(group)[1];

/** Return how far down a group has to reach for our nodes that it holds at their own heights. */
function endOf(group, nodes) {
  const held = heldBy(group, nodes.filter(ownHeight)); // others have none
  return Math.max(keptEnd(group), ...held.map(({ pos, size }) => pos[1] + size[1] + PADDING));
}

/** Return whether two groups end at the same height in a workflow. */
const areAlike = (one, other) => Math.abs(keptEnd(one) - keptEnd(other)) <= ALIKE;

/**
 * Let each group of a graph reach as far down as our nodes do that it holds at their own heights; and groups that end at
 * the same height in a workflow, as far down as one of them does, where there is room.
 */
export function holdAll(graph) {
  const { nodes, groups = [] } = graph;
  const ends = new Map(groups.map((group) => [group, endOf(group, nodes)]));
  for (const group of groups) {
    const [width, kept] = keptSize(group);
    const lowest = Math.max(...groups.filter((other) => areAlike(other, group)).map((other) => ends.get(other)));
    const border = { pos: group.pos, size: [width, kept] };
    // what lies across its border as it is does not stand in its way
    const within = nodes.filter((node) => meets(node, border));
    const isFree = !group.pinned && isFreeDownTo(lowest, group, keptEnd(group), graph, within);
    const height = (isFree ? lowest : ends.get(group)) - group.pos[1];
    if (height === group.size[1]) continue;
    if (!given.has(group)) savesKept(group);
    group.size = [width, height];
    given.set(group, { height: group.size[1], kept });
  }
}

/** Save a group without what made it higher. */
function savesKept(group) {
  const { serialize } = group;
  group.serialize = function () {
    const saved = serialize.call(this);
    saved.bounding[3] = keptSize(group)[1];
    return saved;
  };
}

/** Return whether a node is one of a group, as the frontend has it: one that it covers by a part is not. */
function liesIn(node, { pos, size }) {
  const edges = edgesOf(node);
  const middle = [0, 1].map((axis) => (edges[axis] + edges[axis + 2]) / 2);
  return middle.every((at, axis) => pos[axis] <= at && at <= pos[axis] + size[axis]);
}

/** Return the groups that some nodes would leave empty, but for pinned ones. */
export const emptiedBy = (leaving, { nodes, groups = [] }) =>
  groups.filter((group) => {
    const own = nodes.filter((node) => liesIn(node, group));
    return !group.pinned && own.length && own.every((node) => leaving.includes(node));
  });

const isOfSize = (group, size) => keptSize(group).every((length, axis) => length === size?.[axis]);

/** Return the size of each group of a graph, for `grownSince`. */
export const sizesOf = ({ groups = [] }) => new Map(groups.map((group) => [group, keptSize(group)]));

/** Return which groups have another size now: by their ids, the sizes before and after. */
export function grownSince(sizes) {
  const grown = [...sizes].filter(([group, before]) => !isOfSize(group, before));
  return Object.fromEntries(grown.map(([group, before]) => [group.id, { before, after: keptSize(group) }]));
}

/** Let groups be as large again as before they grew, unless what they hold needs more, or somebody has changed them. */
export function shrinkGrown({ nodes, groups = [] }, grown) {
  for (const group of groups) {
    const { before, after } = grown?.[group.id] ?? {};
    if (!isOfSize(group, after)) continue;
    group.size = sizeToHold(group, before, heldBy(group, nodes).map(edgesOf));
  }
}
