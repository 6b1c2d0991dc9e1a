// Shows on nodes what the server tells of their runs, and what it has told before.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isOurs, nodeAt, nodesOf } from "./graph.js";
import { enlist } from "./file_lists.js";
import { forget } from "./loras.js";
import { oneAtATime } from "./pace.js";
import { isBeingOpened, locale, onceOpen } from "./open_workflow.js";
import { failedBefore, keepOutput, keptOutputs, madeBefore, recalled } from "./results.js";
import {
  ENDS,
  RUN,
  begin,
  endOf,
  ifOwn,
  isLast,
  isLeftOut,
  isLoaded,
  isLost,
  isNew,
  isOver,
  isRunning,
  mark,
  rememberRuns,
  runOf,
  takersOf,
  waitingRun,
} from "./runs.js";
import { isIn } from "./current_prompt.js";
import { sayer, withButtons } from "./words.js";
import { isMerge } from "./prompt_graph.js";

const LOOK = 1000; // milliseconds between two looks at the server's queue, which holds whole workflows
const SEEK = 500; // milliseconds after the last change, before the server is asked for an earlier run
const NOT_BEGUN = "not begun, since "; // what a merge says where a node after it is refused, which says why

/** Let what was saved be chosen as a LoRA at once. */
function listSaved(output) {
  const [file] = output?.iteris_saved ?? [];
  if (!file) return;
  const types = Object.values(LiteGraph.registered_node_types).map(({ nodeData }) => nodeData ?? {});
  const [, known] = LiteGraph.registered_node_types.IterISLora.nodeData.input.required.lora_name;
  if (file.listed_as) enlist(file.listed_as, types, [...nodesOf(app.graph)], [...known.options]);
  learnFiles();
}

/** Let comparisons name the file that a merge was saved in. */
function nameMerges(output) {
  if (output?.iteris_saved) for (const node of nodesOf(app.graph)) node.nameIterisMerges?.();
}

/** Let rows look at their files again; `isAsked`: as the user wants it. */
export function learnFiles(isAsked = false) {
  forget();
  for (const node of nodesOf(app.graph)) {
    node.learnIterisFiles?.(isAsked);
    node.checkIterisFile?.();
  }
}

/** Show on a merge what it was saved in. */
export function showFile(output) {
  const [file] = output?.iteris_saved ?? [];
  if (file) nodeAt(app.graph, file.merge)?.showIterisFile?.(file);
}

const shownRuns = new WeakMap(); // node -> the run that has made what it shows

/** Show what a run has made of a node. */
function showOutput(node, output) {
  shownRuns.set(node, output?.[RUN]);
  node.showIterisCost?.(output);
  node.showIterisDrawn?.(output);
  node.showIterisTiles?.(output);
  node.showIterisReport?.(output);
  node.showIterisText?.(output);
  showFile(output);
}

/** Show what a run has made of a node, if that is one of the run. */
function showOwn(id, output) {
  const node = nodeAt(app.graph, id);
  if (!isOurs(node)) return;
  ifOwn(node, output, () => {
    hear(node);
    showOutput(node, output);
  });
}

/** Show on a node why the server does not run it, in our own words: it puts the input's name before them. */
function showRefusal(id, errors) {
  const of = (kind) => errors.filter(({ type }) => type === kind);
  const told = of("custom_validation_failed").map(({ details }) => details.replace(/^\w+ - /, ""));
  const own = told.filter((text) => !text.startsWith(NOT_BEGUN));
  const bare = of("required_input_missing").map(({ extra_info: { input_name: name } }) => name);
  const isOfRows = errors.every(({ details }) => details?.startsWith("loras - "));
  const word = bare.length > 1 ? "several_not_connected" : "not_connected";
  if (bare.length) own.unshift(sayer(locale())(word, { inputs: bare.join(", ") }));
  const node = nodeAt(app.graph, id);
  if (!isOurs(node)) return;
  if (own.length) node.showIterisFailure?.(withButtons(own.join("\n"), locale()), isOfRows ? "rows" : "refused");
  else if (told.length) node.showIterisStop?.(told[0].startsWith(`${NOT_BEGUN}Compare`) ? "compare" : "save");
}

/** Show on a node why it failed; on the Save behind it, where that is why. */
async function showFailure(node, { node_id: id, exception_message: told }, how, ran) {
  const message = withButtons(told, locale());
  const [, ofSave] = message.match(/^Save merged LoRA: (.*)/s) ?? [];
  const saves = ofSave ? await takersOf(id, "IterISSave", ran) : [];
  if (!saves.length) return node.showIterisFailure(message, how);
  for (const each of saves) each.showIterisFailure(ofSave.trim(), how);
  node.showIterisStop("save");
}

const heard = new WeakMap(); // node -> when a run has told last what it has made of it
const hear = (node) => heard.set(node, performance.now());

/**
 * Show what runs have made of nodes once that is found, a report first, then what it was saved in, and return it: but for
 * nodes of which a run has told since it was asked for, and those that show it, maybe with how a later run has ended.
 */
