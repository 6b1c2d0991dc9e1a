// How high a node is: by what it holds now, and by what a workflow keeps of that.

import { app } from "../../scripts/app.js";
import { also, nodesOf } from "./graph.js";
import { onceLaidOut } from "./places.js";
import { keepResult, putInto } from "./undo.js";

const MARGIN = 10; // the frontend's, round an element of a node
const NARROW = 4; // round one without a frame of its own; iteris.css has the rest at its sides
const SLACK = 40; // that a node may have which nobody has made higher: what holds it differs by so much
const heights = new WeakMap(); // node -> its height without what is not saved, the rooms of that, and how many fits go on
const seen = new WeakMap(); // element -> the height of its content
let held; // where a pointer went down that is still down
let drawn = {}; // the node whose edge is being drawn, and its size and own height before

addEventListener("pointerdown", ({ target }) => (held = target), true);
for (const event of ["pointerup", "pointercancel"])
  addEventListener(
    event,
    () => {
      const { node } = drawn;
      held = undefined;
      drawn = {};
      if (node?.graph) requestAnimationFrame(() => fit(node));
    },
    true,
  );

/** Return whether the user is drawing a node's edge. */
const isDrawn = (node) =>
  LiteGraph.vueNodesMode
    ? held instanceof Element && getComputedStyle(held).cursor.endsWith("-resize")
    : app.canvas.resizing_node === node;

/**
 * Remember of which height a node is but for what it grows to by itself and for what is seen now and then, so that it
 * shrinks to that again; a workflow saves that height. To be called before a node has any part.
 */
export function keepHeight(node) {
  const state = { own: node.size[1], last: node.size[1], rooms: [], waiting: 0, laidOut: undefined, isFitting: false };
  heights.set(node, state);
  also(node, "onConfigure", ({ size }) => {
    state.own = size?.[1] ?? node.size[1]; // newer frontends have made it higher by now
  });
  also(node, "onResize", () => {
    const [, height] = node.size;
    // the frontend tells of growth to what is in a node, too, and Vue nodes of whatever is drawn
    const own = height - roomsOf(state);
    // and sets once more what a node has that is not laid out, when its graph is opened
    const isSet = height !== state.last && (own < state.own || height > node.computeSize()[1] + SLACK);
    const { last } = state;
    state.last = height;
    if (state.isFitting) return;
    if (isDrawn(node)) state.own = ownDrawn(node, own, last);
    else if (isSet && !LiteGraph.vueNodesMode) state.own = own;
  });
  also(node, "onSerialize", (saved) => {
    if (saved.size) saved.size = [saved.size[0], Math.max(1, state.own)];
  });
}

/**
 * Return a node's own height while its edge is drawn: where it is made wider or narrower, and what it holds is lower
 * then, only what it is drawn higher by is its own.
 */
function ownDrawn(node, own, last) {
  const [width, height] = node.size;
  if (drawn.node !== node) drawn = { node, width, height: last, own: heights.get(node).own };
  return Math.abs(width - drawn.width) > SLACK ? Math.min(own, drawn.own + height - drawn.height) : own;
}

/** Return the height of a node that a workflow keeps; undefined: it is not one of ours. */
export const ownHeight = (node) => heights.get(node)?.own;

/** Return the room of what is on a node and is not saved. */
const roomsOf = ({ rooms }) => rooms.reduce((sum, each) => sum + each(), 0);

/** Return the height that a Vue node has by what it holds: it tells of another height only once that changes. */
function heightDrawn(node) {
  const isHere = LiteGraph.vueNodesMode && node.graph === app.canvas.graph;
  const shown = isHere ? document.querySelector(`[data-node-id="${node.id}"]`) : null;
  const set = shown?.style.getPropertyValue("--node-height");
  if (!set) return undefined;
  shown.style.setProperty("--node-height", "0px");
  const height = shown.offsetHeight - LiteGraph.NODE_TITLE_HEIGHT;
  shown.style.setProperty("--node-height", set);
  return height > 0 ? height : undefined;
}

