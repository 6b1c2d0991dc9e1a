import "./comfy.mjs";

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

const { api, app } = globalThis.comfy;
globalThis.sessionStorage = { getItem: () => null };
globalThis.document = {};
globalThis.addEventListener = () => {};
let asked; // addresses
let answers; // by the address
Object.assign(api, {
  fetchApi: async (address) => {
    asked.push(address);
    return { json: async () => answers[address] ?? {} };
  },
  queuePrompt: async (run) => ({ prompt_id: run }),
});
const { begin, nameAsRun, rememberRuns, takersOf, waitingRun } = await import("../../web/runs.js");
const { madeBefore, recalled } = await import("../../web/results.js");
const { nameAsShown } = await import("../../web/current_prompt.js");
const HISTORY = "/history?max_items=8";
const PROMPT = { 1: { class_type: "IterISMerge", inputs: { rows: "x" } } };

const isOurs = ({ comfyClass }) => comfyClass.startsWith("IterIS");

/** Show a workflow of nodes, which is sent as `PROMPT`. */
function show(...nodes) {
  app.graph = { nodes, getNodeById: (id) => nodes.find((node) => String(node.id) === String(id)) };
  app.built = 0;
  app.graphToPrompt = async () => {
    app.built++;
    return { output: PROMPT };
  };
}

const merge = { id: 1, comfyClass: "IterISMerge", properties: {} };

beforeEach(() => {
  asked = [];
  answers = { [HISTORY]: { r: { prompt: [0, "r", PROMPT], outputs: { 1: { text: ["done"] } } } } };
  document.activeElement = undefined;
});

test("a workflow without nodes of ours asks nothing of the server or of other packs", async () => {
  show({ id: 1, comfyClass: "Other", properties: {} });
  assert.deepEqual(await recalled(isOurs), []);
  assert.deepEqual(await madeBefore(isOurs), []);
  assert.deepEqual([asked, app.built], [[], 0]);
});

test("a node gets what a run has made in which it was the same", async () => {
  show(merge);
  assert.deepEqual(await recalled(isOurs), [["1", { text: ["done"], iteris_run: "r" }]]);
});

test("where nodes of other packs refuse, nothing is known of what is shown", async () => {
  show(merge);
  app.graphToPrompt = async () => assert.fail("no microphone");
  assert.deepEqual(await recalled(isOurs), []);
  assert.equal(await nameAsShown(merge), undefined);
});

/** Return a seed as other packs have it: -1 is another one each time. */
function seedWidget() {
  const widget = { value: -1 };
  widget.serializeValue = () => {
    if (widget.value === -1) widget.value = 7;
    return widget.value;
  };
  return widget;
}

test("a widget that takes what it sends for its own gets back what it had, also from several at a time", async () => {
  const widgets = [seedWidget(), { value: 3 }, { value: "a", serializeValue: () => "b" }];
  show(merge, { id: 2, comfyClass: "Seed", subgraph: { nodes: [{ id: 3, comfyClass: "Inner", widgets }] } });
  const build = app.graphToPrompt;
  app.graphToPrompt = async () => {
    widgets[0].serializeValue();
    widgets[1].value++; // not of those that work out what they send
    await new Promise((go) => setTimeout(go));
    return build();
  };
  await Promise.all([nameAsShown(merge), nameAsShown(merge)]);
  assert.deepEqual(
    widgets.map(({ value }) => value),
    [-1, 5, "a"],
  );
});

test("it gets it back if another one refuses, and what the user writes meanwhile stays", async () => {
  const [seed, text] = [seedWidget(), { value: "a", serializeValue: () => "a" }];
  show(merge, { id: 2, comfyClass: "Seed", widgets: [seed, text] });
  app.graphToPrompt = async () => {
    seed.serializeValue();
    text.value = "ab";
    document.activeElement = text;
    assert.fail();
  };
  await nameAsShown(merge);
  assert.deepEqual([seed.value, text.value], [-1, "ab"]);
});

