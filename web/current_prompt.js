// What the server would get of the workflow that is shown, and which of its nodes are those of another one.

import { app } from "../../scripts/app.js";
import { withSent } from "./use_everywhere.js";
import { nodeAt, nodesOf } from "./graph.js";
import { workOf } from "./prompt_graph.js";

const LONG = 3000; // milliseconds, after which a build counts no more, and puts nothing back
let together = { count: 0 }; // builds of what the server would get that go on at once, their begin, and `valuesAtRisk`

/** Return whether a node has the same id and works out the same in a workflow as the server gets it. */
export async function isIn(prompt, node) {
  const name = nameIn(prompt, node);
  return name !== undefined && name === (await nameAsShown(node));
}

/** Return the id of a node in a workflow as the server gets it; undefined: it has none of this id. */
export const idIn = (prompt, node) => Object.keys(prompt ?? {}).find((each) => nodeAt(app.graph, each) === node);

/** Return the name of a node, see `workOf`, in a workflow as the server gets it. */
export const nameIn = (prompt, node) => workOf(prompt, idIn(prompt, node));

/** Return the name of a node, see `workOf`, as it is shown now; undefined: the workflow cannot be run as it is. */
export const nameAsShown = async (node) => nameIn(await shownPrompt(), node);

/** Run nodes with what they need, and no others; all of the workflow where they are muted, and in older frontends. */
export async function runAlone(...nodes) {
  const shown = Object.keys((await shownPrompt()) ?? {});
  const ids = shown.filter((id) => nodes.includes(nodeAt(app.graph, id)));
  return app.queuePrompt(0, 1, ids.length ? ids : undefined);
}

/** Return what the server would get now: id -> {class_type, inputs}; undefined: the workflow cannot be run as it is. */
export async function shownPrompt() {
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
