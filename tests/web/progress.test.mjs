import assert from "node:assert/strict";
import { test } from "node:test";

import { followed, hasSampled, shareOf, stepsOf, timeLeft } from "../../web/progress.js";
import { sayer } from "../../web/words.js";

const say = sayer("en");
const stage = { name: "Sampling", number: 3, starts: 0.2, share: 0.4, is_alike: true, told_by: 1 };

/** Return what is told at each time, after the server has told estimates at some times. */
function shown(estimates, times, of = stage) {
  let found;
  return times.map((now) => {
    if (now in estimates) found = followed(found, { stage: of, seconds_left: estimates[now] }, now);
    return timeLeft(found, now, say);
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
  assert.equal(timeLeft(found, 0, say), "about 30 s left of this stage");
  assert.equal(timeLeft(followed(found, { stage, seconds_left: 40 }, 0), 0, say), "about 40 s left");
  assert.equal(timeLeft(followed(found, { stage, seconds_left: 0 }, 0), 0, say), "");
});

test("a merge has its sampling runs from the last step of that stage on", () => {
  const isSo = (name, done) => hasSampled({ stage: { ...stage, name }, done, total: 4 });
  assert.deepEqual([isSo("Text encoder", 4), isSo("Sampling", 3), isSo("Sampling", 4)], [false, false, true]);
  assert.deepEqual([isSo("Diffusion model", 1), isSo("Polish", 1)], [true, true]);
});
