// Parts of our own in a node. Each has one height and scrolls inside: a node never grows by itself.

import { app } from "../../scripts/app.js";
import { also } from "./graph.js";
import { html } from "./parts.js";

/**
 * Add a part to a node; it is neither saved nor sent.
 *
 * @param {object} node
 * @param {string} name
 * @param {number} height in pixels; a part that may grow takes what a taller node leaves
 * @param {object} [options]
 * @param {object} [options.above] the widget that it comes after; none: the last one
 * @param {boolean} [options.isFixed] whether it never grows
 * @returns {HTMLElement}
 */
export function addPanel(node, name, height, { above, isFixed = false } = {}) {
  const element = html("div", `iteris-panel iteris-${name}`);
  element.style.minHeight = `${height}px`;
  const inputs = new Set(node.widgets?.filter(({ serialize }) => serialize !== false).map((widget) => widget.name));
  const widget = node.addDOMWidget(`iteris_${name}`, `iteris_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: () => height,
    ...(isFixed && { getMaxHeight: () => height }),
  });
  widget.serialize = false;
  if (above) {
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    node.widgets.splice(node.widgets.indexOf(above) + 1, 0, widget);
  }
  // a place that is saved for a part between inputs would be read as the next input's value
  also(node, "onSerialize", (saved) => {
    if (saved.widgets_values)
      saved.widgets_values = node.widgets.filter((each) => inputs.has(each.name)).map(({ value }) => value ?? null);
  });
  element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
  element.dataset.captureWheel = true; // or Vue nodes would zoom the canvas, whatever scrolls
  element.addEventListener("wheel", (event) => {
    event.stopPropagation();
    const inner = event.target.closest("textarea, .iteris-strip");
    const scrolls = [element, inner].some((each) => each?.scrollHeight > each?.clientHeight + 1);
    if (!scrolls) app.canvas.processMouseWheel(event);
  });
  return element;
}

/** Let one of our parts take the place of a widget, whose value stays what is saved and sent. */
export function replaceWidget(widget, element) {
  widget.hidden = true;
  widget.computeSize = () => [0, -4]; // older frontends leave 4 pixels below each
  element.classList.add("iteris-replaces"); // Vue nodes hide what comes before by the style sheet
}

/** Let Undo know of a change that was made without a click on the canvas. */
export function noteChange() {
  app.canvas.emitBeforeChange();
  app.canvas.emitAfterChange();
}
