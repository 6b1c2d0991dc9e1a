import assert from "node:assert/strict";
import { test } from "node:test";

import { bars, figures, layersOf, scaleTop } from "../../web/report.js";
import { languages } from "../../web/words.js";
import { readFile, readSaved } from "../../web/saved_report.js";

const entry = (task, residual, wears = true) => ({ task, residual, wears });
const layer = (path, ...tasks) => ({ path, rank: 8, tasks });
const REPORT = figures({
  layers: [
    layer("diffusion_model.input_blocks.1.1.proj_in", entry("cat", 0.25), entry("base", 0.5, false)),
    layer("diffusion_model.middle_block.1.proj_in", entry("cat", 0.1)),
  ],
  fidelity: [{ task: "cat", output_error: 0.1, strength: null }],
  unmatched: { cat: ["key"] },
  made: { preset: "Balanced", strengths: [1, 0.8], settings: { size: "rank 16" }, at: 1e9 },
  settings: { calibration: { resolution: 768 } },
  is_measured: true,
  notes: [
    { kind: "host", text: "a note" },
    { kind: "prompts", text: "taken out" },
  ],
  verdict: {
    loras: [
      {
        lora: "cat",
        kept: 0.9,
        between: [0.7, 1],
        level: "good",
        levels: ["good", "weak"],
        advice: null,
        unread: 0,
        is_told: true,
      },
      {
        lora: "ink",
        kept: 0.1,
        between: null,
        level: "lost",
        levels: ["lost"],
        advice: { kind: "method", names: ["ties"] },
        unread: 0,
        is_told: true,
      },
    ],
    together: "unlikely",
    together_advice: null,
    unjudged: { subjects: ["cat"], styles: ["ink"] },
    against: { leak: 0.1, leak_stacked: 1, base: null },
    advice: null,
    good_from: 0.75,
    lost_below: 0.3,
  },
});
const FILE = { name: "a.safetensors", mb: 3.5, ranks: [4, 16], words: ["sks dog"], prompt: "a sks dog and a cat" };
const JUNK = [
  null,
  undefined,
  true,
  0,
  -1,
  NaN,
  1e308,
  "",
  "text",
  [],
  [[]],
  {},
  { length: 9 },
  [null],
  [{}],
  "x".repeat(1e6),
];

/** Yield every place in a value. */
function* places(value, path = []) {
  yield path;
  if (typeof value !== "object" || value === null) return;
  for (const key of Object.keys(value)) yield* places(value[key], [...path, key]);
}

function changed(value, [key, ...rest], junk) {
  if (key === undefined) return junk;
  const copy = Array.isArray(value) ? [...value] : { ...value };
  copy[key] = changed(value[key], rest, junk);
  return copy;
}

/** Do with a report what the panel does. */
function use(report) {
  const top = scaleTop(bars(report));
  assert.ok(top > 0);
  for (const { name } of report.blocks) layersOf(report, name);
  for (const { median, worst, at, task } of report.overall)
    [median?.toFixed(2), worst?.toFixed(2), at.trim(), report.tasks[task].trim()];
  for (const { error, name } of report.unseen) [error?.toFixed(2), name.trim()];
  if (report.verdict) {
    const { loras, together, unjudged, against, advice, bounds } = report.verdict;
    for (const names of Object.values(unjudged ?? {})) for (const name of names) name.trim();
    if (together !== null) languages.en[together].trim();
    for (const { name, kept, between, level, levels } of loras) {
      [name.trim(), kept.toFixed(2), between?.map((share) => share.toFixed(2)).join()];
      for (const each of [level, ...levels]) languages.en[each].trim();
    }
    const advices = [advice, ...loras.map((lora) => lora.advice)].filter(Boolean);
    for (const { kind, names } of advices) [languages.en[`to_${kind}`].trim(), names[0]?.trim()];
    for (const value of [...Object.values(against), ...bounds]) value?.toFixed(2);
  }
  if (report.file)
    [report.file.name.trim(), report.file.mb.toFixed(1), report.file.ranks[1].toFixed(0), report.file.words.join(", ")];
  for (const text of [...report.warnings, ...report.prompts, ...report.notes]) text.trim();
}

test("a report is read as it was kept", () => {
  assert.deepEqual(readSaved(JSON.parse(JSON.stringify(REPORT))), REPORT);
  assert.deepEqual([REPORT.side, REPORT.made.preset, REPORT.prompts], [768, "Balanced", ["taken out"]]);
});

test("a report of a merge that still runs has no verdict, and is read", () => {
  const live = { ...REPORT, verdict: null };
  assert.deepEqual(readSaved(live), live);
});

test("what is said of a file is kept, or not drawn", () => {
  assert.deepEqual(readSaved({ ...REPORT, file: FILE }), { ...REPORT, file: FILE });
  assert.deepEqual(readSaved({ ...REPORT, file: 3 }), REPORT);
  assert.deepEqual(readFile({ ...FILE, merge: "5" }), FILE);
  for (const path of places(FILE)) {
    for (const junk of JUNK) {
      const file = readFile(changed(FILE, path, junk));
      if (file) use({ ...REPORT, file });
    }
  }
});

test("a report of any other shape is none, or can be drawn", () => {
  let refused = 0;
  for (const path of places(REPORT)) {
    for (const junk of JUNK) {
      const read = readSaved(changed(REPORT, path, junk));
      if (read) use(read);
      else refused += 1;
    }
  }
  assert.ok(refused > 300, `${refused} were refused`);
});

test("a report of more than can be drawn is cut, and says so", () => {
  const blocks = Array.from({ length: 200_000 }, (_, number) => ({
    name: `IN${number}`,
    layers: [["q", 8, [0.5, null], "10"]],
  }));
  const read = readSaved({ ...REPORT, blocks });
  assert.equal(read.cut, true);
  assert.equal(read.blocks.length, 400);
  use(read);
  assert.equal(readSaved(read).cut, true, "the rest does not come back");
  const one = [{ name: "IN01", layers: Array.from({ length: 100_000 }, () => ["q", 8, [0.5, null], "10"]) }];
  assert.equal(readSaved({ ...REPORT, blocks: one }).blocks[0].layers.length, 5000);
  const notes = Array.from({ length: 100_000 }, () => "x".repeat(10_000));
  const texts = readSaved({ ...REPORT, notes });
  const loras = Array.from({ length: 1000 }, () => REPORT.verdict.loras[0]);
  const many = readSaved({ ...REPORT, verdict: { ...REPORT.verdict, loras } });
  assert.ok(many.cut && many.verdict.loras.length === 500);
  assert.ok(texts.cut && texts.notes.length === 200 && texts.notes[0].length < 2100);
});
