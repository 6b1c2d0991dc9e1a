// Groups that grow with the nodes they hold, and shrink back.

import { ownHeight } from "./parts.js";

const PADDING = 12; // below the lowest node, as templates have it
const SLACK = 30; // by which Nodes 2.0 draws a node higher than a workflow says
const own = new WeakMap(); // group -> its height that a workflow keeps, and the one that it has got here

/** Return how far down a node goes; `height` is the one to count with. */
const bottomOf = ({ pos }, height) => pos[1] + height;

/** Let each group of a graph reach as far down as our nodes do that it holds at their own heights. */
export function holdAll({ nodes, groups = [] }) {
  for (const group of groups) {
    const [width, height] = group.size;
    const state = own.get(group);
    const kept = state?.given === height ? state.kept : height; // else somebody has drawn its edge
    const [left, top] = group.pos;
    const ends = nodes
      .filter(({ pos }) => left <= pos[0] && pos[0] <= left + width && top <= pos[1])
      .filter((node) => bottomOf(node, ownHeight(node) ?? Number.POSITIVE_INFINITY) <= top + kept + SLACK)
      .map((node) => bottomOf(node, node.size[1]) + PADDING - top);
    const given = Math.max(kept, ...ends);
    if (given === height) continue;
    if (!state) savesWith(group);
    group.size = [width, given];
    own.set(group, { kept, given: group.size[1] });
  }
}

/** Save a group's own height: a workflow does not keep what made it higher. */
function savesWith(group) {
  const { serialize } = group;
  group.serialize = function () {
    const saved = serialize.call(this);
    const { kept, given } = own.get(group);
    if (given === this.size[1]) saved.bounding[3] = kept;
    return saved;
  };
}
