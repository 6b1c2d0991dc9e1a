// Parts of our own in a node.

import { app } from "../../scripts/app.js";

const MARGIN = 10; // the frontend's, above and below a widget
const END = /^(.{12,}?)([-_. ].{5,13}|.{8})$/su; // of a file's name, which does not give way: from a word on
const INNERMOST = /^(.*[\\/])(.*)$/s; // of folders

/** Call `more` after a node's own handler of an event. */
export function also(node, handler, more) {
  const own = node[handler];
  node[handler] = function (...values) {
    const result = own?.apply(this, values);
    more(...values);
    return result;
  };
}

/** Return an element with a text. */
export function html(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** Return a text in one line, of which the start gives way where there is little room. */
function cut(className, text, parts) {
  const [, start, end] = text.match(parts) ?? [text, text, ""];
  const element = html("span", className);
  element.append(html("span", "iteris-start", start), html("span", "iteris-end", end));
  return element;
}

/**
 * Return what a file is called, and after it its folder, which gives way first where there is little room, see
 * `withFolder`. Then the name gives way in its middle: versions and epochs are at its end.
 */
export function fileName(className, name) {
  const [, folder, own] = name.match(/^(?:(.*)[\\/])?(.*)$/s);
  const element = cut(className, own, END);
  return folder ? [element, cut("iteris-folder", folder, INNERMOST)] : [element];
}

/** Return a file's name in one line, with its folder where at least its beginning has room. */
export function withFolder(name) {
  const line = html("span", "iteris-with-folder");
  line.append(...fileName("iteris-called", name));
  return line;
}

/** Say after a file's name, once it is known, what it is made of, see `madeOf`: each part has as much room. */
export function sayMade(line, made) {
  line.querySelector(".iteris-made")?.remove();
  if (!made) return;
  const said = html("span", "iteris-made");
  said.append(...made.split("\n").map((part) => html("span", "", part)));
  line.append(said);
}

/** Return an image that takes itself away if there is none at its address. */
export function imageAt(address, loading = "eager") {
  const image = html("img");
  image.alt = "";
  image.loading = loading;
  image.src = address;
  image.addEventListener("error", () => image.remove());
  return image;
}

/** Return a button outside any form; its title is also its name where it shows a sign only. */
export function button(className, text, title, act) {
  const element = html("button", className, text);
  element.type = "button";
  element.title = title;
  if (!/\p{L}/u.test(text)) element.ariaLabel = title;
  element.addEventListener("click", act);
  return element;
}

/**
 * Copy a text, and return whether that went well; browsers allow it on pages of this machine and on those with a
 * certificate.
 */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** Tell something in a corner of the page, for a moment. */
export function tell(summary, detail) {
  app.extensionManager?.toast?.add({ severity: "info", summary, detail, life: 3000 });
}

/**
 * Add a part of our own to a node; neither saved nor sent.
 *
 * @param {object} node
 * @param {string} name
 * @param {(element: HTMLElement) => number} height
 * @param {object} [above] the widget above it; none: at the node's end
 * @param {boolean} [isFixed] whether it has no part of the room of a larger node
 */
export function addElement(node, name, height, above, isFixed = !!above) {
  const element = html("div", `iteris-${name}`);
  element.dataset.of = node.comfyClass;
  const inputs = new Set(node.widgets?.filter(({ serialize }) => serialize !== false).map((widget) => widget.name));
  const heights = { getMinHeight: () => height(element), ...(isFixed && { getMaxHeight: () => height(element) }) };
  const widget = node.addDOMWidget(`iteris_${name}`, `iteris_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    ...heights,
  });
  widget.serialize = false;
  if (above)
    node.widgets.splice(node.widgets.indexOf(above) + 1, 0, ...node.widgets.splice(node.widgets.indexOf(widget), 1));
  // what is between our inputs would leave a gap, and what others add is not theirs to keep: it would be read as
  // the next version's new inputs
  also(node, "onSerialize", (saved) => {
    if (saved.widgets_values)
      saved.widgets_values = node.widgets.filter((each) => inputs.has(each.name)).map(({ value }) => value ?? null);
  });
  also(node, "onAdded", () => takePlace(node, element, name));
  let isLaidOut = false; // out of sight it has no height
  new ResizeObserver(() => {
    if (!isLaidOut && element.offsetHeight && node.graph) fit(node);
    isLaidOut = element.offsetHeight > 0;
  }).observe(element);
  return element;
}

/**
 * Let an element of a Vue node take the place of another one, once that is drawn.
 *
 * When a workflow is opened anew, as Undo does, the frontend goes on to show the element of the node that had the same
 * id before.
 */
function takePlace(node, element, name, frames = 10) {
  if (!LiteGraph.vueNodesMode || !frames) return;
  const shown = document.querySelector(`[data-node-id="${node.id}"] .iteris-${name}`);
  if (shown && shown !== element && node.graph === app.canvas.graph) shown.replaceWith(element);
  requestAnimationFrame(() => takePlace(node, element, name, frames - 1));
}

/**
 * Show the widget above an element, or hide it.
 *
 * Vue nodes have it hidden by their style sheet: what is hidden by its options would be so for a subgraph's own widget,
 * too, and
 * older frontends do not look at them again.
 */
export function showAbove(node, element, isShown) {
  const own = node.widgets.findIndex((widget) => widget.element === element);
  const [above, ours] = node.widgets.slice(own - 1, own + 1);
  element.classList.toggle("iteris-hides", !isShown);
  hide(node, above, () => !isShown, ours);
}

/** Show an element of a node, or hide it. */
export function showElement(node, element, isShown) {
  element.classList.toggle("iteris-hidden", !isShown);
  hide(
    node,
    node.widgets.find((widget) => widget.element === element),
    () => !isShown,
  );
}

/**
 * Hide a widget on its node, and not where a subgraph has it among its own: that reads all from here, while its graph
 * is on the canvas.
 *
 * @param {object} node
 * @param {object} widget
 * @param {() => boolean} isHidden
 * @param {object} [other] the widget at whose place the dot of its input is drawn meanwhile, and not at the node's first
 *   input
 */
export function hide(node, widget, isHidden, other) {
  const own = Object.getPrototypeOf(widget);
  // a copy that is pasted later has no graph yet
  const isSeen = () => !isHidden() || (node.graph && node.graph !== app.canvas.graph);
  const none = () => [0, -4]; // in older frontends a hidden widget has its height, and 4 below
  Object.defineProperties(widget, {
    hidden: { configurable: true, get: () => !isSeen(), set: () => {} },
    computeSize: { configurable: true, get: () => (isSeen() ? own.computeSize : none), set: () => {} },
  });
  if (!other) return;
  let { y } = widget;
  const place = { get: () => (isHidden() ? other.y : y), set: (at) => (y = at) };
  Object.defineProperty(widget, "y", { configurable: true, enumerable: true, ...place });
}

/** Put what has changed without a click on the canvas into the frontend's history. */
export function keep() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // its newer name, and the older one
}

const SLACK = 40; // that a node may have which nobody has made higher: what holds it differs by so much
const heights = new WeakMap(); // node -> its height without what is not saved, the rooms of that, and how many fits go on
let held; // where a pointer went down that is still down

for (const event of ["pointerdown", "pointerup", "pointercancel"])
  addEventListener(event, ({ target }) => (held = event === "pointerdown" ? target : undefined), true);

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
  const state = { own: node.size[1], rooms: [], waiting: 0, laidOut: undefined, isFitting: false };
  heights.set(node, state);
  also(node, "onConfigure", ({ size }) => {
    state.own = size?.[1] ?? node.size[1]; // newer frontends have made it higher by now
  });
  also(node, "onResize", () => {
    const [, height] = node.size;
    // the frontend tells of growth to what is in a node, too, and Vue nodes of whatever is drawn
    const own = height - roomsOf(state);
    const isSet = own < state.own || height > node.computeSize()[1] + SLACK;
    if (isDrawn(node) || (isSet && !state.isFitting && !LiteGraph.vueNodesMode)) state.own = own;
  });
  also(node, "onSerialize", (saved) => {
    const [width, height] = saved.size ?? [];
    if (width) saved.size = [width, Math.max(1, Math.min(state.own, height - roomsOf(state)))];
  });
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
      grow();
      state.waiting -= 1;
      if (state.waiting) return;
      state.laidOut?.();
      state.laidOut = undefined;
    }),
  );
}

/** Let no user make a node so narrow that its parts cannot be read. */
export function keepWidth(node, least) {
  const { computeSize } = node;
  node.computeSize = (...values) => {
    const [width, height] = computeSize.apply(node, values);
    return [Math.max(width, least), height];
  };
}

/**
 * Hide an element that is seen now and then, and return what shows it, and what hides it again. A workflow does not keep
 * its room, which is its `height`.
 */
export function passing(node, element, height) {
  showElement(node, element, false);
  savesWithout(node, () => (isShown(element) ? height(element) : 0));
  return {
    show(width = 0) {
      showElement(node, element, true);
      fit(node, width);
    },
    hide() {
      if (!isShown(element)) return;
      showElement(node, element, false);
      fit(node);
    },
  };
}

/** Return whether an element is shown on its node. */
export const isShown = (element) => !element.classList.contains("iteris-hidden");

/** Return the height that a shown element takes on its node; 0 if it is hidden. */
export const roomOf = (element, padding) => (isShown(element) ? heightOf(element, padding) : 0);

/** Save a node's height without that of what a workflow does not keep, or it would be a hole once it is opened again. */
export const savesWithout = (node, measure) => heights.get(node).rooms.push(measure);

/** Return what the frontend counts of a node's height below widgets, and does not leave there: below our elements, and all. */
const surplusOf = (node) => 8 + 4 * node.widgets.filter(({ element, hidden }) => element && !hidden).length;

/** Return the least height of a panel, which is its node's last widget and has all room that is left. */
export const panelHeight = (node, element) => Math.max(0, heightOf(element, 12) - surplusOf(node));

/** Return the height of an element's content, however high the element itself is; 0 while it is not shown. */
export function heightOf({ firstElementChild: first, lastElementChild: last }, padding) {
  return last?.offsetHeight ? last.offsetTop + last.offsetHeight - first.offsetTop + padding + 2 * MARGIN : 0;
}