/** Let a node's own height be less by what its content is now, unless the user has made it higher than it has to be. */
export function shrink(node, by) {
  const state = heights.get(node);
  if (state.own <= node.computeSize()[1] + by + SLACK) state.own -= by;
  fit(node);
}

/** Let the node be as high as what it holds, once that has been laid out, and as high as it is by itself. */
export function fit(node, width = 0, laidOut = undefined) {
  const state = heights.get(node);
  state.waiting += 1;
  state.laidOut = laidOut ?? state.laidOut;
  const grow = () => {
    const [least, height] = node.computeSize();
    state.isFitting = true;
    node.setSize([
      Math.max(node.size[0], width, least),
      Math.max(state.own + roomsOf(state), heightDrawn(node) ?? height),
    ]);
    state.isFitting = false;
    node.setDirtyCanvas?.(true, true);
  };
  grow();
  requestAnimationFrame(() =>
    requestAnimationFrame(() => {
      state.waiting -= 1;
      if (state.waiting) return; // the last one of them does it for all
      grow();
      state.laidOut?.();
      state.laidOut = undefined;
      keepLaidOut();
    }),
  );
}

/** Fit all nodes once the other renderer has laid them out: they keep the heights that they had before or meanwhile. */
export const fitAnew = () =>
  onceLaidOut(() => {
    for (const node of nodesOf(app.canvas.graph.rootGraph)) if (heights.has(node)) fit(node);
  });

let laying = 0; // how many wait

/** Put into the newest step of Undo what the page works out by itself, once it has: how high nodes are, and their order. */
export function keepLaidOut() {
  laying += 1;
  onceLaidOut(() => {
    laying -= 1;
    const nodes = [...nodesOf(app.graph)];
    if (!laying && !nodes.some(isDrawn)) putInto(nodes, ["size", "order"]);
  });
}

/** Let no user make a node so narrow that its parts cannot be read. */
export function keepWidth(node, least) {
  const { computeSize } = node;
  node.computeSize = (...values) => {
    const [width, height] = computeSize.apply(node, values);
    return [Math.max(width, least), height];
  };
}

const widened = new WeakSet(); // subgraphs' nodes

/** Let a subgraph's node on the canvas be as wide as an element needs that it shows of a node in it. */
export function widenAround(node, element, least) {
  const { graph } = app.canvas;
  if (LiteGraph.vueNodesMode || node.graph === graph || !element.offsetWidth) return;
  const around = graph.nodes.find(
    ({ subgraph, widgets }) => subgraph && widgets.some((each) => each.element === element),
  );
  if (!around || widened.has(around)) return;
  widened.add(around);
  keepWidth(around, least);
  if (around.size[0] >= least) return;
  around.setSize([least, around.size[1]]);
  around.setDirtyCanvas(true, true);
  keepResult(around);
}

/** Save a node's height without that of what a workflow does not keep, or it would be a hole once it is opened again. */
export const savesWithout = (node, measure) => heights.get(node).rooms.push(measure);

/** Return what the frontend counts of a node's height below widgets, and does not leave there: below our elements, and all. */
const surplusOf = (node) => 8 + 4 * node.widgets.filter(({ element, hidden }) => element && !hidden).length;

/** Return the least height of a panel, which is its node's last widget and has all room that is left. */
export const panelHeight = (node, element) => Math.max(0, heightOf(element, 12) - surplusOf(node));

/** Return the room round an element of a node on the canvas. */
export const marginOf = ({ className }) => (/iteris-(slider|times|lacks)/.test(className) ? NARROW : MARGIN);

/**
 * Return the height of an element's content, however high the element itself is: the one that was seen last, while it is
 * out of sight, though it may have other content by then; 0 before it was seen.
 */
export function heightOf(element, padding) {
  const { children, lastElementChild: last } = element;
  if (!last) return 0;
  const first = [...children].find(({ offsetHeight }) => offsetHeight); // what is hidden has no place
  if (last.offsetHeight) seen.set(element, last.offsetTop + last.offsetHeight - first.offsetTop);
  return seen.has(element) ? seen.get(element) + padding + 2 * marginOf(element) : 0;
}
