import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { modelFileOf } from "../../web/graph.js";
import {
  canName,
  changed,
  fileOf,
  calledAs,
  furtherIn,
  furtherWords,
  keyOf,
  matching,
  namesakes,
  moved,
  newRow,
  offer,
  readRows,
  repeated,
  similar,
  strangers,
  switched,
  versions,
  writtenRow,
  writtenRows,
} from "../../web/rows_text.js";

const { good, bad, unchosen } = JSON.parse(readFileSync(new URL("../data/rows.json", import.meta.url)));

/** Return the rows of a text as the table has them; they are counted in Python only. */
function rowsOf(text) {
  return readRows(text).flatMap(({ row, isOff }) => (row ? [{ ...row, kind: row.kind || null, on: !isOff }] : []));
}

function whole({ row: place, ...row }) {
  return {
    model: 1,
    clip: row.model ?? 1,
    kind: null,
    priority: 1,
    called: "",
    blocks: "",
    without: [],
    prompts: [],
    on: true,
    ...row,
  };
}

for (const { text, rows, written = text } of [...good, ...unchosen])
  test(`read and written: ${JSON.stringify(text)}`, () => {
    assert.deepEqual(rowsOf(text), rows.map(whole));
    const entries = readRows(text);
    assert.ok(entries.every(({ error }) => error === undefined));
    const lines = entries.flatMap(({ row, isOff, text: line }) =>
      row ? [writtenRow(row, isOff)] : line.trim() ? [line] : [],
    );
    assert.equal(lines.join("\n"), written);
  });

for (const { text, row, unread, twice } of bad)
  test(`not understood: ${JSON.stringify(text)}`, () => {
    const faults = readRows(text).flatMap(({ error }, place) => (error === undefined ? [] : [[place + 1, error]]));
    assert.deepEqual(
      faults.map(([place]) => place),
      [row],
    );
    const [[, { kind, part }]] = faults;
    assert.ok(part && text.includes(part));
    if (unread) assert.deepEqual([kind, part], ["unread", unread]);
    if (twice) assert.deepEqual([kind, part], ["twice", twice]);
  });

test("what a view does not touch stays as it is, and what it cannot read, too", () => {
  const text = "  <lora:a>  style|x\n\nno row at all\n# a remark\n<lora:b:0.5> sytle";
  assert.equal(writtenRows(readRows(text)), text);
  const entries = readRows(text);
  entries[0] = changed(entries[0], { model: 0.25 });
  assert.equal(writtenRows(entries), text.replace("  <lora:a>  style|x", "<lora:a:0.25:1> style | x"));
  entries[0] = changed(entries[0], {}, true);
  assert.ok(writtenRows(entries).startsWith("# <lora:a:0.25:1> style | x\n"));
  assert.equal(readRows("#<lora:a:1>#").length, 1);
});

test("what a closed row has besides its strengths", () => {
  const said = (text) => furtherWords(readRows(text)[0].row);
  assert.equal(said("<lora:a:1:0.4> style | x"), "");
  assert.equal(
    said('<lora:a:1> blocks=MID:0 style called="a dog" priority=2'),
    'priority=2 called="a dog" blocks=MID:0',
  );
});

test("a template's word for a LoRA changes with its kind, a user's does not", () => {
  assert.equal(calledAs("style", "a {trigger}"), "in {trigger} style");
  assert.equal(calledAs("subject", "in {trigger} style"), "a {trigger}");
  assert.equal(calledAs("style", "a sks dog"), "a sks dog");
  assert.equal(calledAs("style", ""), "");
});

test("all rows are switched alike, and lines that are none stay", () => {
  const all = (text, isOff) => writtenRows(switched(readRows(text), isOff));
  assert.equal(all("<lora:a:1>\n# <lora:b:1>\nno row", true), "# <lora:a:1>\n# <lora:b:1>\nno row");
  assert.equal(all("<lora:a>\n# <lora:b:1>\n# a remark", false), "<lora:a>\n<lora:b:1>\n# a remark");
});

test("a row of a file that was chosen", () =>
  assert.equal(newRow("people/dog.safetensors").text, "<lora:people/dog:1>"));

test("a file whose name no row can have", () => {
  for (const file of ["people/dog.safetensors", "a | b.safetensors", "small\\ink {x} #1.pt", "DOG.SAFETENSORS"])
    assert.ok(canName(file), file);
  for (const file of [
    "a:b.safetensors",
    "<a.safetensors",
    "a>.safetensors",
    "a\nb.safetensors",
    "a\rb.safetensors",
    "a\n<lora:b>.safetensors",
    " a.safetensors",
    "a .safetensors",
    ".safetensors",
  ])
    assert.ok(!canName(file), file);
});

test("long lines of hardly anything are read at once", () => {
  const long = (letter) => letter.repeat(400_000);
  assert.equal(readRows(`#a${long(" ")}b`)[0].error, undefined);
  assert.ok(readRows(`a${long(" ")}b`)[0].error);
  assert.deepEqual(readRows(`<lora:a:1>${long(" ")}| a${long(" ")}b`)[0].row.prompts.length, 1);
  assert.ok(readRows(`<lora:a:${long("1")}x>`)[0].error);
});

