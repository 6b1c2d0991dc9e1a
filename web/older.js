// Workflows that an earlier version has saved. No DOM and no ComfyUI here, so that `node --test` runs it.

// Places of Merge settings' correct_strength and try_several, which version 0.1.0 had.
const CORRECTED = 10;
const TRIED = 11;
const SWITCH = ["as the preset says", "on", "off"];

// Inputs of Merge LoRAs that came later; the page has them before those of widgets.
const LATER = [
  { name: "start", type: "CONDITIONING", link: null },
  { name: "model_low_noise", type: "MODEL", link: null },
];

/** Give a merge the inputs that came later, and links to what comes after these its new place. */
function addLater(node, links) {
  const { inputs } = node;
  if (!Array.isArray(inputs) || inputs.some((input) => input?.name === "model_low_noise")) return;
  const place = inputs.findIndex((input) => input?.widget);
  if (place < 0) return;
  inputs.splice(place, 0, ...structuredClone(LATER));
  for (const link of links) {
    const [to, slot] = Array.isArray(link) ? [3, 4] : ["target_id", "target_slot"];
    if (link?.[to] === node.id && link[slot] >= place) link[slot] += LATER.length;
  }
}

/**
 * Change a workflow's nodes in place, so that their values fit today's inputs: ComfyUI reads them by their
 * place alone.
 *
 * @param {any} workflow what ComfyUI is about to open
 */
export function renew(workflow) {
  const graphs = [workflow, ...(workflow?.definitions?.subgraphs ?? [])];
  for (const [node, links] of graphs.flatMap((graph) => (graph?.nodes ?? []).map((node) => [node, graph.links]))) {
    const { type, widgets_values: values } = node ?? {};
    if (type === "IterISMerge") addLater(node, Array.isArray(links) ? links : []);
    if (!Array.isArray(values)) continue;
    if (type === "IterISSettings" && SWITCH.includes(values[TRIED])) values.splice(TRIED, 1);
    if (type === "IterISSettings" && typeof values[CORRECTED] === "boolean") values.splice(CORRECTED, 1);
    if (type === "IterISMerge" && values[1] === "Best") values[1] = "Balanced"; // which was level with it
  }
}
