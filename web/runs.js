// Whose workflow a run is of. A page has several workflows in tabs, whose nodes have the same ids, and the frontend
// tells what a run has made to those that are shown. What this page has queued it knows; of a run from before it was
// opened, it asks the server what was run.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { withSent } from "./everywhere.js";
import { also, nodeAt, nodesOf } from "./graph.js";
import { keepMade } from "./kept.js";
import { isSame, neededFor, takeOutUncounted, withoutRefused, workOf } from "./work.js";

export const ENDS = ["execution_error", "execution_interrupted"]; // of runs that have not made all
export const RAN = "iteris_ran"; // in the node's properties, so that a saved workflow keeps it: the run, the node's name in it, see `workOf`, and the files that it has saved
export const REPORT = "iteris_report"; // there, too: a merge's report
export const MADE_AS = "iteris_made_as"; // and the merge's name, see `workOf`, in the run that made it
const RUN = "iteris_run"; // in an output: the run that has made it
const REST = 150; // milliseconds after a change, before the node is compared with what was run
const RECALLED = 8; // runs of the server's history that are looked at
const MOST_RUNS = 100; // that are remembered
const workflows = new Map(); // by the run's id: where this page has queued it
const PLACES = "iteris_runs"; // in the browser's memory of this page, which F5 leaves
const places = new Map(JSON.parse(sessionStorage.getItem(PLACES) ?? "[]")); // by the run's id: where this page had queued it before it was opened anew
const NO_ID = "00000000-0000-0000-0000-000000000000"; // of a workflow without one, which newer frontends give one once it is opened anew
let first; // the workflow that was shown first
const prompts = new Map(); // by the run's id: what was run, or a promise of it
let running;
let isOpening = false; // the graph is another workflow's than the one that the frontend takes for the one on show
const toShow = []; // what is called once it is not
let asking; // the request that queued a run last: a run may begin, and fail, before it is answered

const store = () => app.extensionManager?.workflow;

/** Remember something of a run, and forget that of the oldest ones. */
function remember(things, run, thing) {
  things.set(run, thing);
  for (const oldest of [...things.keys()].slice(0, -MOST_RUNS)) things.delete(oldest);
}

/**
 * Remember from which workflow each run was queued.
 *
 * @param {(id: string, errors: object[]) => void} refused called for each node that the server does not run, with what it
 *   says of it
 */
export function rememberRuns(refused) {
  const { queuePrompt } = api;
  const tell = (errors) => Object.entries(errors ?? {}).forEach(([id, { errors: own }]) => refused(id, own ?? []));
  addEventListener("pagehide", () => {
    const open = store()?.openWorkflows ?? [];
    const later = [...places].filter(
      ([run, { path }]) => !workflows.has(run) && open.some((each) => each.path === path),
    );
    const now = [...workflows].filter(([, each]) => open.includes(each)).map(([run, each]) => [run, placeOf(each)]);
    sessionStorage.setItem(PLACES, JSON.stringify([...later, ...now].slice(-MOST_RUNS)));
  });
  // neither called from here nor waited for: the frontend's dialog would name this file as the cause of whatever the
  // server refuses, and of its being stopped
  api.queuePrompt = function (...request) {
    const workflow = store()?.activeWorkflow;
    takeOutUncounted(request[1]?.output);
    asking = Promise.resolve().then(queuePrompt.bind(this, ...request));
    asking.then(
      (answer) => {
        if (answer?.prompt_id) {
          remember(workflows, answer.prompt_id, workflow);
          const asked = neededFor(request[1]?.output, request[2]?.partialExecutionTargets);
          remember(prompts, answer.prompt_id, withoutRefused(asked, answer.node_errors));
        }
        tell(answer?.node_errors);
      },
      (error) => tell(error?.response?.node_errors),
    );
    return asking;
  };
}

/** Take note that the frontend opens a workflow; it tells which one that is once all of it is there. */
export function beginOpening() {
  isOpening = !!store()?.$onAction && !store().activeWorkflow?.changeTracker?._restoringState;
}

/** Take note of when a workflow is open. */
export function rememberOpened() {
  store()?.$onAction?.(({ name, after }) => {
    if (name === "openWorkflow") {
      after(() => {
        isOpening = false;
        first ??= store().activeWorkflow;
        for (const show of toShow.splice(0)) show();
      });
    }
  });
}

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

/** Call `show` with the workflow that is shown, once that is known. */
export function onceOpen(show) {
  const now = () => show(store()?.activeWorkflow);
  if (isOpening) toShow.push(now);
  else now();
}

/**
 * Return whether the server does nothing more for the run that began last, as after a restart; where nobody knows, it
 * does.
 */
