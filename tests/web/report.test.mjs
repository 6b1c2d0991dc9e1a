import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  ADVICE,
  CHANCES,
  LEVELS,
  bars,
  figures,
  headline,
  isUncertain,
  layersOf,
  loras,
  median,
  noteLine,
  place,
  scaleTop,
} from "../../web/report.js";
import { readSaved } from "../../web/saved_report.js";
import { languages } from "../../web/words.js";

const UNET = "diffusion_model.";
const layer = (path, rank, ...tasks) => ({
  path,
  rank,
  tasks: tasks.map(([task, residual, wears = true]) => ({ task, residual, wears, weight: 1, tokens: 10 })),
});
const REPORT = {
  layers: [
    layer(
      "clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj",
      16,
      ["cat", 0.25],
      ["ink", 0.75, false],
      ["base", 0.5, false],
    ),
    layer(
      `${UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q`,
      8,
      ["cat", 0.1],
      ["ink", 0.2],
      ["base", 0.125, false],
    ),
    layer(`${UNET}input_blocks.1.1.proj_in`, 4, ["cat", 0.123456], ["ink", 0.1], ["base", 0.25, false]),
    layer(`${UNET}middle_block.1.transformer_blocks.0.ff.net.2`, 8, ["ink", 1.5], ["base", 0.0, false]),
  ],
  unmatched: { cat: ["a", "b"], ink: [] },
  warnings: ["among the warnings", "among the warnings, too"],
  notes: [
    { kind: "method", text: "a note" },
    { kind: "twice", text: "among the warnings" },
    { kind: "unpolished", text: "among the warnings, too" },
    { kind: "prompts", text: "taken out" },
    { kind: "idle", text: "left out at strength 0: a" },
    { kind: "made", text: "made of its words" },
  ],
};

test("a layer's place is said in the words of block weights", () => {
  const { comfyui, others } = JSON.parse(readFileSync(new URL("../data/blocks.json", import.meta.url)));
  for (const [path, [block, name]] of Object.entries(comfyui)) assert.deepEqual(place(path), { block, layer: name });
  for (const path of Object.keys(others)) assert.deepEqual(place(path), { block: "other", layer: path });
});

test("the median is the one of Python's statistics", () => {
  assert.equal(median([]), undefined);
  assert.equal(median([3]), 3);
  assert.equal(median([10, 1, 2]), 2);
  assert.equal(median([0, 0]), 0);
  assert.equal(median([4, 1, 3, 10]), 3.5);
});

test("median and worst are told apart for what a task wears and where it wears nothing", () => {
  assert.deepEqual(figures(REPORT).overall, [
    { task: 0, wears: true, median: 0.1235, worst: 0.25, at: "TE03 self_attn.q_proj" },
    { task: 1, wears: true, median: 0.2, worst: 1.5, at: "MID ff.net.2" },
    { task: 1, wears: false, median: 0.75, worst: 0.75, at: "TE03 self_attn.q_proj" },
    { task: 2, wears: false, median: 0.1875, worst: 0.5, at: "TE03 self_attn.q_proj" },
  ]);
});

test("what was measured on unseen samples is kept, if it was", () => {
  const fidelity = [
    { task: "ink", output_error: 0.123456, strength: 0.98765, samples: 4 },
    { task: "base", output_error: 0.3, strength: null, samples: 4 },
  ];
  assert.deepEqual(figures({ ...REPORT, fidelity }).unseen, [
    { name: "ink", error: 0.1235, strength: 0.9877 },
    { name: "base", error: 0.3, strength: null },
  ]);
  assert.deepEqual(figures(REPORT).unseen, []);
});

