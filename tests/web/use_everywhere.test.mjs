import assert from "node:assert/strict";
import { test } from "node:test";

import { keepApart, withSent } from "../../web/use_everywhere.js";

const nodes = {
  1: { inputs: [{ name: "model" }, { name: "seed", widget: { name: "seed" } }] },
  2: { inputs: [] },
};
const graph = (...links) => ({ extra: { ue_links: links }, getNodeById: (id) => nodes[id] ?? null });
const link = (slot, upstream = "2") => ({ downstream: 1, downstream_slot: slot, upstream, upstream_slot: 3 });
const prompt = { 1: { class_type: "Merge", inputs: { seed: 7 } }, 2: { class_type: "Loader", inputs: {} } };

test("a workflow gets the links that are made once it is queued", () => {
  assert.deepEqual(withSent(prompt, graph(link(0), link(1)))[1].inputs, { model: ["2", 3], seed: ["2", 3] });
  assert.deepEqual(prompt[1].inputs, { seed: 7 }, "and what it was stays so");
});

test("links of nodes that are not there are left out", () => {
  const others = [link(0, "9"), link(5), { ...link(0), downstream: 8 }];
  for (const listed of [graph(...others), { ...graph(), extra: undefined }, { ...graph(), extra: { ue_links: "x" } }])
    assert.deepEqual(withSent(prompt, listed), prompt);
});

test("nothing is sent to inputs that most workflows leave free", () => {
  const refused = (comfyClass, name) => {
    const node = { comfyClass };
    keepApart(node);
    return node.reject_ue_connection({ name });
  };
  assert.ok(refused("IterISMergeVideo", "model_low_noise"));
  assert.ok(!refused("IterISMergeVideo", "model"));
  assert.ok(!refused("IterISLoad", "model"));
});
