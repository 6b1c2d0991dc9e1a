// The pack's extension: a report in Merge LoRAs, trigger words and buttons in LoRA to merge.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeAt, nodesOf } from "./graph.js";
import { addButtons, addTriggers } from "./lora.js";
import { addReport } from "./merge.js";
import { addElement, also, fit, heightOf, progressRemover } from "./parts.js";
import { sayer } from "./words.js";

const REPORT_WIDTH = 480; // its pictures' letters are read at this width
const say = (word, values) => sayer(app.extensionManager?.setting?.get("Comfy.Locale"))(word, values);

/** Show the text of a run whole; the frontend shows two lines of it. */
function addText(node, width = 0) {
  const removeProgress = progressRemover(node);
  let element;
  also(node, "onExecuted", (output) => {
    if (!output?.text?.length) return;
    element ??= addElement(node, "text", (text) => heightOf(text, 12) || 44);
    const text = document.createElement("div");
    text.textContent = output.text.join("\n");
    element.replaceChildren(text, ...(output.iteris_pictures ?? []).map(pictureOf));
    removeProgress();
    fit(node, width);
  });
  fit(node, width);

  /** Return a picture of the server as wide as the node, which grows for it. */
  function pictureOf({ filename, subfolder, type }) {
    const picture = document.createElement("img");
    picture.addEventListener("load", () => fit(node, width));
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    return picture;
  }
}

/** Show on a merge what it was saved in. */
function showFile(output) {
  const [file] = output?.iteris_saved ?? [];
  if (file) nodeAt(app.graph, file.merge)?.showIterisFile?.(file);
}

/** Let numbers be read in Vue nodes as on the canvas: the older ones round to three digits, and 0.0001 would be 0. */
function showDigits(node) {
  for (const { options } of node.widgets ?? []) {
    if (options?.precision > 3) options.maxFractionDigits = options.precision;
  }
}

/** Follow the one run that the server tells this page about: layers of any other are not for its nodes. */
function followRuns() {
  let running;
  const all = (method) => [...nodesOf(app.graph)].forEach((node) => node[method]?.());
  api.addEventListener("execution_start", ({ detail }) => {
    running = detail.prompt_id;
    all("startIterisRun");
  });
  api.addEventListener("iteris.layer", ({ detail }) => {
    if (detail.prompt_id === running) nodeAt(app.graph, detail.node)?.showIterisLayer?.(detail);
  });
  for (const end of ["execution_error", "execution_interrupted"]) {
    api.addEventListener(end, ({ detail }) => {
      if (detail.prompt_id === running) all("endIterisRun");
    });
  }
}

app.registerExtension({
  name: "IterIS.LoraMerge",
  init() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./iteris.css", import.meta.url).href;
    document.head.append(style);
  },
  setup: followRuns,
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("IterIS")) return;
    showDigits(node);
    if (node.comfyClass === "IterISMerge") addReport(node, say);
    else if (node.comfyClass === "IterISLora") {
      addTriggers(node, say);
      addButtons(node, say);
    } else addText(node, node.comfyClass === "IterISReport" ? REPORT_WIDTH : 0);
    if (node.comfyClass !== "IterISSave") return;
    also(node, "onExecuted", (output) => {
      app.refreshComboInNodes(); // what was saved can be chosen as a LoRA at once
      showFile(output);
    });
  },
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) nodeAt(app.graph, id)?.showIterisReport?.(output);
    Object.values(outputs).forEach(showFile);
  },
});
