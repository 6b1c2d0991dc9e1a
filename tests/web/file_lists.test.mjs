import assert from "node:assert/strict";
import { test } from "node:test";

import { enlist } from "../../web/file_lists.js";

const FILES = ["a.safetensors", "c.safetensors"];
const saved = (name, types = [], nodes = [], files = FILES) => enlist(name, types, nodes, [...files]);

test("a saved file is in every list of LoRAs, in its place, whatever else the list has", () => {
  const [old, newer, own, more] = [[...FILES], [...FILES], ["None", ...FILES], [...FILES, "z.pt"]];
  const types = [
    { input: { required: { lora: [old, {}] }, optional: { other: ["COMBO", { options: newer }] } } },
    { inputs: { lora: { options: more } } },
    {},
  ];
  const nodes = [{ widgets: [{ options: { values: own } }, { options: {} }, {}] }, {}];
  assert.equal(saved("b.safetensors", types, nodes), true);
  const all = ["a.safetensors", "b.safetensors", "c.safetensors"];
  assert.deepEqual([old, newer, own, more], [all, all, ["None", ...all], [...all, "z.pt"]]);
});

test("a list that several share gets it once", () => {
  const shared = [...FILES];
  saved(
    "d.safetensors",
    [{ input: { required: { lora: [shared] } }, inputs: { lora: { options: shared } } }],
    [{ widgets: [{ options: { values: shared } }] }],
  );
  assert.deepEqual(shared, [...FILES, "d.safetensors"]);
});

test("other lists stay as they are", () => {
  const [checkpoints, part, dynamic] = [["model.safetensors"], ["a.safetensors"], () => FILES];
  const nodes = [checkpoints, part, dynamic].map((values) => ({ widgets: [{ options: { values } }] }));
  assert.equal(saved("b.safetensors", [{ input: { required: { n: ["INT", {}], odd: null } } }], nodes), false);
  assert.deepEqual([checkpoints, part], [["model.safetensors"], ["a.safetensors"]]);
});

test("without any file no list can be told, and one that is listed stays once", () => {
  const list = [];
  assert.equal(saved("b.safetensors", [], [{ widgets: [{ options: { values: list } }] }], []), false);
  const again = [...FILES];
  saved("a.safetensors", [], [{ widgets: [{ options: { values: again } }] }]);
  assert.deepEqual([list, again], [[], FILES]);
});
