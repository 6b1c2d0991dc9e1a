import assert from "node:assert/strict";
import { test } from "node:test";

import { keepApart, withBroadcast } from "../../web/everywhere.js";
import { isSame } from "../../web/prompts.js";

test("links that a pack makes only while a workflow is queued are those of the run, while it still sends the same", () => {
  const sender = (value) => ({ class_type: "Anything Everywhere", inputs: { anything: value } });
  const loader = { class_type: "Loader", inputs: { name: "a.safetensors" } };
  const rows = { rows: "x" };
  const ran = { 1: loader, 2: { class_type: "Merge", inputs: { ...rows, model: ["1", 0] } }, 3: sender(["1", 0]) };
  const shown = (sent, inputs = rows) => ({ 1: loader, 2: { class_type: "Merge", inputs }, ...sent });
  assert.ok(isSame(ran, shown({ 3: sender(["1", 0]) }), "2"));
  assert.ok(!isSame(ran, shown({}), "2"));
  assert.ok(!isSame(ran, shown({ 3: sender(["1", 1]) }), "2"));
  assert.ok(!isSame(ran, shown({ 3: sender(["1", 0]) }, { rows: "y" }), "2"));
  assert.ok(!isSame(ran, shown({ 3: sender(["1", 0]) }, { ...rows, model: ["4", 0] }), "2"));
  assert.deepEqual(withBroadcast(shown({ 3: sender(["1", 0]) }), undefined), shown({ 3: sender(["1", 0]) }));
  assert.equal(withBroadcast(undefined, ran), undefined);
});

test("a seed that a pack's node sends itself counts likewise", () => {
  const seed = { 5: { class_type: "Seed Everywhere", inputs: { seed: 7 } } };
  const compare = (inputs) => ({ ...seed, 6: { class_type: "Compare", inputs } });
  assert.ok(isSame(compare({ seed: ["5", 0] }), compare({}), "6"));
});

test("nothing is sent to inputs that most workflows leave free", () => {
  const apart = (comfyClass, properties = {}) => {
    keepApart({ comfyClass, properties });
    return properties;
  };
  const { version, input_ue_unconnectable } = apart("IterISMerge").ue_properties;
  assert.deepEqual([version, input_ue_unconnectable], ["7.0", { start: true, model_low_noise: true }]);
  assert.deepEqual(apart("KSampler"), {});
});
