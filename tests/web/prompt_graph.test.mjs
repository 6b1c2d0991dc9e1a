import assert from "node:assert/strict";
import { test } from "node:test";

import { sinceRun } from "../../web/changed_inputs.js";
import { sayer } from "../../web/words.js";
import { isSame, neededFor, withoutRefused } from "../../web/prompt_graph.js";

const prompt = (rows, ids = ["1", "2"]) => ({
  [ids[0]]: { class_type: "Loader", inputs: { name: "a.safetensors" } },
  [ids[1]]: { class_type: "Merge", inputs: { model: [ids[0], 0], rows, sizes: [1, 2] } },
});

test("a node is the same with equal inputs and equal nodes before it, whatever their ids", () => {
  const other = { ...prompt("x", ["7", "2"]), 9: { class_type: "Sampler", inputs: { seed: 3 } } };
  assert.ok(isSame(prompt("x"), other, "2"));
});

test("another input, type, output or node before it makes another node", () => {
  const first = prompt("x");
  const changed = (change) => {
    const second = structuredClone(first);
    change(second);
    return isSame(first, second, "2");
  };
  assert.ok(changed(() => {}));
  assert.ok(!changed((second) => (second[2].inputs.rows = "y")));
  assert.ok(!changed((second) => (second[2].class_type = "Load")));
  assert.ok(!changed((second) => (second[2].inputs.model = ["1", 1])));
  assert.ok(!changed((second) => (second[1].inputs.name = "b.safetensors")));
  assert.ok(!changed((second) => (second[2].inputs.more = 1)));
  assert.ok(!changed((second) => delete second[2]));
});

test("a saved merge is the same with another cover, and another one with another merge", () => {
  const save = (merged, seed) => ({
    ...prompt(merged),
    3: { class_type: "Compare", inputs: { merged: ["2", 0], seed } },
    4: { class_type: "IterISSave", inputs: { merged: ["2", 0], cover: ["3", 1] } },
  });
  assert.ok(isSame(save("x", 1), save("x", 2), "4"));
  assert.ok(!isSame(save("x", 1), save("y", 1), "4"));
});

test("a merge is the same whatever it has where that does not count", () => {
  let kind;
  const merge = (inputs, type = "IterISSettings") => ({
    1: { class_type: type, inputs: {} },
    2: { class_type: kind, inputs: { preset: "Fast", size: "as is", settings: ["1", 0], ...inputs } },
  });
  const isAlike = (first, second, type) => isSame(merge(first, type), merge(second, type), "2");
  for (kind of ["IterISMerge", "IterISMergeVideo"]) {
    for (const size of ["as is", "smaller"]) assert.ok(isAlike({ size, size_value: 32 }, { size, size_value: 8 }));
    for (const size of ["rank", "MB", ["1", 1]]) assert.ok(!isAlike({ size, size_value: 32 }, { size, size_value: 8 }));
    assert.ok(!isAlike({ size: "as is" }, { size: "smaller" }));
    const preview = { preset: "Preview", together: true, size: "rank", size_value: 8 };
    assert.ok(isAlike(preview, { preset: "Preview" }));
    assert.ok(!isAlike(preview, { ...preview, preset: "Fast" }));
    assert.ok(isAlike(preview, { preset: "Fast", together: false }, "IterISRecipe"));
  }
});

const KNOWN = { resolution: ["INT", { default: 0 }], cfg: ["FLOAT", { default: 0 }] };
const settingsKnown = () => {
  globalThis.LiteGraph = { registered_node_types: { IterISSettings: { nodeData: { input: { optional: KNOWN } } } } };
};

test("a merge with Merge settings that set nothing is the same as one without", () => {
  settingsKnown();
  const merge = (settings) => ({
    1: { class_type: "IterISSettings", inputs: settings },
    2: { class_type: "IterISMerge", inputs: { preset: "Fast", size: "as is", settings: ["1", 0] } },
    3: { class_type: "IterISMerge", inputs: { preset: "Fast", size: "as is" } },
  });
  const isNone = (settings) => isSame(merge(settings), { 2: merge({})[3] }, "2");
  assert.ok(isNone({ resolution: 0, cfg: 0 }));
  assert.ok(!isNone({ resolution: 512, cfg: 0 }));
  assert.ok(!isNone({ resolution: ["3", 0], cfg: 0 }));
  assert.ok(!isNone({ resolution: 0, unheard: 0 }));
});

