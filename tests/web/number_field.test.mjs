import "./comfy.mjs";

import assert from "node:assert/strict";
import { test } from "node:test";

const { wheelSteps } = await import("../../web/number_field.js");

/** Return the steps of several turns of a wheel, each in `deltaY`. */
function steps(turns, deltaMode = 0) {
  const turned = wheelSteps();
  return turns.map((deltaY) => turned({ deltaY, deltaMode }) + 0);
}

for (const [name, turns, mode, wanted] of [
  ["a notch is a step", [-100, -120, 100, 120, 120, 120, 120, 120], 0, [1, 1, -1, -1, -1, -1, -1, -1]],
  ["a notch of Firefox, in lines", [-3, 3], 1, [1, -1]],
  ["a page", [-1], 2, [8]],
  ["a trackpad's small parts", Array(60).fill(5), 0, Array.from({ length: 60 }, (_, i) => ((i + 1) % 20 ? 0 : -1))],
  ["a notch on a page at 125 and at 200 %", [80, -80, 50], 0, [-1, 1, -1]],
  ["back and forth", [40, -40, 40, -40], 0, [0, 0, 0, 0]],
  ["to the side", [0, 0], 0, [0, 0]],
])
  test(`steps of a wheel: ${name}`, () => assert.deepEqual(steps(turns, mode), wanted));
