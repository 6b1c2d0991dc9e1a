// What Compare shows below its inputs: how many pictures a run draws, and how long that takes once one was timed.

import { DRAWN, duration, readDrawn, resolutionOf, toDraw } from "./cost.js";
import { addElement, showElement } from "./elements.js";
import { also, sourceOf } from "./graph.js";
import { fit, heightOf } from "./heights.js";
import { html } from "./parts.js";
import { settingOf } from "./presets.js";

const COUNTS = ["prompt", "steps", "width", "height"];

/**
 * Add the line.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 * @param {object} above the widget above it
 */
export function addPictures(node, say, above) {
  const widgets = COUNTS.map((wanted) => node.widgets?.find(({ name }) => name === wanted));
  if (!widgets.every(Boolean)) return;
  const element = addElement(node, "times", (shown) => heightOf(shown, 0) || 34, above);
  const show = () => {
    const drawn = readDrawn(node.properties[DRAWN]);
    const isLinked = node.inputs?.some(({ widget, link }) => COUNTS.includes(widget?.name) && link != null);
    showElement(node, element, !!drawn && !isLinked);
    if (!drawn || isLinked) return;
    const { node: merge } = sourceOf(node.graph, node.inputs.find(({ name }) => name === "merged")?.link);
    const resolution = settingOf(merge, "resolution");
    const { count, seconds } = toDraw(drawn, ...widgets.map(({ value }) => value), resolution);
    const text = seconds ? say("pictures_time", { count, time: duration(seconds, say) }) : say("pictures", { count });
    const line = `${say("all_anew")} ${text}`;
    if (element.textContent === line) return;
    element.replaceChildren(html("span", "", line));
    element.title = say("pictures_title");
    fit(node);
  };
  for (const widget of widgets) also(widget, "callback", show);
  also(node, "onConnectionsChange", show);
  also(node, "compareIterisRun", show); // Merge settings may have changed
  also(node, "onConfigure", show);
  node.showIterisDrawn = (output) => {
    const drawn = readDrawn(output?.iteris_drawn?.[0], resolutionOf(output));
    if (!drawn) return;
    node.properties[DRAWN] = drawn;
    show();
  };
  also(node, "onExecuted", node.showIterisDrawn);
  show();
}
