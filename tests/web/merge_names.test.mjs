import assert from "node:assert/strict";
import test from "node:test";
import { drawnBefore, namesOfMerges, ofMerge, readMade } from "../../web/merge_names.js";
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

test("merges are told apart by what is not the same in all of them, else by their times", () => {
  const merge = (settings, preset = "Balanced", strengths = [1, 1], at = today) => ({
    ...made(preset, strengths, at),
    settings,
  });
  const named = (merges, ...names) => assert.deepEqual(namesOfMerges(merges, say), names);
  const [size, other] = [{ size: "rank 16" }, { size: "rank 8", together: "on" }];
  assert.equal(ofMerge(merge(size), say), ` (Balanced, size rank 16, ${clock(today)})`);
  named([merge(size), merge({})], "size rank 16", "size as is");
  named([merge(other), merge(size)], "size rank 8, together on", "size rank 16, together off");
  named([merge({ together: "on" }), merge({})], "together on", "together off");
  named(
    [merge(size, "Fast"), merge(size, "Balanced", [0.7, 0.85])],
    "Fast, strengths 1",
    "Balanced, strengths 0.7/0.85",
  );
  named([merge({}, "Preview"), merge(size)], "Preview", "Balanced, size rank 16");
  named([merge({ seed: "7" }), merge({})], "seed 7", "seed as usual");
  named(
    [merge({}), merge({}, "Fast"), merge(size, "Fast")],
    ...["Balanced, size as is", "Fast, size as is", "Fast, size rank 16"],
  );
  const times = [today, today + 60_000];
  named(
    times.map((at) => merge(size, "Fast", [1], at)),
    ...times.map((at) => clock(at)),
  );
  named([merge({}, ""), merge({})], clock(today), `Balanced, ${clock(today)}`);
  named([merge({}), { preset: 7 }], "merged", "merged");
  const many = Object.fromEntries([..."abcd"].map((name) => [name, "x".repeat(99)]));
  const told = [..."abc"].map((name) => `${name} ${"x".repeat(24)}…`).join(", ");
  assert.equal(ofMerge(merge(many), say), ` (Balanced, ${told}, …, ${clock(today)})`);
  assert.equal(namesOfMerges([merge(many), merge({})], say)[0], `${told}, …`);
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
  const output = (at, drawn = "seed 7", prompts = ["a dog"]) => ({
    iteris_made: [{ ...made("Fast", [1], at), drawn }],
    iteris_tiles: prompts.map((prompt) => ({ prompt, pictures: ["stacked", `${prompt}, merged at ${at}`] })),
  });
  const first = output(1000);
  const before = { made: first.iteris_made[0], pictures: ["a dog, merged at 1000"] };
  const report = { iteris_pictures: ["a report"] };
  const others = drawnBefore([report, first, output(500), first], output(2000));
  assert.deepEqual(others, [before, { made: output(500).iteris_made[0], pictures: ["a dog, merged at 500"] }]);
  assert.deepEqual(drawnBefore([output(2000), first], output(2000)), [before], "not itself, which is kept, too");
  assert.deepEqual(drawnBefore([first], output(2000, "seed 8")), []);
  assert.deepEqual(drawnBefore([], first), []);
  const prompted = (at, ...prompts) => output(at, "seed 7", prompts);
  const [{ pictures }] = drawnBefore([prompted(1000, "a cat"), first], prompted(2000, "a cat", "an owl", "a dog"));
  assert.deepEqual(pictures, ["a cat, merged at 1000", undefined, "a dog, merged at 1000"], "by each prompt alone");
  assert.deepEqual(drawnBefore([prompted(1000, "a cat")], output(2000)), []);
  const unknown = { iteris_tiles: [{ pictures: ["merged"] }] };
  assert.deepEqual(drawnBefore([first, unknown], unknown), []);
});