test("what was another one in a run is told, the nearest first, where that is all", () => {
  settingsKnown();
  const graph = (own = {}, merge = {}, settings = undefined, loader = "a") => ({
    1: { class_type: "Loader", inputs: { ckpt_name: loader } },
    2: {
      class_type: "IterISMerge",
      inputs: {
        model: ["1", 0],
        loras: "<lora:x/ink:0.8>\n<lora:cat:1>",
        together: false,
        size: "as is",
        ...merge,
        ...(settings && { settings: ["4", 0] }),
      },
    },
    3: { class_type: "IterISCompare", inputs: { merged: ["2", 3], prompt: "a dog", cfg: 0, ...own } },
    ...(settings && { 4: { class_type: "IterISSettings", inputs: settings } }),
  });
  const told = (...now) => sinceRun([graph(), "3"], [graph(...now), "3"], sayer("en"));
  assert.equal(told(), "");
  assert.equal(told({ cfg: 3 }), "cfg was auto");
  assert.equal(told({ prompt: "" }), "prompt was a dog");
  assert.equal(told({}, { loras: "<lora:x/ink:1>\n<lora:cat:1>" }), "strength of ink was 0.8");
  assert.equal(told({}, { loras: "<lora:x/ink:0.8>\n# <lora:cat:1>" }), "cat was on");
  assert.equal(told({}, { loras: "<lora:x/ink:0.8>\n<lora:cat:1> style" }), "the row of cat");
  assert.equal(told({}, { loras: "<lora:x/ink:0.8>" }), "", "too much to tell");
  assert.equal(told({ cfg: 3 }, { together: true }, undefined, "b"), "cfg was auto, together was off, …");
  assert.equal(told({}, {}, { resolution: 512, cfg: 0 }), "resolution was auto");
  assert.equal(told({}, { size: "rank", size_value: 8 }), "size was as is", "it had no number");
  assert.equal(told({ model: ["1", 0] }), "", "another link");
  assert.equal(sinceRun([undefined, undefined], [graph(), "3"], sayer("en")), "");
});

test("many nodes that share what is before them are compared at once, and a loop ends", () => {
  const deep = { 0: { class_type: "A", inputs: {} } };
  for (let i = 1; i < 200; i++) deep[i] = { class_type: "B", inputs: { a: [`${i - 1}`, 0], b: [`${i - 1}`, 0] } };
  assert.ok(isSame(deep, structuredClone(deep), "199"));
  const loop = { 1: { class_type: "A", inputs: { a: ["2", 0] } }, 2: { class_type: "A", inputs: { a: ["1", 0] } } };
  assert.ok(isSame(loop, loop, "1"));
});

test("for some nodes all is needed that they hang on, and nothing else", () => {
  const whole = { ...prompt("x"), 3: { class_type: "Compare", inputs: { merged: ["2", 0] } }, 4: prompt("y")[1] };
  assert.deepEqual(Object.keys(neededFor(whole, ["3"])), ["1", "2", "3"]);
  assert.equal(neededFor(whole, undefined), whole);
});

test("what the server has refused is not run, nor outputs behind it", () => {
  const whole = { ...prompt("x"), 3: { class_type: "Compare", inputs: { merged: ["2", 3] } } };
  whole[4] = { class_type: "Save", inputs: { merged: ["2", 3], cover: ["3", 1] } };
  const refused = { 3: { errors: [], dependent_outputs: ["3", "4"] } };
  assert.deepEqual(Object.keys(withoutRefused(whole, refused)), ["1", "2"]);
  assert.deepEqual(withoutRefused(whole, undefined), whole);
  assert.equal(withoutRefused(undefined, refused), undefined);
});
