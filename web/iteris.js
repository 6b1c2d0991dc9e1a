// The pack's extension: rows, times and a report in Merge LoRAs, rows in Load LoRAs, trigger words and buttons in LoRA
// to merge, a slider in Compare.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { foldAdvanced, markAdvanced } from "./advanced.js";
import { addAbsent, addPictures } from "./compare.js";
import { keepApart } from "./use_everywhere.js";
import { also, isOurs } from "./graph.js";
import { holdAll } from "./groups.js";
import { fitAnew, keepHeight, keepLaidOut } from "./heights.js";
import { addButtons, addTriggers } from "./lora.js";
import { forgetAll } from "./loras.js";
import { meaningsStyle, showMeanings } from "./meanings.js";
import { mergeButton, settingsButton } from "./merge.js";
import { addReport } from "./merge_panel.js";
import { beginOpening, isRestoring, locale, rememberOpened } from "./open_workflow.js";
import { html, untell } from "./parts.js";
import { COMPARE_WIDTH, keepInSight, onceLaidOut, showWhole } from "./places.js";
import { addSize, addTimes, dimIdle } from "./presets.js";
import { pasteWithoutResults } from "./results.js";
import { addRows } from "./rows.js";
import { addSlider } from "./slider.js";
import { offerRows } from "./stock.js";
import { followScale } from "./progress_line.js";
import { hasOurs, orderTemplates, translate } from "./templates.js";
import { addText } from "./text.js";
import {
  followRuns,
  hearOwnRuns,
  learnFiles,
  recallOpened,
  seekRun,
  showFile,
  showMoved,
  showOutputs,
} from "./run_events.js";
import { languageOf, sayer } from "./words.js";
import { isMerge } from "./prompt_graph.js";

const PATIENCE = 3000; // milliseconds that a workflow waits for its texts in the page's language
const REPORT_WIDTH = 440; // its pictures' letters are read at this width
const WIDTHS = { IterISSettings: 300, IterISSave: 340 }; // as wide as the room that templates leave for them
const SOCKETS = {
  ITERIS_LORAS: "#6aa84f",
  LORA_STACK: "#6aa84f",
  ITERIS_MERGED: "#e0a100",
  LORA_MODEL: "#c58fb5",
  ITERIS_REPORT: "#9b8bd8",
  ITERIS_SETTINGS: "#5aa9c7",
};
let isOpening = false; // a workflow, whose results `recallOpened` shows
const say = (word, values) => sayer(locale())(word, values);

/** Let numbers be read in Vue nodes as on the canvas: the older ones round to three digits, and 0.0001 would be 0. */
function showDigits(node) {
  for (const { options } of node.widgets ?? []) {
    if (options?.precision > 3) options.maxFractionDigits = options.precision;
  }
}

const texts = new Map(); // by the language: a promise of the templates' texts

/** Return the templates' texts in a language; none where they cannot be had in time. */
async function textsOf(language) {
  const address = new URL(`./templates/${language}.json`, import.meta.url);
  const ask = async () => (await fetch(address, { signal: AbortSignal.timeout(PATIENCE) })).json();
  if (!texts.has(language)) texts.set(language, ask());
  try {
    return await texts.get(language);
  } catch {
    texts.delete(language);
    return {};
  }
}

/** Give our types of sockets, and their links, a colour, unless the frontend has one; it forgets ours with its palette. */
function colourSockets() {
  const { style } = document.documentElement;
  for (const [type, colour] of Object.entries(SOCKETS)) {
    const name = `--color-datatype-${type}`;
    if (style.getPropertyValue(name) !== colour) style.setProperty(name, colour);
    for (const colours of [app.canvas.default_connection_color_byType, LGraphCanvas.link_type_colors])
      colours[type] ||= colour;
  }
}

app.registerExtension({
  name: "IterIS.LoraMerge",
  init() {
    const [, pack] = new URL(import.meta.url).pathname.match(/\/extensions\/([^/]+)\//);
    orderTemplates(api, decodeURIComponent(pack));
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./iteris.css", import.meta.url).href;
    document.head.append(style);
  },
  setup() {
    rememberOpened();
    pasteWithoutResults();
    followRuns();
    followScale();
    app.ui?.settings?.addEventListener?.("Comfy.VueNodes.Enabled.change", fitAnew);
    new MutationObserver(colourSockets).observe(document.documentElement, { attributeFilter: ["style"] }); // a palette
    document.head.append(html("style", "", meaningsStyle(say)));
  },
  async beforeConfigureGraph(workflow) {
    isOpening = true;
    beginOpening();
    const language = languageOf(locale());
    if (language !== "en" && hasOurs(workflow)) translate(workflow, await textsOf(language));
  },
  nodeCreated(node) {
    offerRows(node, say);
    if (!isOurs(node)) return;
    node.title = node.title.replace(/ \(IterIS\)$/, ""); // which tells packs apart in the search alone
    colourSockets();
    keepApart(node);
    showDigits(node);
    const advanced = markAdvanced(node);
    showMeanings(node, say);
    keepHeight(node);
    also(node, "onResize", () => node.graph && holdAll(node.graph));
    also(node, "onConfigure", () => isOpening || showMoved(node));
    node.seekIterisRun = () => seekRun(node);
    if (isMerge(node)) {
      addRows(node, say, [settingsButton(node, say)]);
      addSize(node);
      addReport(node, say);
      addTimes(node, say);
      dimIdle(node);
    } else if (node.comfyClass === "IterISLoad") {
      addRows(node, say, [mergeButton(node, say)]);
      addText(node, say);
    } else if (node.comfyClass === "IterISLora") {
      addTriggers(node, say);
      addButtons(node, say);
    } else if (node.comfyClass === "IterISCompare") {
      foldAdvanced(node, advanced, say);
      // below its inputs: how far it is, how long it takes, the slider, and the rest
      const last = node.widgets.at(-1);
      addText(node, say, { width: REPORT_WIDTH, above: last, folded: say("whole_picture") });
      const progress = node.widgets[node.widgets.indexOf(last) + 1];
      addSlider(node, say, progress);
      addPictures(node, say, progress);
      addAbsent(node, say);
      node.setSize([COMPARE_WIDTH, node.size[1]]);
    } else {
      const width = WIDTHS[node.comfyClass];
      if (width) node.setSize([width, node.size[1]]);
      if (node.comfyClass === "IterISSettings") foldAdvanced(node, advanced, say);
      addText(node, say, { width: node.comfyClass === "IterISReport" ? REPORT_WIDTH : 0 });
    }
    if (node.comfyClass === "IterISSave") also(node, "onExecuted", showFile);
    hearOwnRuns(node);
  },
  refreshComboInNodes() {
    forgetAll();
    learnFiles(true);
  },
  afterConfigureGraph() {
    isOpening = false;
    if (isRestoring()) {
      untell();
      onceLaidOut(() => keepInSight(app.canvas));
    }
    showWhole(app.graph, app.canvas);
    keepLaidOut();
    recallOpened(); // not waited for: it waits for the frontend, which would wait for it
  },
  onNodeOutputsUpdated: showOutputs,
});
