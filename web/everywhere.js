// cg-use-everywhere, a pack whose nodes send an output to every input of its type that has no link. It makes these links
// only while a workflow is queued. No DOM and no ComfyUI here, so that `node --test` runs it.

const SENDERS = /^(Anything|Prompts|Seed) Everywhere/;
const VERSION = "7.0"; // of the properties; it empties older ones
// inputs that mean something if they are linked, and that nearly all workflows leave free
const APART = {
  IterISMerge: ["start", "model_low_noise"],
  IterISCompare: ["model", "clip"],
  IterISSave: ["cover"],
};

/** Let a new node of ours have nothing sent to inputs that most workflows leave free; a saved workflow says that itself. */
export function keepApart({ comfyClass, properties }) {
  const names = APART[comfyClass];
  if (!names) return;
  const input_ue_unconnectable = Object.fromEntries(names.map((name) => [name, true]));
  properties.ue_properties = { version: VERSION, widget_ue_connectable: {}, input_ue_unconnectable };
}

/**
 * Return the workflow that is shown with the links that are made only while it is queued: those of a run, from what such a
 * node still sends.
 */
export function withBroadcast(shown, ran) {
  const sent = new Set();
  for (const [id, { class_type: type, inputs }] of Object.entries(shown ?? {})) {
    if (!SENDERS.test(type)) continue;
    for (const value of [...Object.values(inputs ?? {}), [id, 0]]) sent.add(JSON.stringify(value));
  }
  if (!sent.size) return shown;
  const completed = ([id, node]) => {
    const isMissing = ([name, value]) => !(name in (node.inputs ?? {})) && sent.has(JSON.stringify(value));
    const missing = Object.entries(ran?.[id]?.inputs ?? {}).filter(isMissing);
    return [id, { ...node, inputs: { ...node.inputs, ...Object.fromEntries(missing) } }];
  };
  return Object.fromEntries(Object.entries(shown).map(completed));
}
