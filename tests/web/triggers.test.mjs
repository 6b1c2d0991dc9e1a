import assert from "node:assert/strict";
import { test } from "node:test";

import {
  absentFrom,
  about,
  add,
  filled,
  holds,
  isUnnamed,
  lacksWords,
  namedIn,
  lines,
  madeOf,
  needed,
  suggestions,
  takenOut,
  unnamedIn,
  wordsOf,
} from "../../web/triggers.js";
import { languages, sayer } from "../../web/words.js";

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

test("two things of several LoRAs are put as merges measure them, and taken out again", () => {
  const [robot, owl, ink] = ["a sks robot", "a zwx owl", "in ink style"].map(word);
  const both = add("a photo of a sks robot", owl, true);
  assert.equal(both, "a photo of a sks robot and a zwx owl");
  assert.equal(takenOut(both, owl), "a photo of a sks robot");
  assert.equal(add("a lake\na sks robot, in ink style", owl, true), "a lake\na sks robot, in ink style, a zwx owl");
  assert.equal(add(both, ink, true), `${both}, in ink style`);
  assert.equal(takenOut("a sks robot and a zwx owl, in ink style", robot), "a zwx owl, in ink style");
  assert.equal(takenOut("sand and sea", word("sea")), "sand and sea", "which the user has written");
  assert.equal(add("a sks robot", word("a robot")), "a sks robot, a robot", "of one LoRA");
});

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
  const say = sayer("en");
  assert.equal(madeOf({ merged_from: ["robot", "owl"] }, say), "merge of robot\n+ owl");
  assert.equal(madeOf({ merged_from: ["of/robot"], is_preview: true }, say), "preview of robot");
  assert.equal(madeOf({ merged_from: ["robot", "owl"] }, say, true), "of 2 LoRAs");
  assert.equal(madeOf({ merged_from: [] }, say), "");
});

test("empty prompts are said to be filled in, and with what", () => {
  const [lora, say] = [{ trigger_words: ["sks"] }, sayer("en")];
  assert.equal(filled("a photo", lora, ["sks"], say), "");
  assert.equal(filled(" \n", lora, ["a photo of sks", "sks"], say), "Prompts of the last run: a photo of sks · sks");
  assert.equal(filled("", lora, undefined, say), "No prompts given: a run makes them from these words.");
  assert.equal(filled("", {}, undefined, say), "The file names no trigger words: write prompts.");
  assert.equal(filled("", { error: "no such file" }, undefined, say), "");
  assert.equal(filled("", null, undefined, say), "");
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

test("every language says everything, with the same figures in it", () => {
  const values = (text) => [...text.matchAll(/\{\w+\}/g)].map(([value]) => value).sort();
  for (const [language, words] of Object.entries(languages)) {
    assert.deepEqual(Object.keys(words), Object.keys(languages.en), language);
    for (const [key, text] of Object.entries(words))
      assert.deepEqual(values(text), values(languages.en[key]), `${language} ${key}`);
  }
  assert.equal(sayer("ja")("suffers", { lora: "cat" }), "cat の損失が最大");
  assert.equal(sayer("de")("suffers", { lora: "cat" }), "cat suffers most");
});

test("what was added is taken out again, and what the user has written is not", () => {
  for (const before of ["", "a photo", "a photo,", "one\ntwo"])
    for (const offered of [word("sks dog"), prompt("sks dog")])
      assert.equal(takenOut(add(before, offered), offered).replace(/,$/, ""), before.replace(/,$/, ""));
  assert.equal(takenOut("a, SKS dog, b\nsks dog\nc", word("sks dog")), "a, b\nc");
  for (const written of ["a photo of sks dog", "sks dog in a park, at night"])
    for (const offered of [word("sks dog"), prompt("sks dog")]) assert.equal(takenOut(written, offered), written);
});

test("a prompt names a LoRA by a part of its words that no other one has", () => {
  const named = (prompt, ...words) =>
    namedIn(
      prompt,
      words.map((each) => ({ trigger_words: each })),
    ).map(({ trigger_words: [first] }) => first);
  assert.deepEqual(named("a SKS robot and a zwx owl", ["sks robot"], ["zwx owl"]), ["sks robot", "zwx owl"]);
  assert.deepEqual(named("a sks man", ["sks man"], ["ohwx man"]), ["sks man"]);
  assert.deepEqual(named("a robot", ["sks robot"], ["zwx robot"]), []);
  assert.deepEqual(named("a sks robot", ["sks robot"], [], ["the photo"]), ["sks robot"]);
});

test("a prompt lacks LoRAs that it does not name, unless others have the same words", () => {
  const unnamed = (prompt, ...words) =>
    unnamedIn(
      prompt,
      words.map((each) => ({ trigger_words: each })),
    ).map(({ trigger_words: [first] }) => first);
  assert.deepEqual(unnamed("a castle at night", ["sks robot"], ["zwx owl"]), ["sks robot", "zwx owl"]);
  assert.deepEqual(unnamed("a sks robot", ["sks robot"], ["zwx robot"], []), ["zwx robot"]);
  assert.deepEqual(unnamed("a sks robot", ["sks robot"], ["sks robot"]), []);
  assert.deepEqual(unnamed("a xk castle", ["xk"], ["zq"]), ["zq"]);
});

test("of a merge, the words of each of its LoRAs are told that a prompt does not name", () => {
  const merge = { trigger_words: ["a sks robot", "a zwx owl"], merged_words: [["a sks robot"], ["a zwx owl"]] };
  const ink = { trigger_words: ["in ink style, ink", "inky", "black", "lines"], merged_words: [] };
  assert.deepEqual(absentFrom("a sks robot", [merge, {}, ink]), [["a zwx owl"], [], ["in ink style, ink, inky"]]);
  assert.deepEqual(absentFrom("", [merge]), [["a sks robot", "a zwx owl"]]);
  assert.deepEqual(absentFrom("a sks robot and a zwx owl, black", [merge, ink]), [[], []]);
  assert.deepEqual(absentFrom("a robot and an owl", [merge]), [["a sks robot", "a zwx owl"]], "of the base model");
  assert.deepEqual(absentFrom("a sks robot", [{ trigger_words: ["sks robot"] }, { trigger_words: ["sks owl"] }]), [
    [],
    ["sks owl"],
  ]);
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
  assert.equal(lacks(["a photo"], undefined), false);
});