test("a row moves to another place", () => {
  assert.deepEqual(moved(["a", "b", "c"], 0, 2), ["b", "c", "a"]);
  assert.deepEqual(moved(["a", "b", "c"], 2, 0), ["c", "a", "b"]);
});

test("the file that a row means", () => {
  const files = [
    "cat.safetensors",
    "big/cat.safetensors",
    "big/dog.safetensors",
    "small\\ink.safetensors",
    "a/x.safetensors",
    "b/x.safetensors",
  ];
  assert.equal(fileOf("cat", files), "cat.safetensors");
  assert.equal(fileOf("big/cat.safetensors", files), "big/cat.safetensors");
  assert.equal(fileOf("dog", files), "big/dog.safetensors");
  assert.equal(fileOf("small/ink", files), "small\\ink.safetensors");
  assert.equal(fileOf("x", files), undefined);
  assert.equal(fileOf("og", files), undefined);
  assert.equal(fileOf("/models/loras/big/cat.safetensors", files), "big/cat.safetensors"); // the longest end
  assert.equal(fileOf("\\loras\\small\\ink", files), "small\\ink.safetensors");
  assert.equal(fileOf("", files), undefined); // still to be chosen
  const loud = "LOUD.SAFETENSORS"; // Python cuts the suffix in small letters alone
  assert.equal(fileOf("LOUD", [loud]), undefined);
  assert.equal(fileOf(newRow(loud).row.name, [loud]), loud);
});

test("names are found by their parts, in any order", () => {
  assert.deepEqual(matching(["Style/Ink_v2", "style/oil", "ink_v1"], "ink ST"), ["Style/Ink_v2"]);
  assert.deepEqual(matching(["a", "b"], " "), ["a", "b"]);
  const names = ["a/bright", "ghost/b", "a/x_ghibli", "knights", "b\\\\Ghibli_2", "ghibli"];
  assert.deepEqual(matching(["x/owl_2", "my owl", "x/Owl"], "owl"), ["x/Owl", "x/owl_2", "my owl"]);
  assert.deepEqual(matching(names, "gh"), ["ghibli", "b\\\\Ghibli_2", "a/x_ghibli", "knights", "a/bright", "ghost/b"]);
  const epochs = ["archive/2025/robot_epoch-10", "robot_epoch-10", "robot_epoch-20"];
  assert.deepEqual(matching(epochs, "epoch 20"), ["robot_epoch-20", "archive/2025/robot_epoch-10"]);
});

test("a merge, which is called like its LoRAs, is found after them, unless its whole name is written", () => {
  const found = (text) => matching(names, text, undefined, (name) => name.includes(" "));
  const names = ["robot owl", "a sks robot", "sks_robot", "microbot"];
  assert.deepEqual(found("rob"), ["sks_robot", "robot owl", "a sks robot", "microbot"]);
  assert.equal(found("robot owl")[0], "robot owl");
  assert.deepEqual(found("bot"), ["sks_robot", "microbot", "robot owl", "a sks robot"]);
});

test("a file is found by what is known of it, after those with the words in their names", () => {
  const known = { "x/merge": "a sks robot\nowl", dog: "owl" };
  assert.deepEqual(
    matching(["dog", "x/merge", "x/owl"], "OWL", (name) => known[name]),
    ["x/owl", "dog", "x/merge"],
  );
  assert.deepEqual(
    matching(["dog", "x/merge"], "merge robot", (name) => known[name]),
    ["x/merge"],
  );
});

test("a LoRA of another family than the model, or than most, is told", () => {
  assert.deepEqual(strangers(["SD1.x", "SDXL", ""], ["SD1.x"]), ["", "unfit", ""]);
  assert.deepEqual(strangers(["SD1.x", "SDXL", "SD1.x", ""], []), ["", "odd", "", ""]);
  assert.deepEqual(strangers(["SD1.x", "SDXL"], []), ["odd", "odd"]);
  assert.deepEqual(strangers(["SDXL", ""], []), ["", ""]);
  assert.deepEqual(strangers([], []), []);
});

test("what is offered for a model is never taken back, and stays where it is", () => {
  const all = ["a", "b", "c", "d", "e"];
  const families = new Map([
    ["a", "SDXL"],
    ["b", "SD1.5"],
    ["d", ""],
  ]);
  const broken = new Set();
  const isWhole = (name) => !broken.has(name);
  const offered = () => offer(all, ["SDXL"], (name) => families.get(name), isWhole);
  assert.deepEqual(offered(), { offered: ["a"], unread: ["c", "d", "e"] });
  families.set("c", "SDXL");
  assert.deepEqual(offered(), { offered: ["a", "c", "d"], unread: ["e"] });
  families.set("e", "SD1.5");
  assert.deepEqual(offered(), { offered: ["a", "c", "d"], unread: [] });
  assert.deepEqual(
    offer(all, [], () => undefined, isWhole),
    { offered: all, unread: [] },
  );
  broken.add("a");
  assert.deepEqual(offered(), { offered: ["c", "d", "a"], unread: [] });
  assert.deepEqual(offer(all, [], () => undefined, isWhole).offered, [...all.slice(1), "a"]);
});

