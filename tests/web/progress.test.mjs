import assert from "node:assert/strict";
import { test } from "node:test";

import { duration, expected, followed, shareOf, stepsOf, timeLeft } from "../../web/progress.js";

const stage = { name: "Sampling", number: 3, starts: 0.2, share: 0.4, is_alike: true, told_by: 1 };

/** Return what is told at each time, after the server has told estimates at some times. */
function shown(estimates, times, of = stage) {
  let found;
  return times.map((now) => {
    if (now in estimates) found = followed(found, { stage: of, seconds_left: estimates[now] }, now);
    return timeLeft(found, now);
  });
}

test("steps are told where there are several, pictures and not their steps", () => {
  assert.equal(stepsOf({ stage, done: 12, total: 60 }), "Sampling 12/60");
  assert.equal(stepsOf({ stage: { ...stage, name: "Pictures", told_by: 20 }, done: 59, total: 180 }), "Pictures 2/9");
  assert.equal(stepsOf({ stage, done: 0, total: 1 }), "Sampling");
});

test("what is done is a share of all stages", () => {
  assert.ok(Math.abs(shareOf({ stage, done: 15, total: 60 }) - 0.3) < 1e-9);
  assert.equal(shareOf({ stage, done: 0, total: 0 }), 0.2);
});

test("the time counts down between two reports, and nothing is told once it is over", () =>
  assert.deepEqual(shown({ 0: 40 }, [0, 10, 33, 36, 44, 46]), [
    "about 40 s left",
    "about 30 s left",
    "about 7 s left",
    "a few seconds left",
    "a few seconds left",
    "",
  ]));

test("an estimate that is a little longer is waited for, and one that is much longer is told", () => {
  const waits = ["about 30 s left", "about 20 s left", "about 20 s left", "about 20 s left", "about 15 s left"];
  assert.deepEqual(shown({ 0: 30, 10: 25 }, [0, 10, 12, 15, 20]), waits);
  assert.deepEqual(shown({ 0: 30, 10: 60 }, [10, 20]), ["about 60 s left", "about 50 s left"]);
  assert.deepEqual(shown({ 0: 10, 8: 9 }, [0, 7, 8]), ["about 10 s left", "a few seconds left", "about 9 s left"]);
});

test("the time of a stage alone is not compared with that of all", () => {
  const alone = { ...stage, number: 1, is_alike: false };
  const found = followed(undefined, { stage: alone, seconds_left: 30 }, 0);
  assert.equal(timeLeft(found, 0), "about 30 s left of this stage");
  assert.equal(timeLeft(followed(found, { stage, seconds_left: 40 }, 0), 0), "about 40 s left");
  assert.equal(timeLeft(followed(found, { stage, seconds_left: 0 }, 0), 0), "");
});

test("a duration is as precise as an estimate is", () =>
  assert.deepEqual([3, 42, 100, 3000, 9000].map(duration), ["3 s", "40 s", "1.5 min", "50 min", "2.5 h"]));

test("the time of a preset is that of its rows, and presets of one time are together", () => {
  const presets = { Fast: { rows: 10 }, Balanced: { rows: 20 }, Other: { rows: 20 } };
  assert.deepEqual(expected({ rows: 20, seconds: 60, presets }), [
    { names: ["Fast"], seconds: 30 },
    { names: ["Balanced", "Other"], seconds: 60 },
  ]);
});
