// Whose workflow a run is of. A page has several workflows in tabs, whose nodes have the same ids, and the frontend
// tells what a run has made to those that are shown. What this page has queued it knows; of a run from before it was
// opened, it asks the server what was run.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { keepList, keptList } from "./browser_lists.js";
import { nodeAt } from "./graph.js";
import { isFirst, store } from "./open_workflow.js";
import { isIn, nameIn } from "./current_prompt.js";
import { neededFor, takeOutUncounted, withoutRefused } from "./prompt_graph.js";

export const ENDS = ["execution_error", "execution_interrupted"]; // of runs that have not made all
export const RUN = "iteris_run"; // in an output: the run that has made it
const MOST_RUNS = 100; // that are remembered
const workflows = new Map(); // by the run's id: where this page has queued it
const PLACES = "iteris_runs"; // in the browser's memory of this page, which F5 leaves
const places = new Map(keptList("sessionStorage", PLACES)); // by the run's id: where this page had queued it before it was opened anew
const NO_ID = "00000000-0000-0000-0000-000000000000"; // of a workflow without one, which newer frontends give one once it is opened anew
const prompts = new Map(); // by the run's id: what was run, or a promise of it
let running;
let asking; // the request that queued a run last: a run may begin, and fail, before it is answered

/** Wait until the server has answered what this page has queued last. */
export const queued = () => Promise.allSettled([asking]);

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
    keepList("sessionStorage", PLACES, [...later, ...now].slice(-MOST_RUNS));
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
  await queued();
  const { queue_running: now = [], queue_pending: later = [] } = await answerOf("/queue");
  const runs = [...now, ...later.sort(([first], [second]) => first - second)];
  const ids = now.map(([, run]) => run);
  const before = runs.findIndex(([, run]) => isQueuedHere(run));
  if (before >= 0) return { now: ids, run: runs[before][1], prompt: ranOf(runs[before]), before };
  if (!now.length || isTold(now[0])) return { now: ids };
  return { now: ids, run: ids[0], prompt: ranOf(now[0]), before: 0, isElsewhere: true };
}

/** Return whether the server tells this page of a run: of those that it has queued, in whatever way, or of all. */
const isTold = ([, run, , asked]) => asked?.client_id === api.clientId || isLast(run);

/** Return what is run of a prompt as the server has it in its queue and its history. */
export const ranOf = ([, , prompt, , outputs]) => neededFor(prompt, outputs);

/** Take note that a run has begun. */
export function begin(run) {
  running = run;
}

/** Return whether a run is the one that began last, as far as this page has heard. */
export const isLast = (run) => run === running;

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
export function isQueuedHere(run) {
  const workflow = workflowOf(run);
  return workflow && workflow === store().activeWorkflow;
}

const placeOf = ({ path, changeTracker }) => ({ path, id: changeTracker?.activeState?.id });

/** Return the workflow that this page has queued a run from, also before it was opened anew; undefined: it is closed. */
export function workflowOf(run) {
  const open = store()?.openWorkflows ?? [];
  if (!workflows.has(run) && places.has(run)) {
    const { path, id } = places.get(run);
    // a template that is opened anew is another workflow, though it may be called the same
    const isIt = (each) => isFirst(each) || each.isPersisted || id !== NO_ID;
    const found = open.find((each) => each.path === path && [NO_ID, placeOf(each).id].includes(id) && isIt(each));
    if (found) remember(workflows, run, found);
  }
  return open.find((each) => each === workflows.get(run));
}

/** Return whether a node has the same id and works out the same as in a run. */
async function isOf(node, run) {
  await queued();
  const own = isQueuedHere(run);
  return own ?? isIn(await promptOf(run), node);
}

/** Return which run has made an output: without a mark, the one that began last. */
export const runOf = (output) => output?.[RUN] ?? running;

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

/** Return the nodes of a type that have an input from a node, see `nodeAt`, in what was run, by default last. */
export async function takersOf(id, type, ran) {
  const isFrom = (value) => Array.isArray(value) && value[0] === String(id);
  return Object.entries(ran ?? (await promptOf(running)) ?? {})
    .filter(([, { class_type: own, inputs }]) => own === type && Object.values(inputs).some(isFrom))
    .map(([each]) => nodeAt(app.graph, each))
    .filter(Boolean);
}

/**
 * Return what the server tells of the end of a run: the event, its details, and what was run; undefined: it does not know
 * the run, or that has come to its end.
 */
export async function endOf(run = running) {
  return endIn((await historyOf(run)) ?? {});
}

/** Return the same of what the server's history has of a run. */
export function endIn({ prompt, status }) {
  const [event, detail] = status?.messages?.find(([each]) => ENDS.includes(each)) ?? [];
  return event && { event, detail, prompt: prompt[2] };
}

/** Return what was run: id -> {class_type, inputs}; undefined: the server does not know it. */
export async function promptOf(run) {
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

/** Return a part of the server's history; what was run is known from then on, and what is shown of it compared at once. */
async function historyAt(part) {
  const history = await answerOf(`/history${part}`);
  for (const [run, { prompt }] of Object.entries(history))
    if (prompt && !prompts.has(run)) remember(prompts, run, ranOf(prompt));
  return history;
}

/** Return what the server's history has of a run; undefined: nothing. */
export const historyOf = async (run) => (await historyAt(`/${encodeURIComponent(run)}`))[run];

/** Return the last runs of the server's history, the newest first: their ids, and what it has of them. */
export const lastRuns = async (most) => Object.entries(await historyAt(`?max_items=${most}`)).reverse();

/** Return the server's answer; an empty one if there is none, as on servers that keep no history. */
export async function answerOf(address) {
  try {
    return await (await api.fetchApi(address)).json();
  } catch {
    return {};
  }
}
