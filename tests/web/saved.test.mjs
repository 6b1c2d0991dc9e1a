import assert from "node:assert/strict";
import { test } from "node:test";

import { bars, figures, layersOf, scaleTop } from "../../web/report.js";
import { readSaved } from "../../web/saved.js";

const entry = (task, residual, wears = true) => ({ task, residual, wears });
const layer = (path, ...tasks) => ({ path, rank: 8, tasks });
const REPORT = figures({
  layers: [
    layer("diffusion_model.input_blocks.1.1.proj_in", entry("cat", 0.25), entry("base", 0.5, false)),
    layer("diffusion_model.middle_block.1.proj_in", entry("cat", 0.1)),
  ],
  fidelity: [{ task: "cat", output_error: 0.1, strength: null }],
  unmatched: { cat: ["key"] },
  notes: [{ kind: "host", text: "a note" }],
});
const JUNK = [null, undefined, true, 0, -1, NaN, 1e308, "", "text", [], [[]], {}, { length: 9 }, [null], [{}], "x".repeat(1e6)];

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
  for (const { median, worst, at, task } of report.overall) [median.toFixed(2), worst.toFixed(2), at.trim(), report.tasks[task].trim()];
  for (const { error, name } of report.unseen) [error.toFixed(2), name.trim()];
  for (const text of [...report.warnings, ...report.notes]) text.trim();
}

test("a report is read as it was kept", () => {
  assert.deepEqual(readSaved(JSON.parse(JSON.stringify(REPORT))), REPORT);
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
  const blocks = Array.from({ length: 200_000 }, (_, number) => ({ name: `IN${number}`, layers: [["q", 8, [0.5, null], "10"]] }));
  const read = readSaved({ ...REPORT, blocks });
  assert.equal(read.cut, true);
  assert.equal(read.blocks.length, 400);
  use(read);
  assert.equal(readSaved(read).cut, true, "the rest does not come back");
  const one = [{ name: "IN01", layers: Array.from({ length: 100_000 }, () => ["q", 8, [0.5, null], "10"]) }];
  assert.equal(readSaved({ ...REPORT, blocks: one }).blocks[0].layers.length, 5000);
  const notes = Array.from({ length: 100_000 }, () => "x".repeat(10_000));
  const texts = readSaved({ ...REPORT, notes });
  assert.ok(texts.cut && texts.notes.length === 200 && texts.notes[0].length < 2100);
});
