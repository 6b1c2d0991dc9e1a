import assert from "node:assert/strict";
import { test } from "node:test";

import { nodeAt, nodesOf } from "../../web/graph.js";

const graph = (nodes) => ({
  nodes,
  getNodeById: (id) => nodes.find((node) => String(node.id) === String(id)) ?? null,
});
const innermost = { ...graph([{ id: 5, name: "innermost" }]), id: "b-b" };
const inner = {
  ...graph([
    { id: 5, name: "inner" },
    { id: 7, subgraph: innermost },
  ]),
  id: "a-a",
};
const outer = graph(
  [
    { id: 5, name: "outer" },
    { id: 12, subgraph: inner },
  ],
  [inner, innermost],
);

test("a node is found by its number, by and by its way through subgraph nodes", () => {
  const names = { 5: "outer", "12:5": "inner", "12:7:5": "innermost" };
  for (const [id, name] of Object.entries(names)) assert.equal(nodeAt(outer, id)?.name, name, id);
  assert.equal(nodeAt(outer, 5).name, "outer");
});

test("a node that is not there is undefined", () => {
  for (const id of ["6", "12:6", "5:5", "13:5", "c-c:5", ""]) assert.equal(nodeAt(outer, id), undefined, id);
  assert.equal(nodeAt(undefined, "5"), undefined);
  assert.equal(nodeAt(undefined, "12:5"), undefined);
});

test("every node is visited, those in subgraphs, too", () => {
  assert.deepEqual(
    [...nodesOf(outer)].map(({ id, name }) => name ?? id),
    ["outer", 12, "inner", 7, "innermost"],
  );
  assert.deepEqual([...nodesOf(undefined)], []);
});
