import assert from "node:assert/strict";
import { test } from "node:test";

import { nodeAt, nodesOf, saidBy, seedBy, showInstead, sourceOf, widgetOf } from "../../web/graph.js";
import { paintOf } from "../../web/paint.js";

const graph = (nodes, subgraphs = []) => ({
  nodes,
  subgraphs: new Map(subgraphs.map((inner) => [inner.id, inner])),
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

test("a node is found by its number, by its way through subgraph nodes, and by its subgraph's id", () => {
  const names = { 5: "outer", "12:5": "inner", "12:7:5": "innermost", "a-a:5": "inner", "b-b:5": "innermost" };
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

/** Return a node with widgets, and inputs for them, whose links begin where `origins` says. */
function node(type, values, origins = {}) {
  const widgets = Object.entries(values).map(([name, value]) => ({ name, value }));
  const inputs = widgets.map(({ name }) => ({ name, widget: { name }, link: name in origins ? name : null }));
  const own = { getLink: (id) => ({ origin_slot: 0, resolve: () => origins[id] }) };
  return { type, widgets, inputs, graph: own };
}

test("a value is that of the node that holds it, and hands it on", () => {
  const seen = (outputNode) => saidBy(node("KSampler", { seed: 1 }, { seed: { outputNode } }), "seed");
  assert.equal(saidBy(node("KSampler", { seed: 1 }), "seed"), 1);
  assert.equal(saidBy(node("KSampler", { seed: 1 }), "other"), undefined);
  assert.equal(saidBy(undefined, "seed"), undefined);
  const held = node("PrimitiveInt", { value: 7, control_after_generate: "fixed" });
  held.widgets[1].options = { serialize: false };
  assert.equal(seen(held), 7);
  assert.equal(seen(node("Seed (rgthree)", { seed: 8 })), 8);
  const between = { type: "Reroute", inputs: [{ link: "before" }] };
  const links = { seed: { outputNode: between }, before: { outputNode: held } };
  assert.equal(saidBy(node("KSampler", { seed: 1 }, links), "seed"), 7, "through a reroute");
  const works = node("Random", { seed: 1 }, { before: { outputNode: held } });
  works.inputs.push({ name: "previous", link: "before" });
  for (const other of [works, node("SeedOfText", { seed: 1, text: "a" }), undefined])
    assert.equal(seen(other), undefined, other?.type);
});

test("two nodes that hand a value on to one another hold none", () => {
  const [to, from] = [{ value: {} }, { value: {} }];
  const [one, other] = [node("PrimitiveInt", { value: 1 }, to), node("PrimitiveInt", { value: 2 }, from)];
  to.value.outputNode = other;
  from.value.outputNode = one;
  assert.equal(widgetOf(one, "value"), undefined);
});

test("a seed is one that stays so", () => {
  const seen = (seed) => seedBy(node("KSampler", { seed }), "seed");
  assert.deepEqual([0, 7, -1, undefined].map(seen), [0, 7, undefined, undefined]);
});

test("reroutes that lead nowhere, and round, begin at no node", () => {
  const open = { type: "Reroute" };
  assert.deepEqual(sourceOf({ getLink: () => ({ resolve: () => ({ outputNode: open }) }) }, 1), {});
  const round = { resolve: () => ({ outputNode: { type: "Reroute", inputs: [{ link: 1 }] } }) };
  assert.deepEqual(sourceOf({ getLink: () => round }, 1), {});
});

test("a value comes into a subgraph, and out of one", () => {
  const sampler = node("KSampler", { seed: 1 }, { seed: { subgraphInput: { name: "noise" } } });
  const outer = { ...node("a-a", { noise: 5 }), subgraph: sampler.graph };
  sampler.graph.rootGraph = { nodes: [outer] };
  assert.equal(widgetOf(sampler, "seed"), outer.widgets[0]);
  sampler.graph.rootGraph.nodes.push({ ...outer });
  assert.equal(saidBy(sampler, "seed"), undefined, "of two with the same inside, either may be meant");

  const inside = node("", {}, { 0: { outputNode: node("PrimitiveInt", { value: 3 }) } }).graph;
  const holder = { type: "b-b", subgraph: Object.assign(inside, { outputs: [{ linkIds: ["0"] }] }) };
  assert.equal(saidBy(node("KSampler", { seed: 1 }, { seed: { outputNode: holder } }), "seed"), 3);
});

test("what subgraphs around one another show of a node, they show of what takes its place", () => {
  const merge = { id: 9, widgets: [{ name: "rows" }] };
  const [loader, save] = [{ id: 2 }, { id: 3 }];
  const [inner, middle] = [{ nodes: [merge, loader, save] }, { nodes: [] }];
  const shown = (...proxyWidgets) => ({ properties: { proxyWidgets } });
  const around = { id: 5, graph: middle, subgraph: inner, ...shown(["2", "rows"], ["3", "name"], ["4", "x"]) };
  middle.nodes.push(around);
  const outer = { nodes: [] };
  const outermost = {
    ...{ id: 7, graph: outer, subgraph: middle },
    ...shown(["5", "2: rows"], ["5", "3: name"], ["5", "4: x"], ["-1", "seed"]),
  };
  outer.nodes.push(outermost);
  for (const each of [inner, middle, outer]) each.rootGraph = outer;
  merge.graph = inner;
  showInstead(merge, loader, [loader, save]);
  const rest = [["4", "x"]];
  assert.deepEqual(around.properties.proxyWidgets, [["9", "rows"], ...rest]);
  const further = [
    ["5", "4: x"],
    ["-1", "seed"],
  ];
  assert.deepEqual(outermost.properties.proxyWidgets, [["5", "9: rows"], ...further]);
});

test("eighteen tasks look different", () => {
  const looks = [...Array(18).keys()].map((task) => Object.values(paintOf(task)).join());
  assert.equal(new Set(looks).size, 18);
  assert.deepEqual(paintOf(0), { colour: "#56b4e9", kind: "solid" });
  assert.deepEqual(paintOf(6), { colour: "#56b4e9", kind: "hollow" });
});

test("a link is followed from what gets a thing by its name to what sets it, in its graph or outside", () => {
  const loader = { type: "CheckpointLoaderSimple" };
  const named = (type, name, more) => ({ type, widgets: [{ value: name }], ...more });
  const getter = named("GetNode", "model");
  const links = { 1: { outputNode: getter }, 2: { outputNode: loader } };
  const getLink = (id) => ({ origin_slot: 0, resolve: () => links[id] });
  const root = { nodes: [], getLink };
  root.rootGraph = root;
  const inner = { nodes: [], getLink, rootGraph: root };
  root.nodes.push({ subgraph: inner, graph: root, type: "x" });
  getter.graph = inner;
  const setter = (graph, name = "model") => named("SetNode", name, { inputs: [{ link: 2 }], graph });
  const from = () => sourceOf(inner, 1).node;
  assert.equal(from(), getter, "nothing sets it");
  root.nodes.push({ type: "SetNode", graph: root }, setter(root, "vae"), setter(root));
  assert.equal(from(), loader);
  inner.nodes.push(named("SetNode", "model", { inputs: [{ link: null }], graph: inner }));
  assert.equal(from(), undefined, "its own comes first");
  getter.widgets = undefined;
  assert.equal(from(), getter, "the pack is not there");
});