export async function isOver() {
  const { queue_running: now, queue_pending: later } = await answerOf("/queue");
  return !!running && Array.isArray(now) && ![...now, ...later].some(([, id]) => id === running);
}

/** Return whether the server has nothing of the run that began last, if that is over, as after a restart. */
export const isLost = async () => !(await historyOf(running));

/**
 * Return the run that is next of the workflow that is shown, what is run in it, id -> {class_type, inputs}, and how many
 * runs are before it; 0: it goes on. Without one, the run that goes on where another window or a program has queued it,
 * with `isElsewhere`. In any case `now`: the ids of the runs that go on.
 */
export async function waitingRun() {
  await Promise.allSettled([asking]);
  const { queue_running: now = [], queue_pending: later = [] } = await answerOf("/queue");
  const runs = [...now, ...later.sort(([first], [second]) => first - second)];
  const ids = now.map(([, run]) => run);
  const before = runs.findIndex(([, run]) => isQueuedHere(run));
  if (before >= 0) return { now: ids, run: runs[before][1], prompt: ranOf(runs[before]), before };
  if (!now.length || isTold(now[0])) return { now: ids };
  return { now: ids, run: ids[0], prompt: ranOf(now[0]), before: 0, isElsewhere: true };
}

/** Return whether the server tells this page of a run: of those that it has queued, in whatever way, or of all. */
const isTold = ([, run, , asked]) => asked?.client_id === api.clientId || run === running;

/** Return whether the server is about to make anew what a node shows. */
export async function isAwaited(node) {
  const { run, prompt, isElsewhere } = await waitingRun();
  const isMade = ([id, output]) => output[RUN] === run && nodeAt(app.graph, id) === node;
  return !isElsewhere && nameIn(prompt, node) !== undefined && !keptOutputs(store()?.activeWorkflow).some(isMade);
}

/** Return what is run of a prompt as the server has it in its queue and its history. */
const ranOf = ([, , prompt, , outputs]) => neededFor(prompt, outputs);

/** Take note that a run has begun. */
export function begin(run) {
  running = run;
}

/** Return whether a run is the one that began last; a page that was opened since takes up the run that it hears of. */
export function isRunning(run) {
  running ??= run;
  return run === running;
}

/** Return whether the page was opened while a run went on of which it has heard nothing yet. */
export const isNew = () => running === undefined;

/** Write into an output which run has made it: the frontend keeps it, and tells it anew when a tab is shown. */
export function mark({ prompt_id: run, output }) {
  if (output) output[RUN] = run;
}

/** Return whether an output is one that the frontend has loaded with its workflow. */
export const isLoaded = (output) => !output?.[RUN];

/**
 * Call `show` if a node of the workflow that is shown is one of a run: at once if this page has queued the run from a
 * workflow that is still open, otherwise once it is known that the node in that run is the node as it is now.
 *
 * @param {object} node
 * @param {object} [output] what the run has made; one that no run is written into yet is of the run that began last
 * @param {() => void} show
 */
export function ifOwn(node, output, show) {
  const run = runOf(output);
  const own = isQueuedHere(run);
  if (own) show();
  if (own === undefined) isOf(node, run).then((found) => found && show());
}

/** Return whether the workflow that is shown is the one that a run was queued from; undefined: that is not known. */
function isQueuedHere(run) {
  const workflow = workflowOf(run);
  return workflow && workflow === store().activeWorkflow;
}

const placeOf = ({ path, changeTracker }) => ({ path, id: changeTracker?.activeState?.id });

/** Return the workflow that this page has queued a run from, also before it was opened anew; undefined: it is closed. */
function workflowOf(run) {
  const open = store()?.openWorkflows ?? [];
  if (!workflows.has(run) && places.has(run)) {
    const { path, id } = places.get(run);
    // a template that is opened anew is another workflow, though it may be called the same
    const isIt = (each) => each === first || each.isPersisted || id !== NO_ID;
    const found = open.find((each) => each.path === path && [NO_ID, placeOf(each).id].includes(id) && isIt(each));
    if (found) remember(workflows, run, found);
  }
  return open.find((each) => each === workflows.get(run));
}

/** Return whether a node has the same id and works out the same as in a run. */
async function isOf(node, run) {
  await Promise.allSettled([asking]);
  const own = isQueuedHere(run);
  return own ?? isIn(await promptOf(run), node);
}

/** Return whether a node has the same id and works out the same in a workflow as the server gets it. */
export async function isIn(prompt, node) {
  const name = nameIn(prompt, node);
  return name !== undefined && name === (await nameAsShown(node));
}

