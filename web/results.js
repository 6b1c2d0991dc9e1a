// What runs have made of nodes: kept with the workflow, in the page, and in the server's history.

import { app } from "../../scripts/app.js";
import { also, nodeAt, nodesOf } from "./graph.js";
import { keepMade } from "./browser_store.js";
import { isBeingOpened, onceOpen, store } from "./open_workflow.js";
import {
  RUN,
  endIn,
  historyOf,
  isQueuedHere,
  isLast,
  lastRuns,
  promptOf,
  queued,
  ranOf,
  runOf,
  waitingRun,
  workflowOf,
} from "./runs.js";
import { idIn, nameIn, shownPrompt } from "./current_prompt.js";
import { sinceRun } from "./changed_inputs.js";
import { isSame, workOf } from "./prompt_graph.js";

export const RAN = "iteris_ran"; // in the node's properties, so that a saved workflow keeps it: the run, the node's name in it, see `workOf`, and the files that it has saved
export const REPORT = "iteris_report"; // there, too: a merge's report
export const MADE_AS = "iteris_made_as"; // and the merge's name, see `workOf`, in the run that made it
const REST = 150; // milliseconds after a change, before the node is compared with what was run
const OTHER = "-"; // no node's name
const RECALLED = 8; // runs of the server's history that are looked at

function takeOutResult(node) {
  for (const name of [RAN, REPORT, MADE_AS]) delete node?.properties?.[name];
}

/** Let a copy of a node have no result: it has not run. What the frontend makes anew for a subgraph is no copy. */
export function copyWithoutResult(node) {
  const { clone } = node;
  node.clone = function () {
    const copy = clone.call(this);
    takeOutResult(copy);
    return copy;
  };
}

/** Let no node in the copy of a subgraph have a result, either: the frontend copies them as they are saved. */
export function pasteWithoutResults() {
  const { _deserializeItems: paste } = LGraphCanvas.prototype;
  LGraphCanvas.prototype._deserializeItems = function (items, ...how) {
    for (const { nodes } of items?.subgraphs ?? []) nodes?.forEach(takeOutResult);
    return paste.call(this, items, ...how);
  };
}

/** Return whether the server is about to make anew what a node shows. */
export async function isAwaited(node) {
  const { run, prompt, isElsewhere } = await waitingRun();
  const isMade = ([id, output]) => output[RUN] === run && nodeAt(app.graph, id) === node;
  return !isElsewhere && nameIn(prompt, node) !== undefined && !keptOutputs(store()?.activeWorkflow).some(isMade);
}

/**
 * Return what a workflow keeps of the run that has made an output: what it has kept of an earlier one, if that has made
 * the same and the server still knows it.
 */
export async function ranAs(node, output, files) {
  const run = runOf(output);
  const ran = { run, name: nameIn(await promptOf(run), node), files };
  const before = node.properties[RAN];
  const isAgain = JSON.stringify({ ...before, run }) === JSON.stringify(ran);
  return isAgain && (await promptOf(before.run)) ? before : ran;
}

/**
 * Return what a run has made of the node that has a name in it, see `workOf`, as whatever it is numbered now; undefined:
 * the server does not know it.
 */
export async function outputOf({ run, name }) {
  const { prompt, outputs = {} } = (await historyOf(run)) ?? {};
  const id = Object.keys(outputs).find((each) => workOf(prompt[2], each) === name);
  return id && { ...outputs[id], [RUN]: run };
}

/**
 * Compare a node with what was run, a moment after each change that the page tells of.
 *
 * @param {object} node gets `compareIterisRun`, and `doubtIterisRefusal`, which takes away that it was refused for its rows
 * @param {object} panel what shows the result
 * @param {() => boolean} panel.isOfRun whether there is something to compare
 * @param {(now: string) => string|undefined} panel.madeIn called with the name of the node as it is shown, returns the run
 *   of a result of another node
 * @param {(now: string, since: string) => boolean} panel.compare called with it, and in what the node was another one in
 *   that run; returns whether the result is of another node
 * @param {boolean} panel.isOfRows whether it was refused for its rows
 * @param {string} [panel.endedAs] the node's name when it failed or was refused
 * @param {(word: string, values?: object) => string} panel.say
 */
export function compareWithRun(node, panel) {
  let isWaiting = false;
  let comparing; // the last question, which ends those before it
  let sought; // the name of which an earlier run was asked for last
  const compare = async () => {
    isWaiting = false;
    if (!node.graph || !(panel.isOfRun() || node.compareIterisProgress)) return;
    comparing = {};
    const mine = comparing;
    const shown = await shownPrompt();
    const now = nameIn(shown, node);
    if (mine !== comparing) return; // it has changed again
    if (now === undefined) return void (isBeingOpened() && onceOpen(node.compareIterisRun));
    node.compareIterisProgress?.(now);
    const ran = panel.isOfRun() && (await promptOf(panel.madeIn(now)));
    if (mine !== comparing) return;
    const since = ran ? sinceRun([ran, idIn(ran, node)], [shown, idIn(shown, node)], panel.say) : "";
    const wanted = panel.isOfRun() && panel.compare(now, since) ? now : undefined;
    if (wanted && wanted !== sought) node.seekIterisRun?.();
    sought = wanted;
  };
  node.compareIterisRun = () => {
    if (!isWaiting) setTimeout(compare, REST);
    isWaiting = true;
  };
  node.doubtIterisRefusal = () => {
    if (!panel.isOfRows || !panel.endedAs) return;
    panel.endedAs = OTHER;
    node.compareIterisRun();
  };
  // the frontend tells a change of the graph only once a field is left
  for (const widget of node.widgets ?? []) also(widget, "callback", () => node.compareIterisRun());
}