test("the verdict is taken over, and a merge that still runs has none", () => {
  const advice = { kind: "method", names: ["ties"] };
  const loras = [
    {
      lora: "cat",
      kept: 0.834567,
      between: [0.712345, 0.91],
      level: "good",
      levels: ["good", "weak"],
      advice: null,
      unread: 0,
      is_told: true,
    },
    {
      lora: "ink",
      kept: 0,
      between: null,
      level: "lost",
      levels: ["lost"],
      advice,
      unread: 0.46,
      is_told: false,
    },
  ];
  const against = { leak: 0.123456, leak_stacked: 1, base: null };
  const verdict = {
    loras,
    together: "uncertain",
    together_advice: { kind: "together", names: [] },
    unjudged: { subjects: ["cat"], styles: ["ink"] },
    against,
    advice: null,
    good_from: 0.75,
    lost_below: 0.3,
  };
  const settings = { loras: [{ name: "cat", strength_model: 0.8 }] };
  assert.deepEqual(figures({ ...REPORT, settings, verdict }).verdict, {
    loras: [
      {
        name: "cat",
        strength: 0.8,
        kept: 0.8346,
        between: [0.7123, 0.91],
        level: "good",
        levels: ["good", "weak"],
        advice: null,
        unread: 0,
        isTold: true,
      },
      {
        name: "ink",
        strength: 1,
        kept: 0,
        between: null,
        level: "lost",
        levels: ["lost"],
        advice,
        unread: 0.46,
        isTold: false,
      },
    ],
    together: "uncertain",
    togetherAdvice: { kind: "together", names: [] },
    unjudged: { subjects: ["cat"], styles: ["ink"] },
    against: { ...against, leak: 0.1235 },
    advice: null,
    bounds: [0.3, 0.75],
  });
  assert.equal(figures(REPORT).verdict, null);
});

test("a range that spans nearly everything says nothing", () => {
  for (const [between, expected] of [
    [[0, 1], true],
    [[0.1, 0.95], true],
    [[0.2, 0.9], false],
    [[0.6, 1], false],
    [null, false],
  ])
    assert.equal(isUncertain({ between }), expected);
});

test("every level and every advice has words", () => {
  for (const word of [...LEVELS, ...CHANCES, ...ADVICE.map((kind) => `to_${kind}`)])
    assert.ok(languages.en[word], word);
});

test("blocks keep the network's order, and a saved model is its own JSON", () => {
  const model = figures(REPORT);
  assert.deepEqual(model.tasks, ["cat", "ink", "base"]);
  assert.deepEqual(
    model.blocks.map(({ name }) => name),
    ["TE03", "IN01", "MID"],
  );
  assert.deepEqual(model.blocks[1].layers[1], ["proj_in", 4, [0.1235, 0.1, 0.25], "110"]);
  assert.deepEqual(model.blocks[2].layers[0], ["ff.net.2", 8, [null, 1.5, 0], "010"]);
  assert.deepEqual(JSON.parse(JSON.stringify(model)), model);
  assert.deepEqual(model.warnings, [...REPORT.warnings, "cat: 2 keys belong to no module of this model, such as a"]);
  assert.deepEqual(
    [model.prompts, model.notes],
    [
      ["taken out", "left out at strength 0: a"],
      ["made of its words", "a note"],
    ],
  );
});

test("bars are the LoRAs', where they wear something", () => {
  const model = figures(REPORT);
  assert.deepEqual(loras(model), [0, 1]);
  assert.deepEqual(bars(model), [
    { name: "TE03", bars: [{ task: 0, median: 0.25, worst: 0.25 }] },
    {
      name: "IN01",
      bars: [
        { task: 0, median: (0.1 + 0.1235) / 2, worst: 0.1235 },
        { task: 1, median: (0.2 + 0.1) / 2, worst: 0.2 },
      ],
    },
    { name: "MID", bars: [{ task: 1, median: 1.5, worst: 1.5 }] },
  ]);
  assert.equal(scaleTop(bars(model)), 2);
  assert.equal(scaleTop([{ bars: [{ worst: 0.2 }] }]), 0.2);
  assert.equal(scaleTop([{ bars: [{ worst: 37.2 }] }]), 38);
  assert.equal(scaleTop([]), 0.05);
});

test("a block's layers come with who suffers, the worst first", () => {
  const model = figures(REPORT);
  assert.deepEqual(layersOf(model, "IN01"), [
    { name: "attn1.to_q", rank: 8, residuals: [0.1, 0.2, null], suffers: 1, worst: 0.2 },
    { name: "proj_in", rank: 4, residuals: [0.1235, 0.1, null], suffers: 0, worst: 0.1235 },
  ]);
  assert.deepEqual(
    layersOf(model, "TE03").map(({ suffers, residuals }) => [suffers, residuals]),
    [[0, [0.25, null, null]]],
  );
  assert.deepEqual(layersOf(model, "OUT01"), []);
});

