import assert from "node:assert/strict";
import { test } from "node:test";

import {
  about,
  add,
  filled,
  holds,
  isUnnamed,
  lacksWords,
  lines,
  madeOf,
  needed,
  suggestions,
  takenOut,
  wordsOf,
} from "../../web/triggers.js";

const word = (text) => ({ kind: "word", text });
const prompt = (text) => ({ kind: "prompt", text });

test("lines are what the node reads", () => assert.deepEqual(lines(" a \n\n b c\n"), ["a", "b c"]));

test("a word is found whole, whatever its letters mean to a pattern", () => {
  assert.ok(holds("a photo of SKS dog", word("sks")));
  assert.ok(holds("a (cat:1.2), c++ style", word("c++ style")));
  assert.ok(!holds("a category", word("cat")));
  assert.ok(!holds("a tomcat", word("cat")));
  assert.ok(!holds("a straße", word("stra")));
  assert.ok(!holds("", word("cat")));
});

test("a prompt is found as a line of its own", () => {
  assert.ok(holds("x\n a photo of sks \ny", prompt("a photo of sks")));
  assert.ok(!holds("a photo of sks dog", prompt("a photo of sks")));
});

for (const [name, before, suggestion, after] of [
  ["a word begins an empty field", " \n", word("sks"), "sks"],
  ["a word goes to the line being written", "a photo", word("sks"), "a photo, sks"],
  ["no second comma", "a photo, ", word("sks"), "a photo, sks"],
  ["a word begins a new line", "a photo\n", word("sks"), "a photo\nsks"],
  ["a prompt is a line", "a photo", prompt("b"), "a photo\nb"],
  ["a prompt after a line break", "a photo\n", prompt("b"), "a photo\nb"],
  ["nothing twice", "a photo of sks", word("sks"), "a photo of sks"],
  ["no prompt twice", "b\nc", prompt("b"), "b\nc"],
])
  test(`add: ${name}`, () => assert.equal(add(before, suggestion), after));

test("prompts come first, and nothing twice", () => {
  const prompts = { subject: ["a photo of sks", " ", "sks", "a photo of sks"], style: ["a landscape, sks"] };
  const lora = { prompts, trigger_words: ["sks", " sks ", "dog"] };
  assert.deepEqual(suggestions(lora, "subject"), [prompt("a photo of sks"), word("sks"), word("dog")]);
  assert.deepEqual(suggestions(lora, "style"), [prompt("a landscape, sks"), word("sks"), word("dog")]);
  assert.deepEqual(suggestions({}, "style"), []);
});

test("a merge has its words once, and says what it is made of", () => {
  const lora = { trigger_words: ["a sks robot, a zwx owl", "a sks robot", "a zwx owl", "grass"] };
  assert.deepEqual(wordsOf(lora), ["a sks robot", "a zwx owl", "grass"]);
  assert.deepEqual(wordsOf({}), []);
  assert.equal(madeOf({ merged_from: ["robot", "owl"] }), "merge of robot\n+ owl");
  assert.equal(madeOf({ merged_from: ["of/robot"], is_preview: true }), "preview of robot");
  assert.equal(madeOf({ merged_from: ["robot", "owl"] }, true), "of 2 LoRAs");
  assert.equal(madeOf({ merged_from: [] }), "");
});

test("empty prompts are said to be filled in, and with what", () => {
  const lora = { trigger_words: ["sks"] };
  assert.equal(filled("a photo", lora), "");
  assert.equal(filled("", lora), "No prompts given: a run makes them from these words.");
  assert.equal(filled("", {}), "The file names no trigger words: write prompts.");
  assert.equal(filled("", { error: "no such file" }), "");
  assert.equal(filled("", null), "");
});

test("what only the user can write is asked for where the file names no trigger words", () => {
  const [row, none] = [{ prompts: [], called: "" }, { trigger_words: [] }];
  const [prompts, words] = [
    { word: "needs", part: "prompts" },
    { word: "needs_words", part: "prompts" },
  ];
  const name = { word: "needs_words", part: "more" };
  const named = { prompts: ["a photo"], called: "a {trigger}" };
  assert.deepEqual(needed(row, none), prompts);
  assert.equal(needed({ ...row, prompts: ["a photo"] }, none), undefined);
  assert.deepEqual(needed({ ...named, prompts: ["a photo of {trigger}"] }, none), words);
  assert.deepEqual(needed({ ...named, prompts: [] }, none), prompts);
  assert.deepEqual(needed(named, none), name);
  for (const lora of [{ trigger_words: ["sks"] }, { ...none, error: "no such file" }, null]) {
    assert.equal(needed(row, lora), undefined);
    assert.equal(needed(named, lora), undefined);
    assert.equal(isUnnamed(named, lora), false);
  }
  assert.equal(isUnnamed({ ...named, prompts: [] }, none), true);
  for (const each of [row, named]) assert.equal(needed(each, none, true), undefined, "a preview");
  assert.deepEqual(needed({ ...row, prompts: ["a {trigger}"] }, none, true), words);
});

test("the line about a file", () => {
  assert.equal(about({ error: "no such file", base: "SD1.5" }), "no such file");
  assert.equal(about({ family: "SD1.5", base: "SD1.5 (sd_v1)", rank: 16 }), "SD1.5, rank 16");
  assert.equal(about({ family: "", base: "sd_v9", rank: 16 }), "sd_v9, rank 16");
  assert.equal(about({ base: null, rank: null }), "");
});

test("what was added is taken out again, and what the user has written is not", () => {
  for (const before of ["", "a photo", "a photo,", "one\ntwo"])
    for (const offered of [word("sks dog"), prompt("sks dog")])
      assert.equal(takenOut(add(before, offered), offered).replace(/,$/, ""), before.replace(/,$/, ""));
  assert.equal(takenOut("a, SKS dog, b\nsks dog\nc", word("sks dog")), "a, b\nc");
  for (const written of ["a photo of sks dog", "sks dog in a park, at night"])
    for (const offered of [word("sks dog"), prompt("sks dog")]) assert.equal(takenOut(written, offered), written);
});

test("prompts with none of their file's words are told", () => {
  const lacks = (prompts, words) => lacksWords({ prompts }, words && { trigger_words: words });
  assert.equal(lacks(["a photo of a zwx owl"], ["sks", "robot"]), true);
  assert.equal(lacks(["a photo of a zwx owl", "a robot"], ["sks", "robot"]), false);
  assert.equal(lacks(["a photo of a zwx owl"], ["a sks robot", "a photo of sks"]), true);
  assert.equal(lacks(["a photo of the sks toy"], ["a sks robot"]), false, "a part is enough");
  assert.equal(lacks(["a photo of ink"], ["水墨"]), true);
  assert.equal(lacks(["a photo of {trigger}"], ["sks"]), false);
  assert.equal(lacks([], ["sks"]), false);
  assert.equal(lacks(["a photo"], []), false);
  assert.equal(lacks(["a photo"]), false);
});
