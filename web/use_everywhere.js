// cg-use-everywhere, a pack that sends outputs to inputs without a link. It makes these links only while a workflow is
// queued; until then the graph lists them. No DOM and no ComfyUI here, so that `node --test` runs it.

// inputs that mean something if they are linked, and that most workflows leave free
const APART = {
  IterISMergeVideo: ["start", "model_low_noise"],
  IterISCompare: ["model", "clip"],
  IterISSave: ["cover"],
};

/** Let nothing be sent to inputs of a node of ours that most workflows leave free. */
export function keepApart(node) {
  const names = APART[node.comfyClass] ?? [];
  node.reject_ue_connection = ({ name }) => names.includes(name);
}

/**
 * Return what the server would get of a workflow with the links that are made only then.
 *
 * @param {object} prompt id -> {class_type, inputs}
 * @param {object} graph the workflow's outermost
 */
export function withSent(prompt, graph) {
  const links = Array.isArray(graph.extra?.ue_links) ? graph.extra.ue_links : [];
  const sent = { ...prompt };
  for (const { downstream: id, downstream_slot: slot, upstream, upstream_slot: output } of links) {
    const name = graph.getNodeById(id)?.inputs?.[slot]?.name;
    if (!name || !(id in sent) || !(upstream in prompt)) continue;
    sent[id] = { ...sent[id], inputs: { ...sent[id].inputs, [name]: [String(upstream), output] } };
  }
  return sent;
}
