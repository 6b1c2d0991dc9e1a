// Whose workflow a run is of. A page has several workflows in tabs, whose nodes have the same ids, and the frontend
// tells what a run has made to those that are shown.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const RUN = "iteris_run"; // in an output: the run that has made it
const workflows = new Map(); // by the run's id
let running;

const store = () => app.extensionManager?.workflow;

/** Remember from which workflow each run was queued. */
export function rememberRuns() {
  const { queuePrompt } = api;
  api.queuePrompt = async function (...request) {
    const workflow = store()?.activeWorkflow;
    const answer = await queuePrompt.apply(this, request);
    if (answer?.prompt_id) workflows.set(answer.prompt_id, workflow);
    return answer;
  };
}

/** Take note that a run has begun. */
export function begin(run) {
  running = run;
}

export const isRunning = (run) => run === running;

/** Write into an output which run has made it: the frontend keeps it, and tells it anew when a tab is shown. */
export function mark({ prompt_id: run, output }) {
  if (output) output[RUN] = run;
}

/**
 * Return whether an output, or the run that began last, is of the workflow that is shown, as far as is known.
 *
 * A workflow that is not open any more may have been saved under another name.
 */
export function isOfShown(output) {
  const workflow = workflows.get(output?.[RUN] ?? running);
  return !workflow || workflow === store().activeWorkflow || !store().openWorkflows.includes(workflow);
}
