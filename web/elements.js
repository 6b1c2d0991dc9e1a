// Parts of our own in a node, shown and hidden.

import { app } from "../../scripts/app.js";
import { also } from "./graph.js";
import { fit, heightOf, marginOf, savesWithout } from "./heights.js";
import { html } from "./parts.js";

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
    margin: marginOf(element),
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
