// Inputs that few people change, hidden until a button is pressed: on the canvas as Vue nodes have it, and in both not
// those that are set. The Vue nodes of ComfyUI before 0.10 show all.

import { app } from "../../scripts/app.js";
import { hide } from "./elements.js";
import { also } from "./graph.js";
import { fit, shrink } from "./heights.js";

const used = new WeakSet(); // inputs that were set, so that none goes while its default is written

/** Return a node's advanced inputs, which from now on are advanced only until they are set or linked. */
export function markAdvanced(node) {
  const { input } = node.constructor.nodeData;
  const isSet = ({ name, value }) => value !== input.optional[name][1].default;
  const isIdle = (widget) => {
    if (isSet(widget) || node.getSlotFromWidget(widget)?.link != null) used.add(widget);
    return !used.has(widget);
  };
  // another pack may have added some of its own
  const advanced = (node.widgets ?? []).filter(({ name, options }) => options?.advanced && input.optional?.[name]);
  // Vue nodes look again when the value changes; a subgraph's promoted widget keeps what was so when it was promoted
  for (const widget of advanced)
    Object.defineProperty(widget.options, "advanced", { enumerable: true, get: () => isIdle(widget), set: () => {} });
  return advanced;
}

/** Hide a node's advanced inputs on the canvas, see `markAdvanced`, and add the button that shows all. */
export function foldAdvanced(node, advanced, say) {
  if (!advanced.length) return;
  let isOpen = !!app.extensionManager?.setting?.get("Comfy.Node.AlwaysShowAdvancedWidgets");
  const options = { serialize: false, canvasOnly: true };
  const button = node.addWidget("button", "iteris_advanced", null, () => toggle(), options);
  button.serialize = false;
  const show = () => {
    button.label = say(isOpen ? "hide_advanced" : "show_advanced");
    advanced.forEach((widget) => used.delete(widget));
  };
  const toggle = () => {
    isOpen = !isOpen;
    show();
    fit(node);
  };
  const heightAs = (wished) => {
    const now = isOpen;
    isOpen = wished;
    const [, height] = node.computeSize();
    isOpen = now;
    return height;
  };
  /** Hide what was not set, and give its room back, unless the user has made the node another height. */
  const close = () => {
    show();
    const whole = heightAs(true);
    const alone = whole - LiteGraph.NODE_WIDGET_HEIGHT - 4; // without the button, as older frontends have it
    if ([whole, alone].some((height) => Math.abs(node.size[1] - height) < 1)) shrink(node, whole - heightAs(isOpen));
  };
  for (const widget of advanced) hide(node, widget, () => !isOpen && widget.options.advanced, button);
  also(node, "onConfigure", close);
  close();
}
