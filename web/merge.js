// The report panel of Merge LoRAs, and the button that makes one of Load LoRAs: what a run tells layer by layer, then its report, and the file that it was saved in.

import { app } from "../../scripts/app.js";
import { addCompare, addSave, comparedBy, turnBack, turnInto } from "./chain.js";
import { addElement, isShown, showElement } from "./elements.js";
import { also, nodesOf, saidBy } from "./graph.js";
import { fit, panelHeight, savesWithout } from "./heights.js";
import { takers } from "./links.js";
import { aboutModelOf, forget, isGone } from "./loras.js";
import { draw, drawOn } from "./panel.js";
import { button, tell } from "./parts.js";
import { showCompare } from "./places.js";
import { reached } from "./prompt_field.js";
import { hasSampled } from "./progress.js";
import { figures } from "./report.js";
import { canName, nameOf, newRow, ownName, readRows } from "./rows_text.js";
import {
  MADE_AS,
  REPORT,
  asOneStep,
  compareWithRun,
  copyWithoutResult,
  isAwaited,
  keepResult,
  nameAsRun,
  nameAsShown,
  runAlone,
} from "./runs.js";
import { readFile, readSaved } from "./saved.js";
import { addProgress } from "./stage.js";
import { PREVIEW } from "./work.js";

const PANEL_WIDTH = 400;
const KEPT = ["ITERIS_MERGED", "LORA_MODEL"];

const create = (type) => LiteGraph.createNode(type);

/** Return whether a loader has a LoRA to merge: a row that is switched on, or what comes through a link. */
function hasLoras({ inputs, widgets }) {
  const isLinked = inputs.some(
    ({ name, link }) => ["loras", "more_loras", "lora_stack"].includes(name) && link != null,
  );
  return (
    isLinked || readRows(widgets.find(({ name }) => name === "loras").value).some(({ row, isOff }) => row && !isOff)
  );
}

/** Return the button that puts a Merge LoRAs with the same rows and links in the place of a loader. */
export function mergeButton(node, say) {
  return button("iteris-merge-these", say("merge_these"), say("merge_these_title"), async (event) => {
    event.stopPropagation(); // the frontend selects whose button it was, and cuts out what lies under it
    if (!hasLoras(node)) return void tell(say("nothing_to_merge"), say("nothing_to_merge_rest"));
    const { guidance } = await aboutModelOf(node);
    if (!node.graph) return; // or it was pressed twice
    const made = turnInto(node, create, app.canvas, say("see_and_save"), guidance);
    if (!made.some(isCompare)) tell(say("no_compare"), say("no_compare_rest"));
  });
}

/** Return what takes the merged LoRA; undefined: something outside of a subgraph. */
const mergedTakers = ({ graph, outputs }) =>
  takers(
    graph,
    outputs.filter(({ type }) => KEPT.includes(type)),
  );

const isCompare = (node) => node?.comfyClass === "IterISCompare";

/** Return the Compares that the merged LoRA leads to, into and out of subgraphs. */
const comparesOf = (node) =>
  KEPT.flatMap((type) => [...reached(node, type)].map(({ inputNode }) => inputNode)).filter(isCompare);

const compareOf = (node) => comparesOf(node)[0];

/** Return whether something takes the merged LoRA that may save it. */
const isKept = (node) => mergedTakers(node).some((taker) => !isCompare(taker));

/** Return whether the first row of a Compare shows all LoRAs in one picture: where it makes its own prompts. */
function isFirstRow(node) {
  const hasOwn = (compare) => compare.mode === LiteGraph.ALWAYS && saidBy(compare, "prompt")?.trim() === "";
  return comparesOf(node).some(hasOwn);
}

/** Return whether a file is of the merge that a report is of, as far as they say it. */
function isFileOf(file, report) {
  if (!file || !report) return false;
  return !file.report || file.report === report.digest;
}

/** Return the height of a report's details where they are open, without their title. */
function roomOpen(element) {
  const details = element.querySelector(".iteris-details[open]");
  return details ? details.offsetHeight - details.firstElementChild.offsetHeight : 0;
}

/**
 * Add the panel; the node gets what a run's events call.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 */
