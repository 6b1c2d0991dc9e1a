// "Merge these LoRAs" in the menu of a loader of LoRAs, ComfyUI's own or rgthree's: a chain of them becomes the rows of a
// Merge LoRAs at the place of the first, with their links. Nothing else in the graph is moved.

import { app } from "../../scripts/app.js";
import { also, asOneChange, set } from "./graph.js";
import { CARRIED, chainOf, hasInput, isLoader, isRead, linksFrom, loadedBy, rowsOf, slotOf } from "./loaders.js";
import { tell } from "./parts.js";
import { canName, writtenRows } from "./rows_text.js";
import { say } from "./words.js";

const GAP = 80; // pixels from the rest of the graph, and between the two nodes below it

/** Let a loader's menu offer it. */
export function offerMerge(node) {
  if (!isLoader(node)) return;
  also(node, "getExtraMenuOptions", (_, options) => {
    options.unshift({ content: say("merge_loaders"), callback: () => mergeThese(node) }, null);
  });
}

function mergeThese(node) {
  const { graph } = node;
  if (graph !== app.graph) return tell(say("in_subgraph"), say("in_subgraph_rest"));
  if (!isRead(node)) return tell(say("no_row_can"), say("linked_loader"));
  const chain = chainOf(node);
  const unnamed = chain.flatMap(loadedBy).find(({ file }) => !canName(String(file)));
  if (unnamed) return tell(say("no_row_can"), say("no_row_name", { name: unnamed.file }));
  const rows = rowsOf(chain);
  const used = rows.filter(({ isOff }) => !isOff).length;
  if (used < 2) return tell(say(used ? "one_to_merge" : "nothing_to_merge"), say("nothing_to_merge_rest"));
  asOneChange(app.canvas, () => replaceChain(graph, chain, writtenRows(rows)));
  tell(say("merged_these"), say("merged_these_rest"));
}

/** Put a merge in the place of loaders, and below the rest of the graph what compares and saves it. */
function replaceChain(graph, chain, text) {
  const merge = addNode(graph, "IterISMerge", chain[0].pos);
  set(merge, "loras", text);
  for (const type of CARRIED) {
    const first = chain.find((node) => hasInput(node, type));
    const link = first && graph.getLink(slotOf(first.inputs, type).link);
    if (link)
      graph
        .getNodeById(link.origin_id)
        .connect(link.origin_slot, merge, slotOf(merge.inputs, type).name, link.parentId);
    else connect(giverOf(graph, type, merge), type, merge);
    const output = merge.outputs.findIndex((each) => each.type === type);
    for (const { target_id: id, target_slot: slot, parentId } of chain.flatMap((node) => linksFrom(node, type))) {
      const taker = graph.getNodeById(id);
      if (!chain.includes(taker)) merge.connect(output, taker, slot, parentId); // through the same reroutes
    }
  }
  const top = GAP + Math.max(...graph.nodes.map(({ pos, size }) => pos[1] + size[1]));
  const compare = addNode(graph, "IterISCompare", [merge.pos[0], top]);
  const save = addNode(graph, "IterISSave", [merge.pos[0] + compare.size[0] + GAP, top]);
  for (const node of [compare, save]) connect(merge, "ITERIS_MERGED", node);
  connect(giverOf(graph, "VAE"), "VAE", compare);
  for (const node of chain) graph.remove(node);
}

function addNode(graph, type, [left, top]) {
  const node = LiteGraph.createNode(type);
  node.pos = [left, top];
  graph.add(node);
  return node;
}

/** Return the node that gives a type to the others: the first one that is used, or the first one. */
function giverOf(graph, type, except) {
  const givers = graph.nodes.filter((node) => node !== except && !isLoader(node) && slotOf(node.outputs, type));
  return givers.find((node) => linksFrom(node, type).length) ?? givers[0];
}

/** Link one node's output of a type with the other's input. */
function connect(from, type, to) {
  const output = from?.outputs.findIndex((each) => each.type === type) ?? -1;
  if (output >= 0) from.connect(output, to, slotOf(to.inputs, type).name);
}
