import assert from "node:assert/strict";
import { test } from "node:test";

import { readGroups, writtenGroups } from "../../web/blocks.js";
import { promptAfter, textAfter } from "../../web/prompt_field.js";

const UNET = ["IN", "MID", "OUT"];

for (const [text, strengths] of [
  ["", [1, 1, 1]],
  ["IN:0.5, MID:0", [0.5, 0, 1]],
  ["out = -1; in:.25", [0.25, 1, -1]],
])
  test(`a strength for each group: ${text}`, () => assert.deepEqual(readGroups(text, UNET), strengths));

for (const text of ["IN01:0.5", "OUTALL", "1,0,0,1", "S:1", "IN:x", "IN:1.2.3", "ALL:0"])
  test(`more than a strength for each group: ${text}`, () => assert.equal(readGroups(text, UNET), undefined));

test("what is written is read again", () => {
  assert.equal(writtenGroups([0.5, 1, 0], UNET), "IN:0.5, OUT:0");
  assert.equal(writtenGroups([1, 1, 1], UNET), "");
});

/** Return nodes linked as [from, type, to, name of the input] says. */
function linked(nodes, links) {
  const graph = {
    getLink: (id) => ({
      resolve: () => ({
        outputNode: nodes[links[id][0]],
        inputNode: nodes[links[id][2]],
        input: { name: links[id][3] },
      }),
    }),
  };
  for (const [name, node] of Object.entries(nodes)) {
    const types = new Set(links.filter(([from]) => from === name).map(([, type]) => type));
    const ids = (type) => links.flatMap(([from, each], id) => (from === name && each === type ? [id] : []));
    Object.assign(node, { graph, outputs: [...types].map((type) => ({ type, links: ids(type) })) });
  }
  return nodes;
}
const field = (value, link = null) => ({
  widgets: [{ name: "text", value }],
  inputs: [{ name: "text", widget: { name: "text" }, link }],
});
const PAIR = [
  ["load", "CLIP", "skip", "clip"],
  ["skip", "CLIP", "bad", "clip"],
  ["skip", "CLIP", "good", "clip"],
  ["bad", "CONDITIONING", "sampler", "negative"],
  ["good", "CONDITIONING", "guide", "conditioning"],
  ["guide", "CONDITIONING", "sampler", "positive"],
];

test("the positive prompt is found, through other nodes", () => {
  const nodes = linked({ load: {}, skip: {}, bad: field("b"), good: field("a"), guide: {}, sampler: {} }, PAIR);
  assert.equal(promptAfter(nodes.load).value, "a");
});

test("a text that is worked out in a run is not written", () => {
  const made = { type: "Writer", widgets: [{ name: "value", value: "c" }] };
  const of = (writer) => ({ load: {}, skip: {}, bad: field("b"), good: field("a", 6), guide: {}, sampler: {}, writer });
  const links = [...PAIR, ["writer", "STRING", "good", "text"]];
  assert.equal(
    promptAfter(linked(of(made), links).load),
    undefined,
    "and the negative one is not written in its place",
  );
  const held = { ...made, type: "PrimitiveStringMultiline" };
  assert.equal(promptAfter(linked(of(held), links).load), held.widgets[0], "and in a node that holds it, it is");
  assert.equal(promptAfter(linked({ load: {} }, []).load), undefined);
});

const TWO = [
  ["load", "CLIP", "other", "clip"],
  ["other", "CONDITIONING", "both", "conditioning"],
  ["both", "CONDITIONING", "sampler", "positive"],
];
const two = (value, link = null) => ({
  load: {},
  skip: {},
  bad: field("b"),
  good: field("a"),
  other: field(value, link),
  both: {},
  guide: {},
  sampler: {},
});

test("all positive prompts together are what is drawn, where all can be read", () => {
  assert.equal(textAfter(linked(two("c"), [...PAIR, ...TWO]).load), "a\nc");
  assert.equal(textAfter(linked(two("__colour__ c"), [...PAIR, ...TWO]).load), undefined, "a wildcard has other words");
  const made = {
    ...two("c", PAIR.length + TWO.length),
    writer: { type: "Writer", widgets: [{ name: "value", value: "c" }] },
  };
  assert.equal(textAfter(linked(made, [...PAIR, ...TWO, ["writer", "STRING", "other", "text"]]).load), undefined);
  assert.equal(textAfter(linked({ load: {} }, []).load), undefined);
});

test("a negative prompt is none that goes through a node with both", () => {
  const through = [
    ["bad", "CONDITIONING", "control", "negative"],
    ["good", "CONDITIONING", "control", "positive"],
    ["control", "CONDITIONING", "sampler", "positive"],
    ["control", "CONDITIONING", "sampler", "negative"],
  ];
  const nodes = { load: {}, skip: {}, bad: field("b"), good: field("a"), control: {}, sampler: {} };
  assert.equal(textAfter(linked(nodes, [...PAIR.slice(0, 3), ...through]).load), "a");
});

test("without a CLIP the prompt is that of the sampler", () => {
  const nodes = {
    load: {},
    good: { ...field("a"), comfyClass: "CLIPTextEncode" },
    sampler: { comfyClass: "KSampler" },
  };
  const { load } = linked(nodes, [
    ["load", "MODEL", "sampler", "model"],
    ["good", "CONDITIONING", "sampler", "positive"],
  ]);
  nodes.sampler.inputs = [{ name: "positive", link: 1 }];
  assert.equal(textAfter(load), "a");
  assert.equal(promptAfter(load), nodes.good.widgets[0]);
});

test("the prompt is found out of a subgraph and into another one", () => {
  const other = { "-20": { resolve: () => ({ inputNode: field("a"), input: { name: "clip" } }) } };
  const within = { getLink: (id) => other[id], inputs: [{ name: "text" }, { name: "clip", linkIds: [-20] }] };
  const { around } = linked({ around: {}, prompt: { subgraph: within } }, [["around", "CLIP", "prompt", "clip"]]);
  around.outputs[0].name = "out";
  const inside = { getLink: () => ({ resolve: () => ({ subgraphOutput: { name: "out" } }) }) };
  inside.rootGraph = { nodes: [Object.assign(around, { subgraph: inside })] };
  const load = { graph: inside, outputs: [{ type: "CLIP", links: [0] }] };
  assert.equal(promptAfter(load).value, "a");
  inside.rootGraph.nodes.push({ ...around });
  assert.equal(promptAfter(load), undefined, "of two with the same inside, either may be meant");
});

test("links in a circle end", () => {
  const nodes = linked({ load: {}, skip: {} }, [
    ["load", "CLIP", "skip", "clip"],
    ["skip", "CLIP", "load", "clip"],
  ]);
  assert.equal(promptAfter(nodes.load), undefined);
});

test("the prompt is found from what sets a CLIP to what gets it by its name", () => {
  const named = (type) => ({ type, widgets: [{ value: "clip" }] });
  const nodes = { load: {}, set: named("SetNode"), get: named("GetNode"), prompt: field("a") };
  const links = [
    ["load", "CLIP", "set", "CLIP"],
    ["get", "CLIP", "prompt", "clip"],
    ["get", "CLIP", "set", "CLIP"],
  ];
  const { load } = linked(nodes, links);
  load.graph.nodes = Object.values(nodes);
  assert.equal(promptAfter(load).value, "a", "and names that go round end");
});
