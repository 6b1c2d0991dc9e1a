// The links of a graph: where they begin and end, how they are joined anew, and the ways that they go by.

import { ABOVE, grownEdges, LANE, thingsOf } from "./places.js";

export const CARRIED = ["MODEL", "CLIP", "LORA_STACK"];

/** Return where links begin and end: at a node's slot, or at a slot of the subgraph that the nodes are in. */
export function ends(graph, ids) {
  return ids
    .map((id) => graph?.getLink(id)) // a node that is about to be put into a graph has none
    .filter(Boolean)
    .map((link) => link.resolve(graph));
}

/**
 * Link the place where one link began to the place where another ended, instead of that other, and by the points that one
 * of them went through.
 */
export function join(
  { link: before, outputNode, output, subgraphInput },
  { link: after, inputNode, input, subgraphOutput },
) {
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

/** Return the nodes that outputs lead to. */
export const takers = (graph, outputs) =>
  ends(
    graph,
    outputs.flatMap(({ links }) => links ?? []),
  ).map(({ inputNode }) => inputNode);

export const slotHeight = (node, slot) => node.getOutputPos(node.outputs.indexOf(slot))[1];

/**
 * Return the first lane from a place on that a link can go by: no other link has it, and nothing but one node covers
 * it, also once that has grown.
 *
 * @param {object} graph
 * @param {number} axis 0: it goes down or up, 1: to a side
 * @param {number} at
 * @param {number} step
 * @param {number[]} way from where to where it goes, in any order
 * @param {object} [but]
 * @returns {number}
 */
export function freeLane(graph, axis, at, step, way, but) {
  const [from, to] = way.toSorted((one, other) => one - other);
  const lines = [...graph.reroutes.values()].map((end) => [end.pos, (graph.getReroute(end.parentId) ?? end).pos]);
  const beside = lines.filter((ends) => {
    const places = ends.map((end) => end[1 - axis]);
    return Math.min(...places) < to && from < Math.max(...places);
  });
  const isCovered = (edges, lane) =>
    edges[axis] < lane && lane < edges[axis + 2] && edges[1 - axis] < to && from < edges[3 - axis];
  const isTaken = (lane) =>
    beside.flat().some((end) => Math.abs(end[axis] - lane) < LANE / 2) ||
    thingsOf(graph).some((node) => node !== but && isCovered(grownEdges(node), lane));
  let lane = at;
  while (isTaken(lane)) lane += step;
  return lane;
}

export const originOf = (node, name) => ends(node.graph, [node.inputs.find((input) => input.name === name)?.link])[0];

/** Return where the VAE of a MODEL comes from: its loader, or the one place of the graph, or into it, that gives one. */
export function vaeOf(graph, model) {
  const given = (slots = []) => slots.filter(({ type }) => type === "VAE");
  const from = (node) => given(node.outputs).map((output) => ({ outputNode: node, output }));
  const beside = model?.outputNode ? from(model.outputNode) : [];
  const into = graph.inputNode ? given(graph.inputs).map((subgraphInput) => ({ subgraphInput })) : [];
  const all = beside.length ? beside : [...graph.nodes.flatMap(from), ...into];
  return all.length === 1 ? all[0] : undefined;
}

/** Link an origin, if there is one, to a node's input, through points. */
export function link(origin, target, name, ...points) {
  const input = target.inputs.find((each) => each.name === name);
  if (!origin) return;
  join(origin, { inputNode: target, input });
  lead(target.graph, input, points);
}

/** Let a node have the links of another one's outputs of `CARRIED` types, as far as it has such outputs. */
export function takeOutputs(taker, taken) {
  for (const { type, links } of taken.outputs) {
    const output = CARRIED.includes(type) && taker.outputs.find((each) => each.type === type);
    if (output) for (const target of ends(taken.graph, links ?? [])) join({ outputNode: taker, output }, target);
  }
}

/**
 * Link an origin to a node's input by a way round a merge: down or up beside it, to the side, and to the input; or past
 * it, where the origin is at its right.
 *
 * @param {object} origin
 * @param {object} merge
 * @param {number} [below] how far the merge may grow; without it, the way goes above it, and down right beside it
 * @param {object} target at its right
 * @param {string} name of the input
 * @param {number} place of the link among those that come so
 */
export function linkRound(origin, merge, below, target, name, place) {
  if (!origin) return;
  const { graph, pos, size } = merge;
  const { outputNode: node } = origin;
  const right = pos[0] + size[0];
  const from = node ? slotHeight(node, origin.output) : pos[1] + place * LANE;
  const into = target.getInputPos(target.findInputSlot(name))[1];
  const isPast = node && node !== merge && node.pos[0] > right;
  const goesAbove = isPast || below === undefined;
  const step = goesAbove ? -LANE / 2 : LANE / 2;
  const exit = goesAbove ? from : from + 2 * step;
  const [at, aside] =
    isPast || node === merge ? [node.pos[0] + node.size[0] + LANE, LANE / 2] : [pos[0] - LANE, -LANE / 2];
  // from the merge's right side it only has to pass what is between
  const under = node === merge ? freeLane(graph, 1, exit, step, [at, target.pos[0]]) : below;
  const level = goesAbove ? (isPast ? target : merge).pos[1] - ABOVE : under + LANE / 2;
  const start = freeLane(graph, 0, at, aside, [exit, level], node);
  const along = freeLane(graph, 1, level, step, [start, target.pos[0]]);
  const [last, back] = isPast || !goesAbove ? [target.pos[0] - (LANE / 2) * (3 - place), -1] : [right + LANE / 2, 1];
  const end = freeLane(graph, 0, last, (back * LANE) / 2, [along, into]);
  // a way of its own, not on from that of another link
  link({ ...origin, link: undefined }, target, name, [start, exit], [start, along], [end, along], [end, into]);
}
