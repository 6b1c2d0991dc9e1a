// What the page shows: in which language, and which workflow. While the frontend opens one, the graph is another's than
// it says.

import { app } from "../../scripts/app.js";

export const locale = () => app.extensionManager?.setting?.get("Comfy.Locale");
export const store = () => app.extensionManager?.workflow;
let first; // the workflow that was shown first
let isOpening = false; // the graph is another workflow's than the one that the frontend takes for the one on show
const toShow = []; // what is called once it is not

/** Return whether the frontend puts a step back, as Undo does. */
export const isRestoring = () => !!store()?.activeWorkflow?.changeTracker?._restoringState;

/** Take note that the frontend opens a workflow; it tells which one that is once all of it is there. */
export function beginOpening() {
  isOpening = !!store()?.$onAction && !isRestoring();
}

/** Take note of when a workflow is open. */
export function rememberOpened() {
  isOpening = !!store()?.$onAction && !store().activeWorkflow; // the first one
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

/** Return whether a workflow is the one that was shown first. */
export const isFirst = (workflow) => workflow === first;

/** Return whether the frontend is opening a workflow. */
export const isBeingOpened = () => isOpening;

/** Call `show` with the workflow that is shown, once that is known. */
export function onceOpen(show) {
  const now = () => show(store()?.activeWorkflow);
  if (isOpening) toShow.push(now);
  else now();
}
