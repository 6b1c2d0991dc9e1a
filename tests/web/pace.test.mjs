import assert from "node:assert/strict";
import { test } from "node:test";

import { oneAtATime } from "../../web/pace.js";

const PAUSE = 20; // milliseconds
const rest = (pauses) => new Promise((go) => setTimeout(go, pauses * PAUSE));

test("the first call is answered at once, and those after it by one more", async () => {
  let begun = 0;
  const call = oneAtATime(async () => void begun++, PAUSE);
  for (let i = 0; i < 5; i++) call();
  assert.equal(begun, 1);
  await rest(10);
  assert.equal(begun, 2);
  call();
  assert.equal(begun, 3);
});

test("a call waits for the one before it, however long that takes, and also where it fails", async () => {
  const ends = [];
  const call = oneAtATime(() => new Promise((...both) => ends.push(both)), PAUSE);
  call();
  call();
  await rest(5);
  assert.equal(ends.length, 1);
  ends[0][1](new Error("no server"));
  await rest(2);
  assert.equal(ends.length, 2);
});
