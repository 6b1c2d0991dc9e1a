import assert from "node:assert/strict";
import { test } from "node:test";

import { chainOf, rowsOf } from "../../web/loaders.js";
import { writtenRows } from "../../web/rows_text.js";

const TYPES = ["MODEL", "CLIP"];

/** Return the nodes of a graph; links are named "from to", and go from a node's output of a type to an input of it. */
function graphOf(nodes, links) {
  const made = {};
  const all = Object.entries(links).flatMap(([type, ends]) => ends.map((end) => [type, ...end.split(" ")]));
  const graph = {
    getNodeById: (id) => made[id],
    getLink: (id) => id != null && { origin_id: all[id][1], target_id: all[id][2] },
  };
  for (const [id, { kind = "LoraLoader", widgets = {}, mode = 0, types = TYPES, linked = [] }] of Object.entries(
    nodes,
  )) {
    const idsOf = (type, end) => [...all.keys()].filter((at) => all[at][0] === type && all[at][end] === id);
    made[id] = {
      ...{ id, graph, mode, comfyClass: kind },
      widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
      inputs: [
        ...types.map((type) => ({ type, link: idsOf(type, 2)[0] ?? null })),
        ...linked.map((name) => ({ type: "FLOAT", widget: { name }, link: 0 })),
      ],
      outputs: types.map((type) => ({ type, links: idsOf(type, 1) })),
    };
  }
  return made;
}

const lora = (name, more = {}) => ({
  widgets: { lora_name: `${name}.safetensors`, strength_model: 0.8, strength_clip: 0.5 },
  ...more,
});
const only = (name, more = {}) => lora(name, { kind: "LoraLoaderModelOnly", types: ["MODEL"], ...more });
const rest = { load: { kind: "Checkpoint" }, draw: { kind: "KSampler" }, text: { kind: "Encode" } };
const ids = (nodes) => nodes.map(({ id }) => id);

test("a chain is the same from each of its loaders", () => {
  const nodes = graphOf(
    { ...rest, a: lora("first"), b: only("second", { mode: 4 }), c: lora("third") },
    { MODEL: ["load a", "a b", "b c", "c draw"], CLIP: ["load a", "a c", "c text"] },
  );
  for (const id of "abc") assert.deepEqual(ids(chainOf(nodes[id])), ["a", "b", "c"]);
  assert.equal(
    writtenRows(rowsOf(chainOf(nodes.a))),
    "<lora:first:0.8:0.5>\n# <lora:second:0.8:0>\n<lora:third:0.8:0.5>",
  );
});

test("the CLIP of a chain may leave it before the MODEL", () => {
  const nodes = graphOf(
    { ...rest, a: lora("first"), b: only("second") },
    { MODEL: ["load a", "a b", "b draw"], CLIP: ["load a", "a text"] },
  );
  for (const id of "ab") assert.deepEqual(ids(chainOf(nodes[id])), ["a", "b"]);
});

test("a chain ends where something else needs what is between two loaders", () => {
  const links = { MODEL: ["load a", "a b", "b c", "c d", "b draw", "d draw"], CLIP: ["load a", "a d", "d text"] };
  const nodes = graphOf({ ...rest, a: lora("first"), b: only("second"), c: only("third"), d: lora("fourth") }, links);
  assert.deepEqual(ids(chainOf(nodes.c)), ["c", "d"]);
  assert.deepEqual(ids(chainOf(nodes.d)), ["c", "d"]);
  assert.deepEqual(ids(chainOf(nodes.b)), ["a", "b"]);
});

test("a loader whose strength comes through a link is in no chain", () => {
  const nodes = graphOf(
    { ...rest, a: lora("first"), b: only("second", { linked: ["strength_model"] }), c: only("third") },
    { MODEL: ["load a", "a b", "b c", "c draw"], CLIP: [] },
  );
  assert.deepEqual([ids(chainOf(nodes.a)), ids(chainOf(nodes.c))], [["a"], ["c"]]);
});

test("loaders that go round are a chain that ends", () => {
  const nodes = graphOf({ a: only("first"), b: only("second") }, { MODEL: ["a b", "b a"], CLIP: [] });
  assert.equal(chainOf(nodes.a).length, 2);
});

test("rows of rgthree's loader are those that have a file", () => {
  const row = (name, on, strength, strengthTwo = null) => ({ on, lora: name, strength, strengthTwo });
  const widgets = {
    header: { type: "header" },
    lora_1: row("first.safetensors", true, 0.7),
    lora_2: row("second.safetensors", false, 1, 0.5),
    lora_3: row("None", true, 1),
    add: "",
  };
  const power = { kind: "Power Lora Loader (rgthree)", widgets };
  const rows = (CLIP) => writtenRows(rowsOf([graphOf({ ...rest, p: power }, { MODEL: ["load p"], CLIP }).p]));
  assert.equal(rows(["load p"]), "<lora:first:0.7>\n# <lora:second:1:0.5>");
  assert.equal(rows([]), "<lora:first:0.7:0>\n# <lora:second:1:0>");
});
