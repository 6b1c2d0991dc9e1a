// A loader of a saved merge, with the nodes that draw a picture with it.

import { asOneChange, saidBy, seedBy, set } from "./graph.js";
import { link, linkRound, originOf, takers, vaeOf } from "./links.js";
import { bringIntoSight, freePlace, GAP, groupRound, HEAD, LANE, TITLE } from "./places.js";
import { readRows } from "./rows_text.js";

const LOADS = "iteris_loads"; // in a loader's properties: the merge whose file it has, and the title of its group
const NARROWEST = 270; // of a node; Nodes 2.0 draws some wider than the canvas
const FILLED = 270; // height of a Save Image with a picture; to grow to that would be another step of Undo
const LATENTS = {
  EmptyLatentImage: ["SD1.5", "SDXL", "AuraFlow"],
  EmptySD3LatentImage: ["SD3.5", "Flux.1", "Chroma", "Qwen-Image", "Z-Image", "Lumina 2"],
  EmptyFlux2LatentImage: ["Flux.2"],
};

/** Return the node that pictures of a model of a family begin with; undefined: videos, or nobody knows. */
export const latentOf = (family) => Object.keys(LATENTS).find((type) => LATENTS[type].includes(family));

/** Return the nodes: column, type, from which of them its inputs come, and what it says; see `drawnBy`. */
const nodesToDraw = (latent, { prompt, negative_prompt, width, height, seed, steps, cfg, sampler, scheduler }) => ({
  positive: [1, "CLIPTextEncode", { clip: "loader" }, { text: prompt }],
  negative: [1, "CLIPTextEncode", { clip: "loader" }, { text: negative_prompt }],
  size: [1, latent, {}, { width, height }],
  noise: [
    2,
    "KSampler",
    { model: "loader", positive: "positive", negative: "negative", latent_image: "size" },
    // a seed that is another one after a run would be another step of Undo
    { seed, control_after_generate: "fixed", steps, cfg, sampler_name: sampler, scheduler },
  ],
  picture: [3, "VAEDecode", { samples: "noise" }, {}],
  file: [4, "SaveImage", { images: "picture" }, {}],
});

/** Return what a merge's Compare draws first, and how, in its words; without one, what a new one would. */
function drawnBy(merge, compare, { words, guidance, resolution }) {
  const said = Object.fromEntries(compare.widgets.map(({ name }) => [name, saidBy(compare, name)]));
  const settings = originOf(merge, "settings")?.outputNode;
  const side = saidBy(settings, "resolution") || resolution;
  return {
    ...said,
    seed: seedBy(compare, "seed"),
    prompt: said.prompt?.trim().split(/\s*\n/)[0] || words,
    cfg: said.cfg || saidBy(settings, "cfg") || guidance,
    ...{ width: said.width || side, height: said.height || side },
  };
}

/** Put columns of nodes into a free place at the right of a merge, level with it, or below it. */
function lay(graph, columns, { pos }) {
  const widths = columns.map((column) => Math.max(NARROWEST, ...column.map((node) => node.size[0])));
  // the MODEL goes above texts
  const begins = columns.map((_, i) => HEAD + (i === 1 ? 2 * TITLE : 0));
  const heights = columns.map((column, i) => column.reduce((sum, node) => sum + node.size[1] + GAP, begins[i]));
  const whole = [widths.reduce((sum, width) => sum + width + GAP, 0), Math.max(...heights)];
  const [left, top] = freePlace(graph, [pos[0] + 2 * LANE, pos[1] - HEAD], whole);
  let x = left;
  for (const [i, column] of columns.entries()) {
    let y = top + begins[i];
    for (const node of column) {
      node.pos = [x, y];
      node.setSize([widths[i], node.size[1]]);
      y += node.size[1] + GAP;
      graph.add(node);
    }
    x += widths[i] + GAP;
  }
}

