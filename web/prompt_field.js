// The text field that a loader's trigger words are for, and where else its outputs lead. No DOM and no ComfyUI here, so that `node --test` runs it.

import { nodeAround, nodesOf, setterOf, sourceOf, widgetOf } from "./graph.js";

const SAMPLERS = ["KSampler", "KSamplerAdvanced"];
const MADE = /__/; // of a wildcard, which another node puts words for

/**
 * Return the text field of what a node's LoRAs draw, into and out of subgraphs, the positive prompt's first; undefined:
 * there is none, or its text is worked out in a run.
 *
 * @param {object} node
 * @returns {{value: string, callback?: Function}|undefined} the widget
 */
export const promptAfter = (node) => fieldsAfter(node).find(Boolean);

/** Return a Compare's prompt field, or the one that is linked into it; undefined: its text is worked out in a run. */
export function promptOfCompare(node) {
  const field = widgetOf(node, "prompt");
  return typeof field?.value === "string" && !MADE.test(field.value) ? field : undefined;
}

/** Return the text of all such fields, a line each; undefined: there is none, or one is worked out in a run. */
export function textAfter(node) {
  const fields = fieldsAfter(node);
  const text = fields.map((field) => field?.value).join("\n");
  return fields.length && fields.every(Boolean) && !MADE.test(text) ? text : undefined;
}

/**
 * Return the fields of what encodes a text with a node's CLIP, of the positive prompts if there are any; or else those
 * that its MODEL's samplers draw; undefined in the place of one that cannot be read.
 */
function fieldsAfter(node) {
  const encoders = [...reached(node, "CLIP")].flatMap(({ inputNode }) => (isEncoder(inputNode) ? inputNode : []));
  const positive = encoders.filter((each) => leadsTo(each, "positive"));
  const fields = (positive.length ? positive : encoders).map(fieldOf);
  return encoders.length ? fields : samplersAfter(node).map((sampler) => textFieldBefore(sampler, "positive"));
}

const isEncoder = (node) => !!fieldOf(node) || node.outputs?.some(({ type }) => type === "CONDITIONING");
const leadsTo = (node, name) => [...reached(node, "CONDITIONING")].some(({ input }) => input.name === name);

function fieldOf(node) {
  const field = widgetOf(node, "text");
  return typeof field?.value === "string" ? field : undefined;
}

/** Return the samplers that a node's MODEL leads to. */
export const samplersAfter = (node) =>
  [...reached(node, "MODEL")].flatMap(({ inputNode }) => (SAMPLERS.includes(inputNode.comfyClass) ? inputNode : []));

/** Return the node that an input's link begins at, see `sourceOf`. */
export const nodeBefore = ({ graph, inputs }, wanted) =>
  sourceOf(graph, inputs.find(({ name }) => name === wanted)?.link).node;

/** Return the text field of a sampler's prompt; undefined: there is none, or more is done with it. */
export function textFieldBefore(sampler, name) {
  const source = nodeBefore(sampler, name);
  const text = source?.comfyClass === "FluxGuidance" ? nodeBefore(source, "conditioning") : source;
  return text?.comfyClass === "CLIPTextEncode" ? fieldOf(text) : undefined;
}

/** Yield the places that a node's outputs of a type lead to, through other nodes that hand the type on. */
export function* reached(node, type, seen = new Set([node])) {
  for (const output of node.outputs ?? []) {
    if (output.type !== type) continue;
    for (const end of endsOf(node.graph, output.links)) {
      yield end;
      if (seen.has(end.inputNode) || end.input.name === "negative") continue; // which may come out as what is positive, too
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