async function showRecalled(asked) {
  const since = performance.now();
  const isNews = (node, run) => shownRuns.get(node) !== run && !(heard.get(node) > since);
  const found = (await asked).filter(([id, { [RUN]: run }]) => isNews(nodeAt(app.graph, id), run));
  found.sort(([, a], [, b]) => !!a.iteris_saved - !!b.iteris_saved);
  for (const [id, output] of found) {
    const node = nodeAt(app.graph, id);
    if (node) showOutput(node, output); // it may be gone since
  }
  return found;
}

/** Show what is known of the run of a node that went into a subgraph, or out of one: it is made anew for that. */
export function showMoved(node) {
  setTimeout(() => node.graph && node.missIterisRun?.()); // it gets its links and its graph now
}

const seekers = new Set(); // nodes whose result is of other settings
let seeking;

/** Show, a moment later, what an earlier run has made of a node as it is now, if there was one. */
export function seekRun(node) {
  seekers.add(node);
  clearTimeout(seeking);
  seeking = setTimeout(() => {
    const wanted = new Set(seekers);
    seekers.clear();
    showRecalled(madeBefore((each) => wanted.has(each)));
  }, SEEK);
}

// by the node's id, what the run that goes on has told:
const layers = new Map();
const stages = new Map(); // the last one
const pictures = new Map(); // of a comparison

/** Show what a run tells of a node, if that is one of the run. */
function showTold(detail, show) {
  onceOpen(() => {
    const node = nodeAt(app.graph, detail.node);
    if (node && isRunning(detail.prompt_id)) ifOwn(node, undefined, () => show(node));
  });
}

const showLayer = (detail) => showTold(detail, (node) => node.showIterisLayer?.(detail));
const showStage = (detail) => showTold(detail, (node) => node.showIterisProgress?.(detail));
const showPicture = (detail) => showTold(detail, (node) => node.showIterisPicture?.(detail));
const forgetTold = () => [layers, stages, pictures].forEach((each) => each.clear());

let atWork; // the id of the node that the server has told last to be at work
let begun = 0; // runs
let elsewhere; // a run that goes on in another window, with a merge that is shown

/** Show on a merge that its run waits for others, or goes on, where the page has been told nothing else of it. */
const showWaiting = oneAtATime(async () => {
  const merges = [...nodesOf(app.graph)].filter(isMerge);
  if (!merges.length) return;
  const last = begun;
  const { now, run, prompt = {}, before, isElsewhere } = await waitingRun();
  const areIts = isElsewhere ? await Promise.all(merges.map((node) => isIn(prompt, node))) : [];
  if (last !== begun) return; // one of them may wait no more; another look follows
  const hasEnded = elsewhere && !now.includes(elsewhere);
  const over = elsewhere;
  if (hasEnded) elsewhere = undefined;
  if (areIts.some(Boolean)) elsewhere = run;
  const waiting = Object.keys(prompt).map((id) => nodeAt(app.graph, id));
  const isAtWork = (node) => atWork === undefined || nodeAt(app.graph, atWork) === node;
  const mayRun = (node) => isNew() && isAtWork(node);
  for (const [at, node] of merges.entries()) {
    const isShown = isElsewhere ? areIts[at] : waiting.includes(node) && (before || mayRun(node));
    node.showIterisWaiting(isShown ? before : undefined, run, isElsewhere);
  }
  if (!hasEnded) return;
  await showRecalled(madeBefore(isOurs)); // nothing else tells this page what it has made
  showEndElsewhere(over);
}, LOOK);

/** Show on a merge what a run in another window has ended with there. */
async function showEndElsewhere(run) {
  const { event, detail, prompt } = (await endOf(run)) ?? {};
  const node = nodeAt(app.graph, detail?.node_id);
  if (!isMerge(node) || !(await isIn(prompt, node))) return;
  if (event === "execution_interrupted") node.showIterisStop("elsewhere");
  else node.showIterisFailure(withButtons(detail.exception_message, locale()), "elsewhere");
}

/**
 * Show what runs have made that ended while this page was closed, or in another window; and on nodes of which the
 * server knows no run any more, what is still true.
 */
export async function recall() {
  const showRunning = () => {
    for (const details of layers.values()) details.forEach(showLayer);
    stages.forEach(showStage);
    for (const details of pictures.values()) details.forEach(showPicture);
  };
  onceOpen(async (workflow) => {
    await showRecalled(keptOutputs(workflow));
    showRunning();
    showWaiting();
  });
  const found = await showRecalled(recalled(isOurs));
  showRunning(); // a report of an earlier run has hidden it
  onceOpen((workflow) => found.forEach(([id, output]) => keepOutput(id, output, workflow)));
  for (const node of nodesOf(app.graph)) {
    node.missIterisRun?.();
    node.checkIterisFile?.();
  }
}

