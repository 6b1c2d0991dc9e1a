import assert from "node:assert/strict";
import test from "node:test";
import { toldApart, translated } from "../../web/names.js";

test("names that begin alike are cut there, up to the word that differs", () => {
  const names = ["robot_illustrious_v1_epoch10_final", "robot_illustrious_v1_epoch12_final", "stacked"];
  assert.deepEqual(toldApart(names, 9), ["…epoch10_final", "…epoch12_final", "stacked"]);
  assert.deepEqual(toldApart(names, 24), ["robot_illu…epoch10_final", "robot_illu…epoch12_final", "stacked"]);
});

test("a name that is like no other one keeps its beginning, and a short one is whole", () => {
  assert.deepEqual(toldApart(["blueprint drawings v2", "robot v2", "robot v3"], 9), [
    "blueprint drawings v2",
    "robot v2",
    "robot v3",
  ]);
  assert.deepEqual(toldApart(["owl_snow 1.55/1.6", "merged"], 18), ["owl_snow 1.55/1.6", "merged"]);
  assert.deepEqual(toldApart(["a style of mine", "a style of mine"], 9), ["a style of mine", "a style of mine"]);
});

test("pictures that are not of one LoRA are called so in the page's language, and LoRAs of the same name are not", () => {
  const words = { base_model: "Basis", stacked: "gestapelt", merged: "vereint" };
  const say = (word) => words[word];
  assert.deepEqual(translated(["base model", "merged", "stacked", "merged"], say), [
    "Basis",
    "merged",
    "gestapelt",
    "vereint",
  ]);
  assert.deepEqual(translated(["stacked", "constructor", "merged"], say), ["stacked", "constructor", "vereint"]);
});
