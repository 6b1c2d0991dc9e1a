import "./comfy.mjs";

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

let asked;
let answer; // null: the request fails
globalThis.comfy.api.fetchApi = async (route) => {
  asked.push(route);
  return { ok: answer !== null, json: async () => answer };
};
const { aboutLora, forget, lastAboutLora, loraNames } = await import("../../web/loras.js");

beforeEach(() => {
  forget();
  asked = [];
});

test("an answer is asked for once, and again after a failure", async () => {
  answer = null;
  assert.deepEqual(await Promise.all([aboutLora("a"), aboutLora("a")]), [null, null]);
  assert.equal(asked.length, 1);
  answer = { family: "SDXL" };
  assert.deepEqual([await aboutLora("a"), await aboutLora("a"), lastAboutLora("a")], [answer, answer, answer]);
  assert.equal(asked.length, 2);
});

test("the list of LoRAs, in order, is asked for again after a failure", async () => {
  answer = null;
  assert.equal(await loraNames(), null);
  answer = ["b10", "b9"];
  for (let i = 0; i < 2; i++) assert.deepEqual(await loraNames(), ["b9", "b10"]);
  assert.equal(asked.length, 2);
});