test("one that never answers, or late, keeps no other from its answer, and puts nothing back", async (context) => {
  const [seed, late] = [seedWidget(), { value: "a", serializeValue: () => "a" }];
  show(merge, { id: 2, comfyClass: "Seed", widgets: [seed, late] });
  context.mock.timers.enable({ apis: ["Date"], now: 1e6 });
  const build = app.graphToPrompt;
  let answer;
  app.graphToPrompt = () => new Promise((resolve) => (answer = resolve));
  const first = nameAsShown(merge);
  await new Promise((go) => setImmediate(go));
  context.mock.timers.tick(5000);
  late.value = "written since";
  app.graphToPrompt = async () => {
    seed.serializeValue();
    return build();
  };
  assert.ok(await nameAsShown(merge));
  answer(await build());
  await first;
  app.graphToPrompt = build;
  assert.deepEqual([seed.value, late.value], [-1, "written since"]);
});

test("of many runs, the newest are remembered; the server is asked about the others", async () => {
  show(merge, { id: 2, comfyClass: "IterISSave", properties: {} });
  const prompt = { ...PROMPT, 2: { class_type: "IterISSave", inputs: { merged: ["1", 0] } } };
  rememberRuns(() => {});
  for (let run = 0; run <= 100; run++) await api.queuePrompt(`run ${run}`, { output: prompt });
  const isAsked = async (run) => {
    asked = [];
    begin(run);
    await takersOf("1", "IterISSave");
    return asked.length > 0;
  };
  assert.deepEqual([await isAsked("run 100"), await isAsked("run 1"), await isAsked("run 0")], [false, false, true]);
});

test("the number of a size is sent where it counts", async () => {
  rememberRuns(() => {});
  const sizes = ["as is", "smaller", "rank", "MB", ["9", 0]];
  for (const kind of ["IterISMerge", "IterISMergeVideo"]) {
    const merges = sizes.map((size) => ({ class_type: kind, inputs: { size, size_value: 8 } }));
    await api.queuePrompt("r", { output: { ...merges, 9: { class_type: "Other" } } });
    const sent = merges.map(({ inputs }) => inputs.size_value);
    assert.deepEqual(sent, [undefined, undefined, 8, 8, 8]);
  }
});

test("a result is of the workflow that is shown, though a pack makes links only while it is queued", async (t) => {
  const model = { class_type: "Loader", inputs: {} };
  const sent = { 1: { class_type: "IterISMerge", inputs: { model: ["2", 0] } }, 2: model };
  const open = { ...merge, inputs: [{ name: "model" }] };
  const build = app.graphToPrompt;
  t.after(() => {
    app.graphToPrompt = build;
    delete app.ue_modified_prompt;
  });
  show(open, { id: 2, comfyClass: "Loader", properties: {} });
  app.graph.extra = { ue_links: [{ downstream: 1, downstream_slot: 0, upstream: "2", upstream_slot: 0 }] };
  app.graphToPrompt = async () => ({ output: { ...sent, 1: { class_type: "IterISMerge", inputs: {} } } });
  answers["/history/broadcast"] = { broadcast: { prompt: [0, "broadcast", sent] } };
  const ran = await nameAsRun(open, { iteris_run: "broadcast" });
  assert.ok(ran);
  assert.notEqual(await nameAsShown(open), ran, "the pack is not there");
  app.ue_modified_prompt = () => {};
  assert.equal(await nameAsShown(open), ran);
});

test("a run goes on elsewhere where the server tells this page nothing of it", async () => {
  const goesOn = async (id, asked) => {
    answers["/queue"] = { queue_running: [[0, id, PROMPT, asked, ["1"]]], queue_pending: [] };
    return waitingRun();
  };
  api.clientId = "this";
  begin("of all");
  const other = { now: ["r"], run: "r", prompt: PROMPT, before: 0, isElsewhere: true };
  assert.deepEqual(await goesOn("r", { client_id: "another" }), other);
  assert.deepEqual(await goesOn("r", {}), other, "a program's");
  assert.deepEqual(await goesOn("r", { client_id: "this" }), { now: ["r"] }, "past the frontend's own way");
  assert.deepEqual(await goesOn("of all", {}), { now: ["of all"] });
  answers["/queue"] = {};
  assert.deepEqual(await waitingRun(), { now: [] });
});