test("versions of a file are those of its folder that differ in numbers alone", () => {
  const files = ["x/a_v1_0010.st", "x/a_v2.st", "x/a_v1_9.st", "y/a_v1_0010.st", "x/a.st"];
  assert.deepEqual(versions("x/a_v1_9.st", files), ["x/a_v1_0010.st", "x/a_v1_9.st"]);
});

test("files with similar names are found, the likest first", () => {
  const files = ["x/robot.st", "sks_robot_v2.safetensors", "owl.st", "a", "y/sks_robot.safetensors"];
  assert.deepEqual(similar("z/SKS_robot", files), [
    "y/sks_robot.safetensors",
    "sks_robot_v2.safetensors",
    "x/robot.st",
  ]);
  assert.deepEqual(similar("", files), []);
});

test("files of the same name in other folders are told", () => {
  const files = ["a.safetensors", "x/a.safetensors", "x\\y\\a.safetensors", "b.safetensors", "a/b_2.safetensors"];
  assert.deepEqual([...namesakes(files)], files.slice(0, 3));
  assert.equal(namesakes(files.slice(2)).size, 0);
});

test("a LoRA that is there a second time is told", () => {
  assert.deepEqual(repeated(["a", "b", "a", "", ""]), [true, false, true, false, false]);
  const keysOf = (...loras) => loras.map(([file, hash]) => keyOf(file, { hash, rank: 8 }, newRow(file)));
  assert.deepEqual(repeated(keysOf(["a", "1"], ["b", "1"], ["c", "2"])), [true, true, false]);
  assert.deepEqual(repeated(keysOf(["a", ""], ["b", ""], ["a", ""])), [true, false, true]);
});

test("the file of the model is that of the loader up the links", () => {
  const loader = { widgets: [{ name: "ckpt_name", value: "a.safetensors" }], inputs: [] };
  const inputs = [{ type: "CLIP" }, { type: "MODEL", link: 1 }];
  const linked = (end) => ({ getLink: (id) => (id === 1 ? { origin_slot: 0, resolve: () => end() } : undefined) });
  const behind = (node, own = inputs) => ({ graph: linked(() => ({ outputNode: node })), inputs: own });
  assert.equal(modelFileOf(behind(behind(loader))), "a.safetensors");
  assert.equal(modelFileOf(behind(undefined)), undefined);
  const circle = { graph: linked(() => ({ outputNode: circle })), inputs };
  assert.equal(modelFileOf(circle), undefined);
  assert.equal(modelFileOf({ graph: null, inputs }), undefined);

  const inside = linked(() => ({ subgraphInput: { name: "base" } }));
  const outer = { ...behind(loader, [{ name: "other" }, { name: "base", link: 1 }]), subgraph: inside };
  inside.rootGraph = { nodes: [outer] };
  assert.equal(modelFileOf({ graph: inside, inputs }), "a.safetensors", "from inside a subgraph");
  inside.rootGraph.nodes.push({ ...outer });
  assert.equal(modelFileOf({ graph: inside, inputs }), undefined, "of two with the same inside, either may be meant");
});

test("what a row says in words is read, and any other text is its block weights", () => {
  const blocks = (text) => ({ called: "", blocks: text, without: [] });
  const read = [
    ["", blocks("")],
    [
      'called="a sks dog" blocks="IN01:0.5, MID:0" without=*a* without=*b*',
      "IN01:0.5, MID:0",
      "a sks dog",
      ["*a*", "*b*"],
    ],
    ["blocks=MID:0", blocks("MID:0")],
  ].map(([text, found, called, without]) => [text, called ? { called, blocks: found, without } : found]);
  for (const [text, found] of read) assert.deepEqual(furtherIn(text), found, text);
  const others = [
    "IN01:0.5, MID:0",
    "1,0,1",
    "IN01=0.2",
    "block",
    "style",
    "priority=2",
    "IN01:1 | a dog",
    "<lora:y:1>",
  ];
  for (const text of others) {
    const { error, ...found } = furtherIn(text);
    assert.deepEqual(found, blocks(text));
    assert.equal(error.kind, "unread");
    assert.equal(furtherIn(furtherWords({ ...found, priority: 1 })).blocks, text, "as it is written");
  }
  assert.equal(furtherIn("blocks=IN01:0.5, MID:0").blocks, "IN01:0.5, MID:0");
  assert.equal(furtherIn("called=a called=b").error.kind, "twice");
  const both = { blocks: "IN01:0.5, MID:0", without: ["*a*"], called: "an ink" };
  for (const text of ["", "blocks="].map((start) => `${start}IN01:0.5, MID:0 without=*a* called="an ink"`))
    assert.deepEqual(furtherIn(text), { ...both, error: { kind: "unread", part: both.blocks } }, text);
  assert.equal(furtherIn("IN01:0.5 without=").blocks, "IN01:0.5 without=");
});