/** Let a loader of a merge's file have another one, and its group the title of that. */
function replace(loader, text, title) {
  set(loader, "loras", text);
  const { properties, graph } = loader;
  const group = graph.groups.find((each) => each.title === properties[LOADS].title);
  if (group) group.title = title;
  properties[LOADS] = { ...properties[LOADS], title };
}

/**
 * Put a Load LoRAs near a merge, and where it is known how, what draws with it as the merge's Compare does; or show the
 * one that is there already, with this file in the place of the merge's earlier one.
 *
 * @param {object} merge
 * @param {string} text the loader's rows
 * @param {(type: string) => object} create makes a node of a type
 * @param {object} canvas of the frontend
 * @param {object} known
 * @param {string} known.title of the group of all of them
 * @param {Record<string, string>} known.titles of nodes, by their names in `nodesToDraw`
 * @param {string} known.words to draw, where Compare has no prompt
 * @param {string} [known.family] of the model
 * @param {number} [known.guidance] that suits it
 * @param {number} [known.resolution] that suits it
 */
export function loadBeside(merge, text, create, canvas, known) {
  const { graph } = merge;
  const row = text.slice(0, text.lastIndexOf(":"));
  const loaders = graph.nodes.filter(({ comfyClass }) => comfyClass === "IterISLoad");
  const isIt = (node) => saidBy(node, "loras")?.includes(row);
  const ofEarlier = (node) =>
    node.properties[LOADS]?.merge === String(merge.id) && readRows(saidBy(node, "loras")).length === 1;
  const found = loaders.find(isIt) ?? loaders.find(ofEarlier);
  if (found) {
    if (!isIt(found)) asOneChange(canvas, () => replace(found, text, known.title));
    if (graph !== canvas.graph) canvas.setGraph(graph);
    canvas.deselectAll();
    canvas.select(found);
    bringIntoSight([found], canvas);
    return;
  }
  const compare = takers(graph, merge.outputs).find((node) => node?.comfyClass === "IterISCompare");
  const [model, clip] = ["model", "clip"].map((name) => originOf(merge, name));
  const vae = compare ? originOf(compare, "vae") : vaeOf(graph, model);
  const latent = vae && clip && latentOf(known.family);
  const how = drawnBy(merge, compare ?? create("IterISCompare"), known);
  const table = { loader: [0, "IterISLoad", {}, { loras: text }], ...(latent && nodesToDraw(latent, how)) };
  const nodes = Object.fromEntries(Object.entries(table).map(([name, [, type]]) => [name, create(type)]));
  for (const [name, title] of Object.entries(known.titles)) if (nodes[name]) nodes[name].title = title;
  nodes.file?.setSize([nodes.file.size[0], FILLED]);
  asOneChange(canvas, () => {
    const inColumn = (at) => Object.keys(table).filter((name) => table[name][0] === at);
    const columns = [0, 1, 2, 3, 4].map((at) => inColumn(at).map((name) => nodes[name])).filter(({ length }) => length);
    lay(graph, columns, merge);
    for (const [name, [, , inputs, values]] of Object.entries(table)) {
      const node = nodes[name];
      for (const [widget, value] of Object.entries(values)) if (value !== undefined) set(node, widget, value);
      for (const [input, from] of Object.entries(inputs)) {
        const { type } = node.inputs.find((each) => each.name === input);
        const output = nodes[from].outputs.find((each) => each.type === type);
        link({ outputNode: nodes[from], output }, node, input);
      }
    }
    const ways = [
      [model, nodes.loader, "model"],
      [clip, nodes.loader, "clip"],
      ...(latent ? [[vae, nodes.picture, "vae"]] : []),
    ];
    for (const way of ways) linkRound(...way);
    if (latent) groupRound(graph, Object.values(nodes), known.title);
    nodes.loader.properties[LOADS] = { merge: String(merge.id), title: known.title };
  });
  bringIntoSight(Object.values(nodes), canvas);
}