export function addReport(node, say) {
  const height = (shown) => panelHeight(node, shown) || (node.properties[REPORT] ? 250 : 44);
  let isAtWork = false; // and says how far it is
  const removeProgress = addProgress(node, say, undefined, (isTold) => {
    isAtWork = isTold;
    showPanel();
  });
  const element = addElement(node, "report", height);
  /** Show the panel, but what it says before a run only where none goes on. */
  const showPanel = () => {
    const isWanted = !(isAtWork && element.classList.contains("iteris-empty"));
    if (isShown(element) === isWanted) return;
    showElement(node, element, isWanted);
    fit(node);
  };
  savesWithout(node, () => roomOpen(element)); // details are closed once the workflow is opened again
  const [preset, together] = ["preset", "together"].map((wanted) => node.widgets.find(({ name }) => name === wanted));
  let layers; // of a run that has not ended, by path: what is solved again takes its own place
  let told = true; // the report is of the run that began last
  let waiting = false;
  let isOpen; // the details, once somebody has opened or closed them
  let ended = {}; // what the run that began last ended with: `failure` or `stopped`, see `draw`
  let endedAs; // the node's name in that run
  let isSampled = false; // its sampling is over
  let isEarlier = false; // the report is of a run before the last one
  let isChanged = false; // the node, or one before it, is not what it was in the run that made the report
  let isFileGone = false;
  let early; // a file that is told before its report, as where the server's cache has the merge of a new node
  let subjects = 0; // of the LoRAs in the rows
  let wasLinked = ""; // what `linked` told last
  let wasFirstRow = false; // and `isFirstRow`
  let shown; // what the run has told that was shown last
  const canCompare = () => !!node.graph && mergedTakers(node).every(Boolean) && !!comparedBy(node);
  /** Return whether the next run may be thought to draw subjects in one picture, and does not measure them so. */
  const isApart = () =>
    subjects > 1 && preset.value !== PREVIEW && !together.disabled && saidBy(node, "together") === false;
  const linked = () => [isKept(node), !!compareOf(node), canCompare(), isApart(), preset.value === PREVIEW].join();
  const show = () => {
    layers = undefined;
    drawAll(isEarlier ? "earlier" : isChanged ? "changed" : undefined);
    fit(node, node.properties[REPORT] ? PANEL_WIDTH : 0, () => keepResult(node));
  };
  const drawAll = (earlier, live) => {
    const isPreview = preset.value === PREVIEW;
    const save = isKept(node) || earlier ? undefined : saveNow;
    const load = node.iterisLoaderOf(node.properties[REPORT]?.file);
    const ofCompare = isFirstRow(node);
    const see = compareOf(node) || (!earlier && canCompare()) ? seeNow : undefined;
    const how = {
      earlier,
      ...ended,
      isApart: isApart(),
      isFirstRow: ofCompare,
      isGone: isFileGone,
      isOpen,
      isPreview,
      live,
      load,
      save,
      see,
      toggled,
    };
    wasLinked = linked();
    wasFirstRow = ofCompare;
    draw(element, node.properties[REPORT], say, how);
    showPanel();
  };
  /** Show what links, rows and settings tell, if that is another one now. */
  const showLinked = () => setTimeout(() => layers || linked() === wasLinked || show()); // once a workflow that is being opened is there, and its report was read
  /** Show a report that was read; undefined: it cannot be drawn. */
  const showRead = (report) => {
    node.properties[REPORT] = report;
    show();
    if (!report) element.firstChild.textContent = say("unreadable");
  };
  const loadNow = async (event, file) => {
    event.stopPropagation();
    forget(); // another tab, window or program may have saved over it
    if (await isGone(file)) {
      for (const each of nodesOf(app.graph)) each.checkIterisFile?.();
      return;
    }
    const { listed_as: name } = file;
    const words = file.prompt ?? file.words.join(", ");
    const title = say("draw_with", { lora: ownName(nameOf(name)) });
    const titles = { positive: say("prompt"), negative: say("negative_prompt") };
    const known = { ...(await aboutModelOf(node)), words, title, titles };
    if (!node.graph) return;
    turnBack(node, newRow(name).text, create, app.canvas, known);
    if (!node.graph) tell(say("replaced"), say("replaced_rest"));
  };
  /** Return what loads a file of the merge; undefined: that is one of a pair, or a row cannot name it. */
  node.iterisLoaderOf = (file) => {
    const name = file?.listed_as;
    const isOfPair = node.inputs.some((input) => input.name === "model_low_noise" && input.link != null);
    return name && canName(name) && !isOfPair ? (event) => loadNow(event, file) : undefined;
  };
  /** Add what saves the merge, and run it: the server has the merge already. */
  const saveNow = () => asOneStep(() => runAlone(addSave(node, create, app.canvas))); // which changes seeds in older frontends
  /** Show the merge's Compare, or add one, and run it. */
  const seeNow = async () => {
    const { guidance } = compareOf(node) ? {} : await aboutModelOf(node);
    if (!node.graph) return;
    const compare = compareOf(node); // or it was pressed twice
    if (compare) {
      showCompare(compare, app.canvas);
      if (await isAwaited(compare)) tell(say("drawing"), say("drawing_rest"));
    } else if (canCompare()) asOneStep(() => runNew(addCompare(node, create, app.canvas, guidance)));
  };
  /** Run a new Compare, and what saves its picture. */
  const runNew = (compare) => runAlone(compare, ...takers(node.graph, compare.outputs));
  const madeAs = () => node.properties[REPORT] && node.properties[MADE_AS];
  const forgetEnd = () => {
    ended = {};
    endedAs = undefined;
  };
  /** Show what a run has ended with; `isNotHere`: before its begin, or in another window. */
  const showEnd = async (how, isNotHere = false) => {
    ended = how;
    isEarlier ||= !isNotHere;
    show();
    const name = await (isNotHere ? nameAsShown : nameAsRun)(node);
    if (ended === how) endedAs = name;
  };
  copyWithoutResult(node);
  compareWithRun(
    node,
    () => !!(madeAs() || endedAs),
    (now) => {
      const isOld = !!endedAs && endedAs !== now; // what failed is no news of a node that is another one now
      const wasChanged = isChanged;
      isChanged = !!madeAs() && madeAs() !== now;
      if (isOld) forgetEnd();
      const isOther = isFirstRow(node) !== wasFirstRow || linked() !== wasLinked;
      if (isOld || isChanged !== wasChanged || isOther) layers ? showLive(true) : show();
      return isChanged && !layers;
    },
  );
  const toggled = (open) => {
    isOpen = open;
    fit(node);
  };
  const showLive = (isAnew) => {
    waiting = false;
    if (!layers) return;
    const live = readSaved(figures({ layers: [...layers.values()] }));
    if (isAnew || !drawOn(element, live, say)) drawAll(isChanged ? "changed" : "before", live);
    fit(node, PANEL_WIDTH);
  };
  node.startIterisRun = () => {
    told = false;
    isSampled = false;
    const hadEnded = Object.keys(ended).length > 0;
    forgetEnd();
    if (hadEnded) show();
  };
  node.showIterisFailure = (message, isNotHere) => showEnd({ failure: message }, isNotHere);
  node.showIterisStop = (isElsewhere) => {
    if (isElsewhere && ended.failure) return; // which still holds
    const word = isElsewhere ? "stopped_elsewhere" : isSampled ? "stopped_sampled" : "stopped";
    showEnd({ stopped: say(word) }, isElsewhere);
  };
  node.showIterisLayer = ({ first, layer }) => {
    told = false; // of a node that was made anew in the run, too
    if (first) layers = new Map();
    layers?.set(layer.path, layer);
    if (!waiting) requestAnimationFrame(() => showLive());
    waiting = true;
  };
  node.endIterisRun = () => {
    removeProgress(); // of a run that was cancelled or failed; a later one makes its own
    if (told) return;
    isEarlier = true;
    show();
  };
  node.showIterisReport = async (output) => {
    if (!output?.iteris_report?.[0]) return;
    const { file, digest } = node.properties[REPORT] ?? {};
    const found = readSaved(figures({ ...output.iteris_report[0], made: output.iteris_made?.[0] }));
    // what is told again, as from the server's cache or after a restart, is still in the file
    const saved = file && digest === found?.digest ? file : early;
    const report = found && { ...found, ...(isFileOf(saved, found) ? { file: saved } : {}) };
    early = undefined;
    delete node.properties[MADE_AS];
    told = true;
    forgetEnd();
    isEarlier = isChanged = false;
    removeProgress();
    showRead(report);
    shown = report;
    const name = await nameAsRun(node, output);
    if (shown !== report) return; // another one has come
    if (name) node.properties[MADE_AS] = name;
    keepResult(node);
    node.compareIterisRun();
  };
  node.showIterisFile = (file) => {
    const found = readFile(file);
    if (!found) return;
    if (!isFileOf(found, node.properties[REPORT])) {
      early = found;
      return;
    }
    node.properties[REPORT] = { ...node.properties[REPORT], file: found };
    isFileGone = false;
    show();
    keepResult(node);
  };
  node.checkIterisFile = async () => {
    const file = node.properties[REPORT]?.file;
    const found = !!file && (await isGone(file));
    if (found === isFileGone || file !== node.properties[REPORT]?.file) return;
    isFileGone = found;
    if (!layers) show();
  };
  also(node, "showIterisProgress", (detail) => {
    isSampled = hasSampled(detail);
  });
  also(node, "onExecuted", node.showIterisReport);
  also(node, "onConnectionsChange", () => {
    node.compareIterisRun();
    showLinked();
  });
  for (const widget of [preset, together]) also(widget, "callback", showLinked);
  node.showIterisSubjects = (count) => {
    subjects = count;
    showLinked();
  };
  also(node, "onConfigure", () => {
    const saved = node.properties[REPORT];
    if (saved === undefined) show();
    else showRead(readSaved(saved)); // all of it would be copied at every change
    node.compareIterisRun();
  });
  show();
}
