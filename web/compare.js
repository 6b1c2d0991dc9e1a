// What Compare shows besides its pictures: which words its prompt lacks, how many pictures a run draws, and how long that
// takes once one was timed.

import { drawAbsent } from "./chips.js";
import { DRAWN, duration, readDrawn, resolutionOf, toDraw } from "./cost.js";
import { addElement, passing, showElement } from "./elements.js";
import { also, sourceOf } from "./graph.js";
import { fit, heightOf } from "./heights.js";
import { html, keep } from "./parts.js";
import { promptOfCompare } from "./prompt_field.js";
import { settingOf } from "./presets.js";

const COUNTS = ["prompt", "steps", "width", "height"];

/** Return the merge whose pictures a Compare draws, in whatever graph. */
const mergeBefore = ({ graph, inputs }) => sourceOf(graph, inputs.find(({ name }) => name === "merged")?.link).node;

/** Say below the prompt which trigger words of the merge's LoRAs it lacks; an empty one is each LoRA's own. */
export function addAbsent(node, say) {
  const own = node.widgets?.find(({ name }) => name === "prompt");
  if (!own) return;
  const element = addElement(node, "lacks", (shown) => heightOf(shown, 0), own);
  const absence = html("div", "iteris-absent");
  element.append(absence);
  const { show, hide } = passing(node, element, (shown) => heightOf(shown, 0));
  const written = {
    get value() {
      return promptOfCompare(node).value;
    },
    set value(text) {
      const field = promptOfCompare(node);
      field.value = text;
      field.callback?.(text);
      keep();
    },
  };
  let drawn = "[]";
  node.compareIterisPrompt = () => {
    const prompt = promptOfCompare(node)?.value ?? "";
    const absent = prompt.trim() ? (mergeBefore(node)?.iterisAbsentFrom?.(prompt) ?? []) : [];
    const now = JSON.stringify(absent);
    if (now === drawn) return;
    drawn = now;
    drawAbsent(absence, absent, written, say, say("chip"), () => node.compareIterisPrompt());
    if (absent.length) show();
    else hide();
  };
  for (const event of ["onConnectionsChange", "onConfigure"])
    also(node, event, () => node.graph && node.compareIterisPrompt());
}

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
    const resolution = settingOf(mergeBefore(node), "resolution");
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
