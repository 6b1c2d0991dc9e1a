// The nodes of a workflow: where they are, in subgraphs, too, and what they say. No DOM and no ComfyUI here, so that `node
// --test` runs it.

/**
 * Return the node that the server or the frontend names.
 *
 * @param {object} graph the workflow's outermost
 * @param {string|number} id "7"; "12:5" is node 5 in the subgraph node 12, "<UUID>:5" is node 5 in the subgraph of that
 *   id
 * @returns {object|undefined}
 */
export function nodeAt(graph, id) {
  const path = String(id).split(":");
  const own = path.pop();
  const inner = path.reduce((at, part) => at?.getNodeById(part)?.subgraph ?? graph?.subgraphs?.get(part), graph);
  return inner?.getNodeById(own) ?? undefined;
}

/** Return the node whose inside a graph is; undefined: there is none, or several have the same. */
export function nodeAround(graph) {
  const [outer, another] = [...nodesOf(graph.rootGraph)].filter(({ subgraph }) => subgraph === graph);
  return another ? undefined : outer;
}

/** Yield every node of a graph, those in subgraphs, too. */
export function* nodesOf(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/** Set a widget as a user does, of a node in the graph: before, newer frontends may put back what its id had. */
export function set(node, name, value) {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
}

/** Return what a widget says; undefined: there is none, or a link says it. */
export function saidBy(node, name) {
  if (node?.inputs.some(({ widget, link: id }) => widget?.name === name && id != null)) return undefined;
  return node?.widgets?.find((widget) => widget.name === name)?.value;
}

/** Do what Undo takes back in one step. */
export function asOneChange(canvas, change) {
  canvas.emitBeforeChange();
  try {
    change();
  } finally {
    canvas.emitAfterChange();
  }
}

/** Call `more` after a node's own handler of an event. */
export function also(node, handler, more) {
  const own = node[handler];
  node[handler] = function (...values) {
    const result = own?.apply(this, values);
    more(...values);
    return result;
  };
}