const kept = new WeakMap(); // by the workflow: what runs have made of nodes that it has had

/**
 * Let a workflow find what a run has made of a node once its nodes are made anew: by Undo, or because its tab is shown
 * again.
 *
 * @param {string} id the node's
 * @param {object} output marked with its run
 * @param {object} [workflow] none: the one that this page has queued the run from, if it has
 */
export async function keepOutput(id, output, workflow = undefined) {
  const run = output?.[RUN];
  if (!workflow) await Promise.all([queued(), new Promise(onceOpen)]);
  const whose = workflow ?? workflowOf(run);
  const prompt = whose && (await promptOf(run));
  const type = prompt?.[id]?.class_type;
  if (!type) return;
  keepMade(workOf(prompt, id), output); // also where the next run ends before its tab is shown
  if (!kept.has(whose)) kept.set(whose, new Map());
  kept.get(whose).set(id, { type, output });
}

/** Return what runs have made of nodes of a workflow that is shown, as far as this page knows: ids, and outputs. */
export const keptOutputs = (workflow) =>
  [...(kept.get(workflow) ?? [])]
    .filter(([id, { type }]) => nodeAt(app.graph, id)?.comfyClass === type)
    .map(([id, { output }]) => [id, output]);

/** Return of each node what the newest run has made in which it was what it is now. */
export async function madeBefore(isWanted) {
  const { graph } = app;
  const { found } = await recalledAsShown(isWanted);
  return app.graph === graph ? [...found] : [];
}

/**
 * Return which nodes made nothing in the newest run of the server's history in which they were what they are now: each
 * with what the server has told of its failure, and what was run.
 */
export async function failedBefore(isWanted) {
  const { graph } = app;
  const history = await lastRuns(RECALLED);
  const shown = history.length ? await shownPrompt() : {};
  if (app.graph !== graph) return [];
  const runs = history.map(([, each]) => ({ ...endIn(each), prompt: ranOf(each.prompt) }));
  const ids = Object.keys(shown ?? {}).filter((id) => isWanted(nodeAt(graph, id)));
  return ids.flatMap((id) => {
    const { event, detail, prompt: ran } = runs.find(({ prompt }) => isSame(prompt, shown, id)) ?? {};
    return event === "execution_error" && detail.node_id === id ? [[nodeAt(graph, id), detail, ran]] : [];
  });
}

/** Begin `recalled` with the runs in which nodes were what they are now; `take` goes on with others of the history. */
async function recalledAsShown(isWanted) {
  const { graph } = app;
  const isAny = [...nodesOf(graph)].some(isWanted); // or other workflows would wait for it, too
  const history = isAny ? await lastRuns(RECALLED) : [];
  const shown = history.length ? await shownPrompt() : {};
  const found = new Map();
  const take = (run, outputs, isIts) => {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      const node = nodeAt(graph, id);
      if (!found.has(id) && node && isWanted(node) && isIts(node, id)) found.set(id, { ...output, [RUN]: run });
    }
  };
  for (const [run, { prompt, outputs }] of history) take(run, outputs, (_, id) => isSame(prompt[2], shown, id));
  return { found, history, take };
}

/**
 * Return what runs have made of the nodes that are shown: of each node what the newest run has made in which it was what
 * it is now; otherwise what its workflow's newest run has made, or the one that the workflow has kept.
 *
 * @param {(node: object) => boolean} isWanted
 * @returns {Promise<[string, object][]>} the node's id, and its output
 */
export async function recalled(isWanted) {
  const { graph } = app;
  const { found, history, take } = await recalledAsShown(isWanted);
  const workflow = await new Promise(onceOpen);
  // of the run that goes on, of which the history has nothing yet
  for (const [id, output] of app.graph === graph ? keptOutputs(workflow) : [])
    if (isLast(output[RUN]) && !found.has(id) && isWanted(nodeAt(graph, id))) found.set(id, output);
  // and nothing older of a node that it has made, as far as the workflow has kept that
  const isMadeIn = ({ properties: { [RAN]: ran, [MADE_AS]: name } }, id, run, prompt) =>
    ran ? ran.run === run : !!name && name === workOf(prompt, id);
  const isInHistory = (node) =>
    history.some(([run, { prompt }]) => isMadeIn(node, idIn(prompt[2], node), run, prompt[2]));
  const isKept = (node) => isWanted(node) && (RAN in node.properties || MADE_AS in node.properties);
  const isAny = [...nodesOf(graph)].some((node) => isKept(node) && !isInHistory(node));
  const now = history.length && isAny ? await waitingRun() : {};
  const isMadeNow = (node, id) => now.before === 0 && isMadeIn(node, id, now.run, now.prompt);
  for (const [run, { prompt, outputs }] of history.filter(([run]) => isQueuedHere(run)))
    take(run, outputs, (node, id) => node.comfyClass === prompt[2][id]?.class_type && !isMadeNow(node, id));
  const runs = [...nodesOf(graph)].filter(isWanted).map(({ properties }) => properties[RAN]?.run);
  for (const run of new Set(runs.filter((each) => typeof each === "string"))) {
    const { prompt, outputs } = (await historyOf(run)) ?? {};
    const isKept = ({ properties: { [RAN]: ran } }, id) => ran?.run === run && ran.name === workOf(prompt[2], id);
    take(run, outputs, isKept);
  }
  return app.graph === graph ? [...found] : [];
}
