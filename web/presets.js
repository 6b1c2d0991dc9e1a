// What Merge LoRAs shows with its presets and sizes: the time of each preset, and the size's number where it counts.

import { areOf, duration, expected, readCost, resolutionOf } from "./cost.js";
import { addElement, isShown, showAbove, showElement } from "./elements.js";
import { also, saidBy, sourceOf } from "./graph.js";
import { fit, heightOf, shrink } from "./heights.js";
import { html } from "./parts.js";
import { OF_MERGE, PREVIEW, idleOf, isNumbered } from "./prompt_graph.js";

const PROPERTY = "iteris_cost"; // in the node's properties, so that a saved workflow keeps it

/** Return what the settings say that a merge is linked to; 0: there are none, undefined: nobody knows. */
export function settingOf(merge, name) {
  const { link } = merge?.inputs.find((input) => input.name === "settings") ?? {};
  return link === null ? 0 : saidBy(sourceOf(merge?.graph, link).node, name);
}

/** Show the number of the size only where there is one. */
export function addSize(node) {
  const [size, value] = ["size", "size_value"].map((wanted) => node.widgets?.find(({ name }) => name === wanted));
  if (!size || !value) return;
  const element = addElement(node, "size", () => 0, value);
  showElement(node, element, false);
  const show = () => {
    const before = node.computeSize()[1];
    showAbove(node, element, isNumbered(size.value));
    shrink(node, Math.max(0, before - node.computeSize()[1]));
  };
  also(size, "callback", show);
  also(node, "onConfigure", show);
  show();
}

/** Dim what does not count: of a preview, and while all settings of a merge come from a recipe. */
export function dimIdle(node) {
  const show = () => {
    const { node: source } = sourceOf(node.graph, node.inputs.find(({ name }) => name === "settings")?.link);
    const idle = idleOf(source?.comfyClass === "IterISRecipe", saidBy(node, "preset"));
    for (const [at, widget] of node.widgets.entries()) {
      if (OF_MERGE.includes(widget.name)) widget.disabled = idle.includes(widget.name);
      // Vue nodes are dimmed by their style sheet, from an element of ours on
      widget.element?.classList.toggle("iteris-uncounted", idle.includes(node.widgets[at + 1]?.name));
    }
  };
  const preset = node.widgets.find(({ name }) => name === "preset");
  also(preset, "callback", show);
  for (const event of ["onConnectionsChange", "onConfigure", "compareIterisRun"]) also(node, event, show);
}

/**
 * Add the line with the time of each preset, once a merge was timed.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 */
export function addTimes(node, say) {
  const preset = node.widgets?.find(({ name }) => name === "preset");
  if (!preset) return;
  const element = addElement(node, "times", (shown) => heightOf(shown, 0) || 34, preset);
  const costNow = () => {
    const cost = readCost(node.properties[PROPERTY]);
    return cost && areOf(cost, settingOf(node, "sample_runs"), settingOf(node, "resolution")) ? cost : undefined;
  };
  const show = () => {
    const cost = costNow();
    showElement(node, element, !!cost);
    if (!cost) return;
    const from = say("times_title", { time: duration(cost.seconds, say) });
    const times = expected(cost).map(({ names, seconds, runs, steps }) => {
      const values = { name: names.join(" = "), time: duration(seconds, say) };
      const text = say(names.length > 1 ? "time_of_settings" : "time", values);
      const line = html("span", names.includes(preset.value) ? "iteris-chosen" : "", text);
      line.title = `${runs ? `${say(steps ? "runs_polished" : "runs", { runs, steps })}\n` : ""}${from}`;
      return line;
    });
    const preview = html(
      "span",
      preset.value === PREVIEW ? "iteris-chosen" : "",
      say("time_preview", { name: PREVIEW }),
    );
    element.replaceChildren(html("span", "", say("anew")), ...times, preview);
    fit(node);
  };
  const take = (output) => {
    const cost = readCost(output?.iteris_cost?.[0], resolutionOf(output));
    if (!cost) return;
    node.properties[PROPERTY] = cost;
    show();
    fit(node);
  };
  node.showIterisCost = take;
  also(preset, "callback", show);
  also(node, "compareIterisRun", () => {
    if (!!costNow() === isShown(element)) return;
    show();
    fit(node);
  });
  also(node, "onExecuted", take);
  also(node, "onConfigure", () => {
    const saved = node.properties[PROPERTY];
    if (saved !== undefined) node.properties[PROPERTY] = readCost(saved);
    show();
  });
  show();
}
