import "./comfy.mjs";

import assert from "node:assert/strict";
import { test } from "node:test";

const { askAgain } = await import("../../web/parts.js");
const PAUSE = 5; // milliseconds
const rest = () => new Promise((go) => setTimeout(go, 4 * PAUSE));

/** Return an image, what was asked for, and how often it was given up. */
function imageOf() {
  const image = new EventTarget();
  const told = { asked: [], missed: 0 };
  let address;
  Object.defineProperty(image, "src", {
    get: () => address,
    set: (next) => {
      address = next;
      told.asked.push(next);
    },
  });
  askAgain(image, PAUSE, () => told.missed++);
  return { image, told, happen: (type) => image.dispatchEvent(new Event(type)) };
}

test("a picture that does not come is asked for once more, however often it is shown before", async () => {
  const { image, told, happen } = imageOf();
  for (let i = 0; i < 2; i++) {
    image.src = "a";
    happen("error");
  }
  await rest();
  assert.deepEqual(told, { asked: ["a", "a", "a"], missed: 0 });
  happen("error");
  assert.equal(told.missed, 1);
});

test("one that came the second time is asked for once more the next time, too", async () => {
  const { image, told, happen } = imageOf();
  image.src = "a";
  for (let i = 0; i < 2; i++) {
    happen("error");
    await rest();
    happen("load");
  }
  assert.deepEqual(told, { asked: ["a", "a", "a"], missed: 0 });
});

test("one in whose place is another one by now is not", async () => {
  const { image, told, happen } = imageOf();
  image.src = "a";
  happen("error");
  image.src = "b";
  await rest();
  assert.deepEqual(told, { asked: ["a", "b"], missed: 0 });
});
