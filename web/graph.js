// The nodes of a workflow: where they are, in subgraphs, too, and what they say. No DOM and no ComfyUI here, so that `node
// --test` runs it.

/** Return whether a node is one of this pack. */
export const isOurs = (node) => !!node?.comfyClass?.startsWith("IterIS");

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

const nodesAround = (graph) => [...nodesOf(graph.rootGraph)].filter(({ subgraph }) => subgraph === graph);

/** Return the node whose inside a graph is; undefined: there is none, or several have the same. */
export function nodeAround(graph) {
  const [outer, another] = nodesAround(graph);
  return another ? undefined : outer;
}

/** Yield every node of a graph, those in subgraphs, too. */
export function* nodesOf(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/**
 * Show other widgets where the nodes around a graph show what is in it, as older frontends have it: as pairs of an inner
 * node's id and a widget's name, in `properties.proxyWidgets`.
 *
 * @param {object} graph
 * @param {(pair: string[]) => string[]|undefined} other what to show instead; the same pair: that stays
 */
function showOthers(graph, other) {
  for (const around of nodesAround(graph)) {
    const before = around.properties?.proxyWidgets ?? [];
    const after = before.map(other);
    if (after.every((pair, i) => pair === before[i])) continue;
    around.properties.proxyWidgets = after.filter(Boolean);
    const names = new Map(before.map((pair, i) => [pair.join(": "), after[i]?.join(": ")])); // as those around it call them
    showOthers(around.graph, (pair) => {
      const [id, name] = pair;
      const now = id === String(around.id) && names.has(name) ? names.get(name) : name;
      return now === name ? pair : now && [id, now];
    });
  }
}

/** Let subgraphs that show widgets of a node show those of what takes its place, and none of what else leaves. */
export function showInstead(taker, taken, leaving = [taken]) {
  const gone = new Set(leaving.map(({ id }) => String(id)));
  showOthers(taker.graph, (pair) => {
    const [id, name] = pair;
    if (!gone.has(id)) return pair;
    const isKept = id === String(taken.id) && taker.widgets.some((widget) => widget.name === name);
    return isKept ? [String(taker.id), name] : undefined;
  });
}

/** Set a widget as a user does, of a node in the graph: before, newer frontends may put back what its id had. */
export function set(node, name, value) {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
}

/** Return the node from which one of KJNodes' hands on what it has; undefined: it is missing. */
export function setterOf({ graph, widgets }) {
  const name = widgets?.[0]?.value;
  const isOf = ({ type, widgets: own }) => type === "SetNode" && own?.[0]?.value === name;
  const seen = new Set(); // a subgraph looks outside where it sets nothing of that name
  for (let at = name && graph; at && !seen.has(at); at = nodeAround(at)?.graph) {
    seen.add(at);
    const setter = at.nodes.find(isOf);
    if (setter) return setter;
  }
  return undefined;
}

/**
 * Return the node that a link begins at, through reroutes and what hands on without links, and into and out of subgraphs;
 * where that is a subgraph's own widget, also its name.
 *
 * @param {object} graph
 * @param {number|null} [id] of the link
 * @param {(node: object) => boolean} [isEnd] whether a subgraph's node is not looked into
 * @returns {{node?: object, widget?: string}}
 */
export function sourceOf(graph, id, isEnd = () => false) {
  const seen = new Set(); // links may go round
  const from = (at, next) => {
    const link = next == null ? undefined : at?.getLink(next); // a node that is about to be put into a graph has none
    if (!link || seen.has(link)) return {};
    seen.add(link);
    const { outputNode: node, subgraphInput } = link.resolve(at);
    if (subgraphInput) {
      const { name } = subgraphInput;
      const outer = nodeAround(at);
      const before = outer?.inputs.find((input) => input.name === name)?.link;
      return before == null ? { node: outer, widget: name } : from(outer.graph, before);
    }
    if (node?.type?.startsWith("Reroute")) return from(at, node.inputs?.[0]?.link);
    const setter = node?.type === "GetNode" ? setterOf(node) : undefined;
    if (setter) return from(setter.graph, setter.inputs?.[0]?.link);
    const inner = node && !isEnd(node) ? node.subgraph?.outputs[link.origin_slot]?.linkIds[0] : undefined;
    return inner === undefined ? { node } : from(node.subgraph, inner);
  };
  return from(graph, id);
}

/** Return the merge that is linked to a node, through reroutes, too; undefined: it is in another graph, or there is none. */
export function mergeOf({ graph, inputs }) {
  const { node } = sourceOf(graph, inputs.find(({ name }) => name === "merged")?.link);
  return node?.graph === graph ? node : undefined;
}

const isFile = ({ name }) => name === "ckpt_name" || name === "unet_name";

/**
 * Return the name of the file that a node's model is loaded from, as far as links lead to it, into and out of
 * subgraphs.
 *
 * @param {object} node
 * @returns {string|undefined}
 */
export function modelFileOf(node) {
  const seen = new Set();
  for (let at = node; at && !seen.has(at); ) {
    seen.add(at);
    const file = at.widgets?.find(isFile);
    if (file) return typeof file.value === "string" ? file.value : undefined;
    const plain = at.inputs?.filter(({ widget }) => !widget) ?? [];
    // a reroute takes anything
    const input = plain.length === 1 ? plain[0] : plain.find(({ type }) => type === "MODEL");
    const { node: before, widget } = sourceOf(at.graph, input?.link, (each) => each.widgets?.some(isFile));
    at = widget ? undefined : before;
  }
  return undefined;
}

/** Return the name of the one value that a node holds and hands on; undefined: it may work something out. */
function heldName({ type, widgets = [] }) {
  const values = widgets.filter((widget) => widget.type !== "button" && widget.options?.serialize !== false);
  return /^Primitive|seed/i.test(type) && values.length === 1 ? values[0].name : undefined;
}

/**
 * Return the widget that an input's value is written in: the node's own, or where a link leads to it, a subgraph's or
 * that of a node that holds a value; undefined: there is none, or the value is worked out in a run.
 */
export function widgetOf(node, name, seen = new Set()) {
  const input = node?.inputs?.find(({ widget }) => widget?.name === name);
  if (input?.link == null) return node?.widgets?.find((widget) => widget.name === name);
  if (seen.has(input)) return undefined; // links may go round
  seen.add(input);
  const { node: source, widget } = sourceOf(node.graph, input.link);
  const held = source && (widget ?? heldName(source));
  return held && widgetOf(source, held, seen);
}

/** Return what an input is, see `widgetOf`. */
export const saidBy = (node, name) => widgetOf(node, name)?.value;

/** Return a seed that is the same at each run; of some nodes, -1 is another one each time. */
export function seedBy(node, name) {
  const seed = saidBy(node, name);
  return seed >= 0 ? seed : undefined;
}

/** Do what Undo takes back in one step. */
export function asOneChange(canvas, change) {
  canvas.emitBeforeChange();
  try {
    change();
    canvas.graph.updateExecutionOrder(); // after the links, or the next run would do it, as another step of Undo
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
