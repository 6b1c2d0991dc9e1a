// What the frontend's Undo takes back in one step.

import { app } from "../../scripts/app.js";
import { isBeingOpened, isRestoring, store } from "./open_workflow.js";

const WAIT = 150; // milliseconds, while the frontend puts a step back

/**
 * Put something of nodes into the newest step of the frontend's history: a step of its own would be made anew after each
 * Undo, which would then get no further back.
 */
export function putInto(nodes, names) {
  const tracker = store()?.activeWorkflow?.changeTracker;
  if (isBeingOpened()) return;
  if (isRestoring()) return void setTimeout(() => putInto(nodes, names), WAIT); // it would be an older step
  const state = tracker?.activeState;
  const graphs = [state, ...(state?.definitions?.subgraphs ?? [])];
  const before = JSON.stringify(state);
  for (const node of nodes) {
    const { nodes: all } =
      graphs[node.graph === app.graph ? 0 : graphs.findIndex((each) => each?.id === node.graph?.id)] ?? {};
    // frontend 1.49 has texts as ids, files have numbers
    const kept = all?.find(({ id, type }) => String(id) === String(node.id) && type === node.type);
    if (!kept) continue;
    const now = JSON.parse(JSON.stringify(node.serialize()));
    for (const name of names) kept[name] = now[name];
    if (now.pos.every((at, axis) => Math.abs(at - kept.pos[axis]) < 1)) kept.pos = now.pos; // older Nodes 2.0 round it
  }
  if (JSON.stringify(state) !== before) tracker.updateModified();
}

/** Put what a run has made of a node into the newest step. */
export const keepResult = (node) => putInto([node], ["properties", "size"]);

/** Do what Undo takes back in one step, though it takes a while, and the user may go to another workflow meanwhile. */
export async function asOneStep(change) {
  const steps = store()?.activeWorkflow?.changeTracker?.undoQueue;
  const before = steps?.at(-1);
  const changing = change();
  const own = steps?.at(-1);
  await changing;
  if (own !== before && steps.includes(own)) steps.splice(steps.lastIndexOf(own) + 1);
}