/** Do the same for a workflow that was opened, and show what failed in it while it was not, unless something runs again. */
export async function recallOpened() {
  await recall();
  const mayFail = (node) => isOurs(node) && node.showIterisFailure;
  if (![...nodesOf(app.graph)].some(mayFail)) return; // or other workflows would wait for it, too
  const since = performance.now();
  const { now } = await waitingRun();
  if (now?.length) return;
  for (const [node, detail, ran] of await failedBefore(mayFail))
    if (!(heard.get(node) > since)) showFailure(node, detail, "before", ran);
}

/** Follow the one run that the server tells this page about: layers of any other are not for its nodes. */
export function followRuns() {
  rememberRuns(showRefusal);
  let over; // the run that was told last to have failed, or to be stopped
  const all = (method, run) => {
    for (const node of nodesOf(app.graph)) {
      // of a run that fails at once, its end may be shown while this is not known yet
      const call = async () => (await isLeftOut(node)) || (run && run === over) || node[method]();
      if (node[method]) ifOwn(node, undefined, call);
    }
  };
  const showEnd = (event, detail) => {
    const node = nodeAt(app.graph, detail.node_id);
    const isStop = event === "execution_interrupted";
    if (isStop && node?.showIterisStop) ifOwn(node, undefined, node.showIterisStop);
    if (!isStop && node?.showIterisFailure) ifOwn(node, undefined, () => showFailure(node, detail));
  };
  let isWhole = false; // this page has heard of the run from its start on
  api.addEventListener("execution_start", ({ detail }) => {
    isWhole = !isBeingOpened();
    begun++;
    forgetTold();
    begin(detail.prompt_id);
    showWaiting();
    all("startIterisRun", detail.prompt_id);
  });
  api.addEventListener("iteris.layer", ({ detail }) => {
    if (detail.first) layers.set(detail.node, []);
    layers.get(detail.node)?.push(detail);
    showLayer(detail);
  });
  // after the frontend's own, which has called the node
  api.addEventListener("executed", ({ detail }) => {
    const missed = !isLast(detail.prompt_id) || isBeingOpened();
    mark(detail);
    begin(detail.prompt_id);
    for (const each of [layers, stages, pictures]) each.delete(detail.node);
    keepOutput(detail.display_node ?? detail.node, detail.output).then(() => nameMerges(detail.output));
    listSaved(detail.output);
    if (missed) onceOpen(() => showOwn(detail.display_node ?? detail.node, detail.output));
  });
  api.addEventListener("iteris.saved", ({ detail }) => {
    const output = { iteris_saved: detail.files };
    listSaved(output);
    showTold(detail, (node) => {
      hear(node);
      node.showIterisSaved?.(output);
      showFile(output);
    });
  });
  api.addEventListener("iteris.picture", ({ detail }) => {
    pictures.set(detail.node, [...(pictures.get(detail.node) ?? []), detail]);
    showPicture(detail);
  });
  api.addEventListener("iteris.stage", ({ detail }) => {
    if (isNew()) showWaiting(); // a merge that was taken to be at work may be done
    stages.set(detail.node, detail);
    showStage(detail);
  });
  for (const end of ENDS) {
    api.addEventListener(end, ({ detail }) => {
      if (!isRunning(detail.prompt_id)) return;
      over = detail.prompt_id;
      forgetTold();
      showEnd(end, detail);
      all("endIterisRun");
    });
  }
  api.addEventListener("status", showWaiting);
  api.addEventListener("executing", ({ detail }) => {
    atWork = detail ?? undefined;
    if (detail !== null) return void (isNew() && showWaiting());
    if (!isWhole) recall(); // a run has ended
    isWhole = false;
  });
  // the server may have begun anew, or a run has ended of which this page has heard nothing
  api.addEventListener("reconnected", async () => {
    isWhole = false;
    if (!(await isOver())) return;
    const last = begun;
    const isAtWork = ({ compareIterisProgress: isTold }) => !!isTold;
    const lost = (await isLost()) ? [...nodesOf(app.graph)].filter(isAtWork) : [];
    const end = await endOf();
    forgetTold();
    all("endIterisRun");
    await recall();
    if (last !== begun) return;
    for (const node of lost) if (node.graph) node.showIterisStop?.("lost");
    if (end) showEnd(end.event, end.detail);
  });
  api.addEventListener("graphChanged", () => {
    for (const node of nodesOf(app.graph)) {
      node.compareIterisRun?.();
      node.compareIterisPrompt?.();
    }
  });
}

/** Show what the frontend has of nodes: loaded with their workflow, or made by a run. */
export function showOutputs(outputs) {
  const told = Object.entries(outputs).sort(([, a], [, b]) => !!a?.iteris_saved - !!b?.iteris_saved);
  for (const [id, output] of told) {
    const node = nodeAt(app.graph, id);
    if (!isOurs(node)) continue;
    if (isLoaded(output)) showOutput(node, output);
    else ifOwn(node, output, () => showOutput(node, output));
  }
}

/** Let a node hear only of runs of its own workflow. */
export function hearOwnRuns(node) {
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    ifOwn(this, output, () => {
      hear(this);
      shownRuns.set(this, runOf(output));
      onExecuted?.call(this, output);
    });
  };
}
