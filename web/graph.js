// The nodes of a workflow and their links. No DOM and no ComfyUI here, so that `node --test` runs it.

/** Return whether a node is one of this pack. */
export const isOurs = (node) => !!node?.comfyClass?.startsWith("IterIS");

/** Yield every node of a graph, and of its subgraphs. */
export function* nodesOf(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/**
 * Return the node that the server names.
 *
 * @param {object} graph the workflow's outermost
 * @param {string|number} id "7"; "12:5" is node 5 in the subgraph node 12
 * @returns {object|undefined}
 */
export function nodeAt(graph, id) {
  const path = String(id).split(":");
  const own = path.pop();
  const inner = path.reduce((at, part) => at?.getNodeById(part)?.subgraph, graph);
  return inner?.getNodeById(own) ?? undefined;
}

/** Return the node in whose subgraph a graph is; undefined: the graph is the outermost, or several nodes share it. */
function nodeAround(graph) {
  const [outer, another] = [...nodesOf(graph.rootGraph)].filter(({ subgraph }) => subgraph === graph);
  return another ? undefined : outer;
}

/**
 * Return where a link begins, through reroutes and out of subgraphs.
 *
 * @param {object} graph
 * @param {number|null} [id] of the link
 * @returns {{node: object, slot: number}|undefined}
 */
function originOf(graph, id) {
  const seen = new Set(); // links may go round
  let [at, next] = [graph, id];
  for (;;) {
    const link = next == null ? undefined : at?.getLink(next);
    if (!link || seen.has(link)) return undefined;
    seen.add(link);
    const { outputNode: node, subgraphInput } = link.resolve(at);
    const around = subgraphInput && nodeAround(at);
    if (around) [at, next] = [around.graph, around.inputs.find(({ name }) => name === subgraphInput.name)?.link];
    else if (node?.type?.startsWith("Reroute")) next = node.inputs?.[0]?.link;
    else return node && { node, slot: link.origin_slot };
  }
}

const isFile = ({ name }) => name === "ckpt_name" || name === "unet_name";

/** Return the name of the file that a node's MODEL is loaded from, as far as links lead to it; undefined: unknown. */
export function modelFileOf(node) {
  const seen = new Set();
  for (let at = node; at && !seen.has(at); ) {
    seen.add(at);
    const file = at.widgets?.find(isFile);
    if (file) return typeof file.value === "string" ? file.value : undefined;
    at = originOf(at.graph, at.inputs?.find(({ type }) => type === "MODEL")?.link)?.node;
  }
  return undefined;
}

/** Set a widget as a user does. */
export function set(node, name, value) {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
}

/** Make a change that Undo takes back in one step. */
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
