// What the frontend's Undo takes back in one step.

import { app } from "../../scripts/app.js";
import { isBeingOpened, store } from "./page.js";

const WAIT = 150; // milliseconds, while the frontend puts a step back

/**
 * Put what a run has made of a node into the newest step of the frontend's history: a step of its own would be made anew
 * after each Undo, which would then get no further back.
 */
export function keepResult(node) {
  const tracker = store()?.activeWorkflow?.changeTracker;
  if (isBeingOpened()) return;
  if (tracker?._restoringState) return void setTimeout(() => keepResult(node), WAIT); // it would be an older step
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
