import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { renew } from "../../web/older.js";

const RELEASED = readFileSync(new URL("../data/releases/0.1.0/workflow.json", import.meta.url), "utf8");
const INPUTS = Object.keys(
  JSON.parse(readFileSync(new URL("../../locales/en/nodeDefs.json", import.meta.url), "utf8")).IterISSettings.inputs,
);
const settingsIn = ({ nodes }) => nodes.find(({ type }) => type === "IterISSettings");

test("the settings of version 0.1.0 keep their meaning without the inputs that are gone", () => {
  const workflow = JSON.parse(RELEASED);
  const settings = settingsIn(workflow);
  const names = settings.inputs.map(({ name }) => name);
  const before = Object.fromEntries(names.map((name, place) => [name, settings.widgets_values[place]]));
  renew(workflow);
  assert.equal(before.try_several, "as the preset says");
  // inputs that came later stand last
  const kept = names.filter((name) => !["try_several", "correct_strength"].includes(name));
  assert.deepEqual(INPUTS.slice(0, kept.length), kept);
  kept.forEach((name, place) => assert.equal(settings.widgets_values[place], before[name], name));
});

test("a workflow of today stays as it is", () => {
  const workflow = JSON.parse(RELEASED);
  renew(workflow);
  const once = JSON.stringify(workflow);
  renew(workflow);
  assert.equal(JSON.stringify(workflow), once);
});

test("the preset that is gone is the one that it was level with, in a subgraph too", () => {
  const merge = () => ({ type: "IterISMerge", widgets_values: ["<lora:a>", "Best", false] });
  const workflow = {
    nodes: [merge(), { type: "KSampler", widgets_values: ["", "Best"] }],
    definitions: { subgraphs: [{ nodes: [merge()] }] },
  };
  renew(workflow);
  assert.equal(workflow.nodes[0].widgets_values[1], "Balanced");
  assert.equal(workflow.nodes[1].widgets_values[1], "Best");
  assert.equal(workflow.definitions.subgraphs[0].nodes[0].widgets_values[1], "Balanced");
});

test("what is no workflow is left alone", () => {
  for (const wrong of [undefined, null, {}, { nodes: null }, { nodes: [{}] }, { definitions: {} }]) renew(wrong);
});

test("links of a merge keep their inputs when inputs come before them", () => {
  const later = ["start", "model_low_noise"];
  const today = JSON.parse(readFileSync(new URL("../../subgraphs/Merge two LoRAs.json", import.meta.url), "utf8"));
  const older = structuredClone(today);
  const [inner] = older.definitions.subgraphs;
  const merge = inner.nodes.find(({ type }) => type === "IterISMerge");
  const place = merge.inputs.findIndex(({ name }) => name === later[0]);
  merge.inputs = merge.inputs.filter(({ name }) => !later.includes(name));
  for (const link of inner.links)
    if (link.target_id === merge.id && link.target_slot > place) link.target_slot -= later.length;
  const asRoot = { nodes: [structuredClone(merge)], links: [[7, 1, 0, merge.id, place, "STRING"], null] };
  renew(older);
  const plain = ({ definitions }) => {
    const [{ nodes, links }] = definitions.subgraphs;
    return [links, nodes.map(({ inputs }) => inputs.map(({ name, type, link }) => ({ name, type, link })))];
  };
  assert.deepEqual(plain(older), plain(today));
  renew(asRoot);
  assert.deepEqual(asRoot.links, [[7, 1, 0, merge.id, place + 2, "STRING"], null]);
});