/** Return the name of a node, see `workOf`, in a workflow as the server gets it. */
function nameIn(prompt, node) {
  const id = Object.keys(prompt ?? {}).find((each) => nodeAt(app.graph, each) === node);
  return workOf(prompt, id);
}

const runOf = (output) => output?.[RUN] ?? running;

/**
 * Return the name of a node, see `workOf`, in the run that has made an output, or in another one; undefined: the server
 * does not know it.
 */
export const nameAsRun = async (node, output, run = runOf(output)) => nameIn(await promptOf(run), node);

/** Return whether the run that began last, if that is known, does nothing for a node. */
export async function isLeftOut(node) {
  const prompt = await promptOf(running);
  return !!prompt && nameIn(prompt, node) === undefined;
}

/** Return the nodes of a type that have an input from a node, see `nodeAt`, in the run that began last. */
export async function takersOf(id, type) {
  const isFrom = (value) => Array.isArray(value) && value[0] === String(id);
  return Object.entries((await promptOf(running)) ?? {})
    .filter(([, { class_type: own, inputs }]) => own === type && Object.values(inputs).some(isFrom))
    .map(([each]) => nodeAt(app.graph, each))
    .filter(Boolean);
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
 * Return what the server tells of the end of a run: the event, its details, and what was run; undefined: it does not know
 * the run, or that has come to its end.
 */
export async function endOf(run) {
  const { prompt, status } = (await historyOf(run)) ?? {};
  const [event, detail] = status?.messages?.find(([each]) => ENDS.includes(each)) ?? [];
  return event && { event, detail, prompt: prompt[2] };
}

/** Return the name of a node, see `workOf`, as it is shown now; undefined: the workflow cannot be run as it is. */
export const nameAsShown = async (node) => nameIn(await shownPrompt(), node);

/**
 * Compare a node with what was run, a moment after each change that the page tells of.
 *
 * @param {object} node gets `compareIterisRun`
 * @param {() => boolean} hasResult whether there is something to compare
 * @param {(now: string) => boolean} told called with the name of the node as it is shown, returns whether the result is of
 *   another node
 */
export function compareWithRun(node, hasResult, told) {
  let isWaiting = false;
  let comparing; // the last question, which ends those before it
  let sought; // the name of which an earlier run was asked for last
  const compare = async () => {
    isWaiting = false;
    if (!node.graph || !(hasResult() || node.compareIterisProgress)) return;
    comparing = {};
    const mine = comparing;
    const now = await nameAsShown(node);
    if (now === undefined || mine !== comparing) return; // or it has changed again
    node.compareIterisProgress?.(now);
    const wanted = hasResult() && told(now) ? now : undefined;
    if (wanted && wanted !== sought) node.seekIterisRun?.();
    sought = wanted;
  };
  node.compareIterisRun = () => {
    if (!isWaiting) setTimeout(compare, REST);
    isWaiting = true;
  };
  // the frontend tells a change of the graph only once a field is left
  for (const widget of node.widgets ?? []) also(widget, "callback", () => node.compareIterisRun());
}

/** Run nodes with what they need, and no others; all of the workflow where they are muted, and in older frontends. */
export async function runAlone(...nodes) {
  const shown = Object.keys((await shownPrompt()) ?? {});
  const ids = shown.filter((id) => nodes.includes(nodeAt(app.graph, id)));
  return app.queuePrompt(0, 1, ids.length ? ids : undefined);
}

const LONG = 3000; // milliseconds, after which a build counts no more, and puts nothing back
let together = { count: 0 }; // builds of what the server would get that go on at once, their begin, and `valuesAtRisk`

/** Return what the server would get now: id -> {class_type, inputs}; undefined: the workflow cannot be run as it is. */
async function shownPrompt() {
  try {
    const now = Date.now();
    if (!together.count || now - together.begun > LONG) together = { count: 0, begun: now, before: valuesAtRisk() };
    const mine = together;
    mine.count++;
    try {
      const { output } = await builtPrompt();
      return app.ue_modified_prompt ? withSent(output, app.graph) : output;
    } finally {
      mine.count--;
      if (!mine.count && Date.now() - mine.begun <= LONG) putBack(mine.before);
    }
  } catch {
    return undefined; // nodes of other packs may refuse
  }
}

/**
 * Build what the server would get. The frontend numbers the nodes anew for it, as they were not since some of them went
 * into a subgraph, and takes other numbers for a change of the user's, which Undo would take back.
 */
function builtPrompt() {
  const numbers = [...nodesOf(app.graph)].map((node) => [node, node.order]);
  const building = app.graphToPrompt(); // it has numbered them by now
  for (const [node, number] of numbers) node.order = number;
  return building;
}

/**
 * Return the widgets that work out what they send, as those of other packs do, and their values: some take what they
 * have sent for their own, and a seed of -1, which is another one at each run, would be fixed.
 */
function valuesAtRisk() {
  const isPlain = (value) => ["string", "number", "boolean"].includes(typeof value);
  return [...nodesOf(app.graph)]
    .flatMap(({ widgets }) => widgets?.filter((widget) => widget.serializeValue) ?? [])
    .map((widget) => [widget, widget.value])
    .filter(([, value]) => isPlain(value));
}

/** Give widgets back their values, but for what the user is writing. */
function putBack(values) {
  const written = document.activeElement?.value;
  for (const [widget, value] of values)
    if (widget.value !== value && String(widget.value) !== written) widget.value = value;
}

/** Return what was run: id -> {class_type, inputs}; undefined: the server does not know it. */
async function promptOf(run) {
  if (run && !prompts.has(run)) remember(prompts, run, askedOf(run));
  const prompt = await prompts.get(run);
  if (!prompt) prompts.delete(run); // it may be on its way from the queue to the history
  return prompt;
}

async function askedOf(run) {
  const { queue_running: now = [], queue_pending: later = [] } = await answerOf("/queue");
  const queued = [...now, ...later].find(([, id]) => id === run);
  const known = queued ?? (await historyOf(run))?.prompt;
  return known && ranOf(known);
}

/**
 * Put what a run has made of a node into the newest step of the frontend's history: a step of its own would be made anew
 * after each Undo, which would then get no further back.
 */
export function keepResult(node) {
  const tracker = store()?.activeWorkflow?.changeTracker;
  if (isOpening) return;
  if (tracker?._restoringState) return void setTimeout(() => keepResult(node), REST); // it would be an older step
  const state = tracker?.activeState;
  const graphs = [state, ...(state?.definitions?.subgraphs ?? [])];
  const { nodes } =
    graphs[node.graph === app.graph ? 0 : graphs.findIndex((each) => each?.id === node.graph?.id)] ?? {};
  // frontend 1.49 has texts as ids, files have numbers
  const kept = nodes?.find(({ id, type }) => String(id) === String(node.id) && type === node.type);
  if (!kept) return;
  const { properties, size } = JSON.parse(JSON.stringify(node.serialize()));
  Object.assign(kept, { properties, size });
  tracker.updateModified();
}

/** Do what Undo takes back in one step, though it takes a while, and the user may go to another workflow meanwhile. */
export async function asOneStep(change) {
  const steps = store()?.activeWorkflow?.changeTracker?.undoQueue;
  const before = steps?.at(-1);
  const changing = change();
  const own = steps?.at(-1);
  await changing;
  if (own !== before && steps.includes(own)) steps.splice(steps.lastIndexOf(own) + 1);
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
  if (!workflow) await Promise.allSettled([asking]);
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

/** Return what the server's history has of a run; undefined: nothing. */
const historyOf = async (run) => (await answerOf(`/history/${encodeURIComponent(run)}`))[run];

/** Return the server's answer; an empty one if there is none, as on servers that keep no history. */
async function answerOf(address) {
  try {
    return await (await api.fetchApi(address)).json();
  } catch {
    return {};
  }
}

/** Return of each node what the newest run has made in which it was what it is now. */
export async function madeBefore(isWanted) {
  const { graph } = app;
  const { found } = await recalledAsShown(isWanted);
  return app.graph === graph ? [...found] : [];
}

/** Begin `recalled` with the runs in which nodes were what they are now; `take` goes on with others of the history. */
async function recalledAsShown(isWanted) {
  const { graph } = app;
  const isAny = [...nodesOf(graph)].some(isWanted); // or other workflows would wait for it, too
  const history = isAny ? Object.entries(await answerOf(`/history?max_items=${RECALLED}`)).reverse() : [];
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
    if (output[RUN] === running && !found.has(id) && isWanted(nodeAt(graph, id))) found.set(id, output);
  for (const [run, { prompt, outputs }] of history.filter(([run]) => isQueuedHere(run)))
    take(run, outputs, ({ comfyClass }, id) => comfyClass === prompt[2][id]?.class_type);
  const runs = [...nodesOf(graph)].filter(isWanted).map(({ properties }) => properties[RAN]?.run);
  for (const run of new Set(runs.filter((each) => typeof each === "string"))) {
    const { prompt, outputs } = (await historyOf(run)) ?? {};
    const isKept = ({ properties: { [RAN]: ran } }, id) => ran?.run === run && ran.name === workOf(prompt[2], id);
    take(run, outputs, isKept);
  }
  return app.graph === graph ? [...found] : [];
}