test("what a merge fails comes before all other warnings", () => {
  const model = figures({ ...REPORT, warnings: ["WARNING: the merge fails cat", "Try this"] });
  assert.deepEqual(model.warnings.slice(0, 2), ["WARNING: the merge fails cat", "Try this"]);
  assert.equal(model.warnings.length, 3);
});

test("a figure that is not finite is null, and drawn as none", () => {
  const fidelity = [{ task: "cat", output_error: null, strength: null }];
  const named = (name, residual) => layer(`${UNET}input_blocks.1.1.${name}`, 4, ["cat", residual]);
  const layers = [named("proj_in", 0.5), named("proj_out", null), named("proj_up", 0.25)];
  const model = readSaved(figures({ layers, fidelity }));
  assert.deepEqual(model.unseen, [{ name: "cat", error: null, strength: null }]);
  assert.deepEqual(model.overall, [{ task: 0, wears: true, median: 0.5, worst: null, at: "IN01 proj_out" }]);
  assert.deepEqual(bars(model), [{ name: "IN01", bars: [{ task: 0, median: 0.375, worst: 0.5 }] }]);
  assert.deepEqual(
    layersOf(model, "IN01").map(({ name, worst }) => [name, worst]),
    [
      ["proj_out", null],
      ["proj_in", 0.5],
      ["proj_up", 0.25],
    ],
  );
  const none = readSaved(figures({ layers: [layers[1]] }));
  assert.deepEqual([none.overall[0].median, bars(none)], [null, [{ name: "IN01", bars: [] }]]);
});

test("a report without layers is an empty picture", () => {
  const model = figures({ layers: [] });
  assert.deepEqual([model.overall, bars(model), model.warnings, model.prompts, model.notes], [[], [], [], [], []]);
});

test("the report of a whole SD1.5 stays small in a saved workflow", () => {
  const tasks = ["character", "style", "base model (preserve)"].map((name, i) => [name, 0.123456 + i, i < 2]);
  const numbers = [...Array(264).keys()];
  const layers = numbers.map((n) =>
    layer(`${UNET}input_blocks.${n % 12}.1.transformer_blocks.0.attn1.to_out.${n}`, 16, ...tasks),
  );
  assert.ok(JSON.stringify(figures({ layers })).length < 20_000);
});

test("a note is a sentence that names layers as the bars do", () => {
  const said = "these were measured in half precision: ink at 2 of 60 layers, such as ";
  const path = `${UNET}input_blocks.5.1.transformer_blocks.0.attn2.to_k`;
  for (const [note, line] of [
    [`${said}'${path}'`, `T${said.slice(1)}IN05 attn2.to_k.`],
    [`${said}'${UNET}odd.layer', cat at 1`, `T${said.slice(1)}odd.layer, cat at 1.`],
    ["ink: the file 'diffusion.safetensors' is odd", "ink: the file 'diffusion.safetensors' is odd."],
    ["6 of the 18 sampling runs.", "6 of the 18 sampling runs."],
    ["épreuve", "Épreuve."],
    ["", ""],
  ])
    assert.equal(noteLine(note, ["cat", "ink"]), line);
});

test("a verdict comes to one sentence: what is not good is named, and grey is what nobody knows", () => {
  const lora = (level, more = {}) => ({ name: level, level, levels: [level], between: null, isTold: true, ...more });
  const [good, weak, lost] = ["good", "weak", "lost"].map((level) => lora(level));
  const open = lora("lost", { between: [0, 1] });
  const said = (...loras) => {
    const { level, word, loras: named = [], count } = headline(loras);
    return [level, word, ...named.map(({ name }) => name), ...(count ? [count] : [])];
  };
  assert.deepEqual(said(good), ["good", "head_good_one"]);
  assert.deepEqual(said(good, good), ["good", "head_good_each"]);
  assert.deepEqual(said(good, good, lora("good", { levels: ["good", "weak"] })), ["good", "head_likely_each"]);
  assert.deepEqual(said(good, weak, open), ["weak", "head_look", "weak"]);
  assert.deepEqual(said(lost, weak), ["lost", "head_look", "lost", "weak"]);
  assert.deepEqual(said(lost, weak, weak, good), ["lost", "head_several", 3]);
  assert.deepEqual(said(good, open), ["open", "head_open"]);
  assert.deepEqual(said(good, lora("good", { isTold: false })), ["open", "head_open"]);
});
