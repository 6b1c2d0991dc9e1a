// The text field that a loader's trigger words are for, and where else its outputs lead. No DOM and no ComfyUI here, so that `node --test` runs it.

import { nodeAround, nodesOf, setterOf, widgetOf } from "./graph.js";

/**
 * Return the text field that a node's CLIP leads to, into and out of subgraphs, the positive prompt's first; undefined:
 * there is none, or its text is worked out in a run.
 *
 * @param {object} node
 * @returns {{value: string, callback?: Function}|undefined} the widget
 */
export function promptAfter(node) {
  const found = [...reached(node, "CLIP")].filter(({ inputNode }) => fieldOf(inputNode));
  const isPositive = ({ inputNode }) =>
    [...reached(inputNode, "CONDITIONING")].some(({ input }) => input.name === "positive");
  const chosen = found.find(isPositive) ?? found[0];
  return chosen && fieldOf(chosen.inputNode);
}

function fieldOf(node) {
  const field = widgetOf(node, "text");
  return typeof field?.value === "string" ? field : undefined;
}

/** Yield the places that a node's outputs of a type lead to, through other nodes that hand the type on. */
export function* reached(node, type, seen = new Set([node])) {
  for (const output of node.outputs ?? []) {
    if (output.type !== type) continue;
    for (const end of endsOf(node.graph, output.links)) {
      yield end;
      if (seen.has(end.inputNode)) continue;
      seen.add(end.inputNode);
      yield* reached(end.inputNode, type, seen);
    }
  }
}

/** Yield the places that links lead to, into and out of subgraphs, and from what sets a thing to what gets it by name. */
function* endsOf(graph, ids, passed = new Set()) {
  for (const id of ids ?? []) {
    const { inputNode, input, subgraphOutput } = graph?.getLink(id)?.resolve(graph) ?? {};
    const isIt = ({ name }) => name === (subgraphOutput ?? input).name;
    if (subgraphOutput) {
      const outer = nodeAround(graph);
      yield* endsOf(outer?.graph, outer?.outputs.find(isIt)?.links, passed);
    } else if (inputNode?.type === "SetNode" && !passed.has(inputNode)) {
      passed.add(inputNode); // names may go round
      for (const node of nodesOf(graph.rootGraph ?? graph))
        if (node.type === "GetNode" && setterOf(node) === inputNode)
          yield* endsOf(node.graph, node.outputs[0]?.links, passed);
    } else if (inputNode?.subgraph)
      yield* endsOf(inputNode.subgraph, inputNode.subgraph.inputs.find(isIt)?.linkIds, passed);
    else if (inputNode) yield { inputNode, input };
  }
}
