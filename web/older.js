// Workflows that an earlier version has saved. No DOM and no ComfyUI here, so that `node --test` runs it.

const TRIED = 11; // place of Merge settings' try_several, which version 0.1.0 had
const SWITCH = ["as the preset says", "on", "off"];

/**
 * Change a workflow's nodes in place, so that their values fit today's inputs: ComfyUI reads them by their
 * place alone.
 *
 * @param {any} workflow what ComfyUI is about to open
 */
export function renew(workflow) {
  const graphs = [workflow, ...(workflow?.definitions?.subgraphs ?? [])];
  for (const node of graphs.flatMap((graph) => graph?.nodes ?? [])) {
    const { type, widgets_values: values } = node ?? {};
    if (!Array.isArray(values)) continue;
    if (type === "IterISSettings" && SWITCH.includes(values[TRIED])) values.splice(TRIED, 1);
    if (type === "IterISMerge" && values[1] === "Best") values[1] = "Balanced"; // which was level with it
  }
}
