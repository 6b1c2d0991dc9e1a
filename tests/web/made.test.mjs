import assert from "node:assert/strict";
import test from "node:test";
import { drawnBefore, ofMerge, readMade } from "../../web/made.js";
import { sayer } from "../../web/words.js";

const say = sayer("en");
const made = (preset, strengths, at) => ({ preset, strengths, at: at / 1000 });
const today = new Date().setHours(14, 32);
const clock = (time, more = {}) => new Date(time).toLocaleString([], { timeStyle: "short", ...more });

test("a merge is told by its preset, strengths that are not 1, and its time", () => {
  assert.equal(ofMerge(made("Balanced", [1, 1], today), say), ` (Balanced, ${clock(today)})`);
  assert.equal(ofMerge(made("Balanced", [0.8, 0.8], today), say), ` (Balanced, at 0.8, ${clock(today)})`);
  assert.equal(ofMerge(made("", [0.8, 1], today), say), ` (at 0.8/1, ${clock(today)})`, "by a recipe");
  const long = new Date(2020, 1, 3, 4, 5).getTime();
  assert.equal(ofMerge(made("Fast", [], long), say), ` (Fast, ${clock(long, { dateStyle: "short" })})`);
});

test("beside another merge, what differs is told: settings, too", () => {
  const [size, other] = [{ size: "rank 16" }, { size: "rank 8", together: "on" }];
  const merge = (settings, preset = "Balanced", strengths = [1, 1]) => ({
    ...made(preset, strengths, today),
    settings,
  });
  assert.equal(ofMerge(merge(size), say), ` (Balanced, size rank 16, ${clock(today)})`);
  assert.equal(ofMerge(merge(size), say, merge({})), ` (size rank 16, ${clock(today)})`);
  assert.equal(ofMerge(merge({}), say, merge(size)), ` (size as is, ${clock(today)})`);
  assert.equal(ofMerge(merge(other), say, merge(size)), ` (size rank 8, together on, ${clock(today)})`);
  assert.equal(ofMerge(merge(size), say, merge({ ...size, together: "on" })), ` (together off, ${clock(today)})`);
  assert.equal(ofMerge(merge(size), say, merge(size, "Fast", [1, 0.5])), ` (Balanced, at 1, ${clock(today)})`);
  assert.equal(ofMerge(merge(size), say, merge({}), "ink_02"), ` (size rank 16, ${clock(today)}, ink_02)`);
  const more = merge({ ...other, resolution: "512", seed: "7" });
  assert.equal(ofMerge(merge({}), say, more), ` (size as is, together off, resolution auto, …, ${clock(today)})`);
  assert.equal(ofMerge(merge({}), say, merge({ seed: "7" })), ` (seed as usual, ${clock(today)})`);
  for (const preset of ["Preview", ""]) {
    const told = [preset, "precision bfloat16", clock(today)].filter(Boolean).join(", ");
    const idle = "all that counts is what is told";
    assert.equal(ofMerge(merge({ precision: "bfloat16" }, preset), say, more), ` (${told})`, idle);
  }
  const many = Object.fromEntries([..."abcd"].map((name) => [name, "x".repeat(99)]));
  const told = [..."abc"].map((name) => `${name} ${"x".repeat(24)}…`).join(", ");
  assert.equal(ofMerge(merge(many), say, merge({})), ` (${told}, …, ${clock(today)})`);
});

test("nothing is told of a merge that nobody knows", () => {
  const odd = [
    { preset: 7 },
    { at: "now" },
    { strengths: "1" },
    { strengths: [null] },
    { preset: "p".repeat(99) },
    { settings: null },
    { settings: { a: 1 } },
  ];
  const wrong = odd.map((each) => ({ ...made("Fast", [1], today), ...each }));
  for (const each of [undefined, null, 7, {}, ...wrong]) {
    assert.equal(readMade(each), undefined);
    assert.equal(ofMerge(each, say), "");
  }
});

test("what another merge has drawn is offered where all else was the same", () => {
  const output = (at, drawn = "a dog, seed 7") => ({
    iteris_made: [{ ...made("Fast", [1], at), drawn }],
    iteris_tiles: [{ pictures: ["stacked", `merged at ${at}`] }],
  });
  const first = output(1000);
  const before = { made: first.iteris_made[0], pictures: ["merged at 1000"] };
  const report = { iteris_pictures: ["a report"] };
  const others = drawnBefore([report, first, output(500), first], output(2000));
  assert.deepEqual(others, [before, { made: output(500).iteris_made[0], pictures: ["merged at 500"] }]);
  assert.deepEqual(drawnBefore([output(2000), first], output(2000)), [before], "not itself, which is kept, too");
  assert.deepEqual(drawnBefore([first], output(2000, "a dog, seed 8")), []);
  assert.deepEqual(drawnBefore([], first), []);
  const unknown = { iteris_tiles: [{ pictures: ["merged"] }] };
  assert.deepEqual(drawnBefore([first, unknown], unknown), []);
});
