// The pack's extension: a report in IterIS Merge, trigger words and a button in LoRA to merge.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { draw as drawChips } from "./chips.js";
import { draw as drawReport } from "./panel.js";
import { figures } from "./report.js";
import { sayer } from "./words.js";

const PROPERTY = "iteris_report"; // in the node's properties, so that a saved workflow keeps its report
const PANEL_WIDTH = 400;
const MARGIN = 10; // the frontend's, above and below a widget
const PROGRESS_TEXT = "$$node-text-preview"; // the frontend's name for it

const say = (word, values) => sayer(app.extensionManager?.setting?.get("Comfy.Locale"))(word, values);

/** Call `more` after a node's own handler of an event. */
function also(node, handler, more) {
  const own = node[handler];
  node[handler] = function (...values) {
    const result = own?.apply(this, values);
    more(...values);
    return result;
  };
}

/** Add a part of our own to a node; neither saved nor sent. */
function addElement(node, name, height) {
  const element = document.createElement("div");
  element.className = `iteris-${name}`;
  const widget = node.addDOMWidget(`iteris_${name}`, `iteris_${name}`, element, { serialize: false, hideOnZoom: false, getMinHeight: () => height(element) });
  widget.serialize = false;
  // what others add behind our inputs is not theirs to keep: it would be read as the next version's new inputs
  also(node, "onSerialize", (saved) => {
    const own = node.widgets.indexOf(widget);
    if (saved.widgets_values?.length > own) saved.widgets_values.length = own;
  });
  return element;
}

/** Let the node grow to what it holds, once that has been laid out. */
function fit(node, width = 0) {
  const grow = () => {
    const [least, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, least), Math.max(node.size[1], height)]);
    node.setDirtyCanvas?.(true, true);
  };
  grow();
  requestAnimationFrame(() => requestAnimationFrame(grow));
}

/** Take away the text that told how far a node is, once it has told more than that. */
function removeProgress(node) {
  const progress = node.widgets.find(({ name }) => name === PROGRESS_TEXT);
  if (progress) node.removeWidget?.(progress);
}

/** Return the height of an element's content, however high the element itself is; 0 while it is not shown. */
function heightOf({ firstElementChild: first, lastElementChild: last }, padding) {
  return last?.offsetHeight ? last.offsetTop + last.offsetHeight - first.offsetTop + padding + 2 * MARGIN : 0;
}

function addReport(node) {
  const height = (shown) => heightOf(shown, 12) || (node.properties[PROPERTY] ? 250 : 44);
  const element = addElement(node, "report", height);
  let layers; // of a run that has not ended, by path: what is solved again takes its own place
  let waiting = false;
  const showLive = () => {
    waiting = false;
    if (!layers) return;
    drawReport(element, figures({ layers: [...layers.values()] }), say);
    fit(node, PANEL_WIDTH);
  };
  node.showIterisLayer = ({ first, layer }) => {
    if (first) layers = new Map();
    layers?.set(layer.path, layer);
    if (!waiting) requestAnimationFrame(showLive);
    waiting = true;
  };
  node.endIterisRun = () => {
    if (layers) show();
  };
  const show = () => {
    layers = undefined;
    drawReport(element, node.properties[PROPERTY], say);
    fit(node, node.properties[PROPERTY] ? PANEL_WIDTH : 0);
  };
  node.showIterisReport = (output) => {
    const [report] = output?.iteris_report ?? [];
    if (!report) return;
    node.properties[PROPERTY] = figures(report);
    removeProgress(node);
    show();
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  };
  also(node, "onExecuted", node.showIterisReport);
  also(node, "onConfigure", show);
  show();
}

/** Show the text of a run whole; the frontend shows two lines of it. */
function addText(node) {
  let element;
  also(node, "onExecuted", (output) => {
    if (!output?.text?.length) return;
    element ??= addElement(node, "text", (text) => heightOf(text, 12) || 44);
    const text = document.createElement("div");
    text.textContent = output.text.join("\n");
    element.replaceChildren(text);
    removeProgress(node);
    fit(node);
  });
}

async function fetchLora(name) {
  try {
    const response = await api.fetchApi(`/iteris/lora?name=${encodeURIComponent(name)}`);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // without a server there are no chips
  }
}

function addTriggers(node) {
  const [name, prompts] = ["lora_name", "prompts"].map((wanted) => node.widgets?.find((widget) => widget.name === wanted));
  if (!name || !prompts) return;
  const element = addElement(node, "triggers", (chips) => heightOf(chips, 0) || 4);
  const show = async () => {
    const wanted = name.value;
    const lora = wanted ? await fetchLora(wanted) : null;
    if (name.value !== wanted) return;
    drawChips(element, lora, prompts, say);
    fit(node);
  };
  also(name, "callback", show);
  also(node, "onConfigure", show);
  show();
}

function addButton(node) {
  const button = node.addWidget("button", say("add"), "", () => addLora(node), { serialize: false });
  button.serialize = false;
}

/** Put another LoRA behind this one in the chain, below whatever stands under it. */
function addLora(node) {
  const { graph } = node;
  const next = LiteGraph.createNode("IterISLora");
  const column = graph.nodes.filter(({ pos, size }) => pos[0] < node.pos[0] + node.size[0] && node.pos[0] < pos[0] + size[0]);
  next.pos = [node.pos[0], Math.max(...column.map(({ pos, size }) => pos[1] + size[1])) + 60];
  graph.add(next);
  for (const id of [...(node.outputs[0].links ?? [])]) {
    const link = graph.links.get?.(id) ?? graph.links[id];
    next.connect(0, graph.getNodeById(link.target_id), link.target_slot);
  }
  node.connect(0, next, "previous");
  return next;
}

app.registerExtension({
  name: "IterIS.LoraMerge",
  init() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./iteris.css", import.meta.url).href;
    document.head.append(style);
  },
  setup() {
    api.addEventListener("iteris.layer", ({ detail }) => app.graph?.getNodeById(detail.node)?.showIterisLayer?.(detail));
    for (const end of ["execution_error", "execution_interrupted"]) {
      api.addEventListener(end, () => app.graph?.nodes.forEach((node) => node.endIterisRun?.()));
    }
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("IterIS")) return;
    if (node.comfyClass === "IterISMerge") addReport(node);
    else addText(node);
    if (node.comfyClass === "IterISLora") {
      addTriggers(node);
      addButton(node);
    }
  },
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) app.graph?.getNodeById(id)?.showIterisReport?.(output);
  },
});
