// The links of a graph: where they begin and end, how they are joined anew, and the ways that they go by.

import { BADGE, grownEdges, LANE, thingsOf } from "./places.js";

const SAMPLES = 100; // points of a link at which it is looked for nodes
const BESIDE = 6; // a node, where a link that goes down or up does not seem to be its edge
const OF_POINT = 2 * LANE; // a point of a link is as bad as so much of its length
const HIDDEN = 100 * LANE; // and to go behind nodes
const BEND = 10 * LANE; // up or down; a curve of more goes behind what is beside it
const CURVE = 0.75; // of a link's length, from a node's slot on to a side: as the frontend draws it without points
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
  const [before, behind] = axis ? [BADGE, LANE / 2] : [BESIDE, BESIDE];
  const isCovered = (edges, lane) =>
    edges[axis] - before < lane && lane < edges[axis + 2] + behind && edges[1 - axis] < to && from < edges[3 - axis];
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

/** Return where a link may begin: at an origin, or where another link of that was led to, in sight; with that link. */
function startsOf(graph, { outputNode: node, output, subgraphInput }) {
  if (!node) {
    const { pos, size } = graph.inputNode;
    return [{ at: [pos[0] + size[0], subgraphInput.pos?.[1] ?? pos[1] + size[1] / 2] }];
  }
  const at = [node.pos[0] + node.size[0], slotHeight(node, output)];
  const others = ends(graph, output.links ?? []).flatMap(({ link }) => {
    const points = pointsOf(graph, link);
    const way = [at, ...points.map(({ pos }) => pos)];
    const hidden = points.findIndex((_, i) => !isClear(graph, way[i], way[i + 1]));
    const seen = hidden < 0 ? points : points.slice(0, hidden);
    return seen.map(({ id, pos }) => ({ at: [...pos], link: { parentId: id }, isEnd: id === link.parentId }));
  });
  return [{ at, node }, ...others];
}

/** Return the points that a link goes through. */
function pointsOf(graph, link) {
  const points = [];
  for (let end = graph.getReroute(link.parentId); end; end = graph.getReroute(end.parentId)) points.unshift(end);
  return points;
}

/** Return whether a link passes no node: straight, or in a curve from one slot to another. */
function isClear(graph, from, into, isCurve = false) {
  const bend = isCurve ? CURVE * Math.hypot(into[0] - from[0], into[1] - from[1]) : 0;
  const points = Array.from({ length: SAMPLES }, (_, i) => {
    const t = i / SAMPLES;
    const swing = bend * t * (1 - t) * (1 - 2 * t);
    const share = isCurve ? t * t * (3 - 2 * t) : t;
    return from.map((at, axis) => at + (into[axis] - at) * share + (axis ? 0 : swing));
  });
  return !thingsOf(graph).some((node) => {
    const edges = grownEdges(node);
    return points.some((at) => at.every((place, axis) => edges[axis] < place && place < edges[axis + 2]));
  });
}

/** Return the points of ways from one place to another at its right: straight, and level at heights that are free. */
function waysRound(graph, { at: from, node, link, isEnd }, into) {
  const across = [from[0], into[0]];
  const steps = [-LANE / 2, LANE / 2];
  // a link that is led already goes on level, or branches off on its way
  const heights = link ? [into[1]] : [into[1], from[1]];
  const levels = isEnd
    ? [from[1]]
    : heights.flatMap((level) => steps.map((step) => freeLane(graph, 1, level, step, across)));
  const led = [...new Set(levels)].map((level) => {
    const start = link ? from[0] : freeLane(graph, 0, from[0] + LANE / 2, LANE / 2, [from[1], level], node);
    const end = freeLane(graph, 0, into[0] - LANE, -LANE / 2, [level, into[1]]);
    const [down, up] = [from, into].map(([, at]) => Math.abs(level - at));
    const points = [
      !link && down > BEND && [start, from[1]],
      down && [start, level],
      up && [end, level],
      up > BEND && [end, into[1]],
    ];
    return points.filter(Boolean);
  });
  return [[], ...led];
}

/** Return how bad a way is: long, of many points, or behind nodes, which it seems to end at. */
const costOf = (graph, way) =>
  way.slice(1).reduce((sum, at, i) => {
    const length = Math.abs(at[0] - way[i][0]) + Math.abs(at[1] - way[i][1]);
    return sum + length + OF_POINT + (isClear(graph, way[i], at, way.length === 2) ? 0 : HIDDEN);
  }, 0);

/**
 * Link an origin to the input of a node at its right: straight where that passes no node, else by the shortest way above
 * or below all that is between, or on from where another link of that origin was led to.
 */
export function linkRound(origin, target, name) {
  if (!origin) return;
  const { graph } = target;
  const into = [target.pos[0], target.getInputPos(target.findInputSlot(name))[1]];
  const ways = startsOf(graph, origin).flatMap((start) =>
    waysRound(graph, start, into).map((points) => ({
      start,
      points,
      cost: costOf(graph, [start.at, ...points, into]),
    })),
  );
  const [{ start, points }] = ways.toSorted((one, other) => one.cost - other.cost);
  link({ ...origin, link: start.link }, target, name, ...points);
}
