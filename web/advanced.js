// Inputs that few people change, hidden on the canvas until a button is pressed, as Vue nodes have it. ComfyUI 0.3.75
// does not say which inputs those are, and all are shown.

import { app } from "../../scripts/app.js";
import { hide } from "./elements.js";
import { also } from "./graph.js";
import { fit, shrink } from "./heights.js";

/** Hide a node's advanced inputs, but those that are set or linked, and add the button that shows all. */
export function foldAdvanced(node, say) {
  const advanced = node.widgets.filter(({ options }) => options?.advanced);
  if (!advanced.length) return;
  const { input } = node.constructor.nodeData;
  let isOpen = !!app.extensionManager?.setting?.get("Comfy.Node.AlwaysShowAdvancedWidgets");
  const isSet = ({ name, value }) => value !== input.optional[name][1].default;
  const isUsed = (widget) => isSet(widget) || node.getSlotFromWidget(widget)?.link != null;
  const used = new Set(); // so that none goes while its default is written
  const isHidden = (widget) => {
    if (isUsed(widget)) used.add(widget);
    return !isOpen && !used.has(widget);
  };
  const options = { serialize: false, canvasOnly: true };
  const button = node.addWidget("button", "iteris_advanced", null, () => toggle(), options);
  button.serialize = false;
  const show = () => {
    button.label = say(isOpen ? "hide_advanced" : "show_advanced");
    used.clear();
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
  for (const widget of advanced) hide(node, widget, () => isHidden(widget), button);
  also(node, "onConfigure", close);
  close();
}
