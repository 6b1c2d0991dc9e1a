// The pack's extension: rows and results in Merge LoRAs, pictures in Compare, results in Save merged LoRA, trigger words
// in LoRA to merge, and a menu entry of LoRA loaders.

import { app } from "../../scripts/app.js";
import { addPictures } from "./compare.js";
import { enlist } from "./file_lists.js";
import { also, isOurs, nodesOf } from "./graph.js";
import { addTriggers } from "./lora.js";
import { forget, loraNames } from "./loras.js";
import { offerMerge } from "./menu.js";
import { addResult, followRuns } from "./panel.js";
import { addRows } from "./rows.js";

const SOCKETS = {
  ITERIS_LORAS: "#6aa84f",
  LORA_STACK: "#6aa84f",
  ITERIS_MERGED: "#e0a100",
  LORA_MODEL: "#c58fb5",
  ITERIS_SETTINGS: "#5aa9c7",
};
const HEIGHTS = { IterISMerge: 130, IterISCompare: 64, IterISSave: 96, IterISRecipe: 64 }; // of the results

/** Let numbers be read in Vue nodes as on the canvas: older ones round to three digits, and 0.0001 would be 0. */
function showDigits(node) {
  for (const { options } of node.widgets ?? []) {
    if (options?.precision > 3) options.maxFractionDigits = options.precision;
  }
}

/** Give our types of sockets, and their links, a colour, unless the frontend has one. */
function colourSockets() {
  for (const [type, colour] of Object.entries(SOCKETS)) {
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour);
    for (const colours of [app.canvas.default_connection_color_byType, LGraphCanvas.link_type_colors])
      colours[type] ||= colour;
  }
}

/** Put a file that was saved into the page's lists of LoRAs, and let the rows know of it. */
async function listSaved(output) {
  const name = output?.iteris?.[0]?.files?.[0]?.listed_as;
  if (!name) return;
  const files = ((await loraNames()) ?? []).filter((file) => file !== name);
  enlist(
    name,
    Object.values(LiteGraph.registered_node_types).map(({ nodeData }) => nodeData),
    nodesOf(app.graph),
    files,
  );
  forget();
  learnFiles();
}

function learnFiles() {
  for (const node of nodesOf(app.graph)) node.learnIterisFiles?.();
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
    offerMerge(node);
    if (!isOurs(node)) return;
    node.title = node.title.replace(/ \(IterIS\)$/, ""); // which tells packs apart in the search alone
    colourSockets();
    showDigits(node);
    if (node.comfyClass === "IterISMerge") addRows(node);
    if (node.comfyClass === "IterISLora") addTriggers(node);
    if (node.comfyClass in HEIGHTS) addResult(node, HEIGHTS[node.comfyClass]);
    if (node.comfyClass === "IterISCompare") addPictures(node);
    // as large as its parts need, or its first drawing would make it so: a step of Undo of its own
    node.setSize(node.computeSize().map((least, axis) => Math.max(least, node.size[axis])));
    if (node.comfyClass === "IterISSave") also(node, "onExecuted", listSaved);
  },
  refreshComboInNodes() {
    forget();
    learnFiles();
  },
});
